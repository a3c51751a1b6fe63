"""`Format`: how an array lies in memory and where, with JAX's name."""

from __future__ import annotations

from dataclasses import dataclass

from infini.core import errors
from infini.core.layout import AutoLayout, Layout
from infini.core.sharding import NamedSharding, Sharding, SingleDeviceSharding


@dataclass(frozen=True, slots=True)
class Format:
    """A layout and a placement, as `jax.experimental.layout.Format`.

    Args:
        layout: a `Layout`, `Layout.AUTO` for what the compiled program would like best, or None for what
            there is.
        sharding: the placement; needed beside a `Layout`.

    Raises:
        ValueMismatchError: a layout without a placement.
        TypeMismatchError: an argument is neither.

    Example:
        >>> from infini.core.layout import Layout
        >>> Format(Layout.AUTO)
        Format(layout=AUTO, sharding=None)
    """

    layout: Layout | AutoLayout | None = None
    sharding: Sharding | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layout, Layout) and self.sharding is None:
            raise errors.ValueMismatchError(
                "a Format with a layout needs a sharding",
                got=str(self.layout),
                fix="pass x.sharding, a NamedSharding or SingleDeviceSharding(device)",
            )
        if not isinstance(self.layout, (Layout, AutoLayout, type(None))):
            raise errors.TypeMismatchError(
                "this is no layout",
                got=f"{self.layout!r} of type {type(self.layout).__name__}",
                expected="None, Layout.AUTO or a Layout",
            )
        if not isinstance(self.sharding, (SingleDeviceSharding, NamedSharding, type(None))):
            raise errors.TypeMismatchError(
                "this is no sharding",
                got=f"{self.sharding!r} of type {type(self.sharding).__name__}",
                expected="None, a NamedSharding or a SingleDeviceSharding",
            )
