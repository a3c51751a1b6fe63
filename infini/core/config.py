"""The knobs: one table, read from `INFINI_*` at import and changed for a while by `with
infini.config(x=...)`.

A broken value in the environment raises at import. Knobs with `in_key=True` change results and are part
of every cache key.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infini.core import errors


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting: its default, how to read it from text, what it does."""

    name: str
    default: Any  # Any: knobs have different types
    read: Callable[[str], Any]
    doc: str
    in_key: bool = False


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected 0 or 1")


def _choice(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return text

    return read


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("expected a number of at least 0")
    return number


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


KNOBS: Final[dict[str, Knob]] = {
    knob.name: knob
    for knob in (
        Knob(
            "device",
            "",
            str,
            "Default device, such as `cpu`, `cuda:1` or `reference`; empty picks the best there is.",
        ),
        Knob("check", 0, _count, "1 checks programs between passes, 2 also re-checks every traced program."),
        Knob("dump", (), _names, "Comma-separated pass names whose programs are written before and after."),
        Knob("dump_dir", "infini-dump", str, "Folder for dumps."),
        Knob(
            "log",
            "warning",
            _choice("debug", "info", "warning", "error"),
            "Least severe event that is logged.",
        ),
        Knob("explain", False, _flag, "Log why a jitted function was traced again."),
        Knob("no_fuse", False, _flag, "One kernel per equation.", in_key=True),
        Knob("no_cache", False, _flag, "Do not read or write compiled objects on disk."),
        Knob("cache_dir", "", str, "Folder of compiled objects; empty means the user's cache folder."),
        Knob(
            "num_threads",
            0,
            _count,
            "Threads of the CPU pool; 0 means one per physical core. Never changes a result.",
        ),
        Knob("pool", "auto", _choice("auto", "native", "portable"), "CPU thread pool; `native` needs Linux."),
        Knob("cpu_devices", 1, _count, "Devices that one process simulates on the CPU, run in lockstep."),
        Knob(
            "host64",
            "narrow",
            _choice("narrow", "keep"),
            "What 64-bit host data become: the 32-bit default, or kept.",
        ),
        Knob("seed", 0, int, "Seed of commands that take none."),
    )
}


def _from_environment() -> dict[str, Any]:  # Any: knobs have different types
    values = {}
    for knob in KNOBS.values():
        text = os.environ.get(f"INFINI_{knob.name.upper()}")
        try:
            values[knob.name] = knob.default if text is None else knob.read(text)
        except ValueError as error:
            raise errors.ValueMismatchError(
                f"the environment variable INFINI_{knob.name.upper()} has a wrong value",
                got=repr(text),
                expected=str(error),
                fix=knob.doc,
            ) from None
    unknown = sorted(
        key for key in os.environ if key.startswith("INFINI_") and key[len("INFINI_") :].lower() not in KNOBS
    )
    allowed_elsewhere = ("INFINI_REQUIRE_WEB",)
    if unknown := [key for key in unknown if key not in allowed_elsewhere]:
        raise errors.ValueMismatchError(
            f"unknown environment variable {unknown[0]}",
            expected="one of " + ", ".join(f"INFINI_{name.upper()}" for name in KNOBS),
            fix="correct or unset it",
        )
    return values


@dataclass(frozen=True, slots=True)
class Scope:
    """Values of all knobs, and of those that are part of cache keys."""

    values: Mapping[str, Any]  # Any: knobs have different types
    key: tuple[object, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Scope:
        """The scope with these values."""
        return cls(values, tuple(values[knob.name] for knob in KNOBS.values() if knob.in_key))


_BASE: Final = Scope.of(_from_environment())
_scope: contextvars.ContextVar[Scope] = contextvars.ContextVar("infini_config", default=_BASE)


def get(name: str) -> Any:  # Any: knobs have different types
    """The current value of a knob."""
    return _scope.get().values[name]


def cache_key() -> tuple[object, ...]:
    """Values of the knobs that change results, for cache keys."""
    return _scope.get().key


@contextlib.contextmanager
def config(**changes: Any) -> Iterator[None]:  # Any: knobs have different types
    """Change knobs within a block, in this thread or task only.

    Args:
        **changes: knob names and values; see `infini.core.config.KNOBS`.

    Raises:
        ValueMismatchError: there is no such knob, or the value is not one of its values.

    Example:
        >>> import infini
        >>> with infini.config(no_fuse=True):
        ...     pass
    """
    for name, value in changes.items():
        if name not in KNOBS:
            raise errors.ValueMismatchError(f"there is no knob named {name!r}", expected=", ".join(KNOBS))
        if isinstance(value, str):
            try:
                changes[name] = KNOBS[name].read(value)
            except ValueError as error:
                raise errors.ValueMismatchError(
                    f"the knob {name!r} has a wrong value", got=repr(value), expected=str(error)
                ) from None
    token = _scope.set(Scope.of({**_scope.get().values, **changes}))
    try:
        yield
    finally:
        _scope.reset(token)
