"""What compiles and runs programs for an adapter: the backend of all accelerators with a vendor's driver."""

from __future__ import annotations

import re

from infini.backends.accelerator.backend import AcceleratorBackend
from infini.backends.accelerator.executable import tasks_of
from infini.backends.accelerator.tasks import Product
from infini.backends.vendors.adapter import AdapterBackend
from infini.backends.vendors.driver import VendorDriver
from infini.backends.vendors.tables import Capabilities
from infini.compiler.steps import Block
from infini.compiler.triton.source import LANGUAGE_NAMES, SIGNATURE_NAMES, TritonSource
from infini.core import dtypes, errors


class VendorBackend(AcceleratorBackend):
    """The devices of a vendor.

    Args:
        card: his adapter, with its libraries.
    """

    def __init__(self, card: AdapterBackend) -> None:
        super().__init__(card.name)
        self.card = card

    def why_unavailable(self) -> str | None:
        """Why there is no device."""
        return self.card.why_unavailable()

    @property
    def num_devices(self) -> int:
        """How many devices the runtime sees."""
        return self.card.num_devices

    def make_driver(self, number: int) -> VendorDriver:
        """A driver by the runtime's table."""
        return VendorDriver(self.card, number)

    def check(self, block: Block) -> None:
        """Refuse kernels that the vendor's processors or Triton cannot take.

        Raises:
            LoweringError: a kernel needs what they lack.
        """
        for task in tasks_of(block):
            source = task.kernel if isinstance(task, Product) else task.source
            missing = unsupported(source, self.card.adapter.capabilities)
            if missing:
                raise errors.LoweringError(
                    f"the kernel {source.function_name} cannot run on {self.name}",
                    got="; ".join(missing),
                    expected=f"what processors of {self.card.adapter.vendor} and their Triton have",
                    fix="convert to float32 before it, or run it on another device",
                )


def unsupported(source: TritonSource, capabilities: Capabilities) -> list[str]:
    """What a source uses and a target has not, one sentence each."""
    used = set(re.findall(r"\btl\.(\w+)", source.text))
    kinds = {kind.removeprefix("*") for _, kind in source.signature}
    return [
        f"it computes with {dtypes.short(dtype)}"
        for dtype in capabilities.without
        if LANGUAGE_NAMES[dtype] in used or SIGNATURE_NAMES[dtype] in kinds
    ]
