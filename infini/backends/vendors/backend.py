"""What compiles and runs programs for an adapter: the backend of all accelerators with a vendor's driver."""

from __future__ import annotations

from infini.backends.accelerator.backend import AcceleratorBackend
from infini.backends.vendors.adapter import AdapterBackend
from infini.backends.vendors.comm import Collectives
from infini.backends.vendors.driver import VendorDriver


class VendorBackend(AcceleratorBackend):
    """The devices of a vendor.

    Args:
        card: his adapter, with its libraries.
    """

    def __init__(self, card: AdapterBackend) -> None:
        super().__init__(card.name, card.adapter.target)
        self.card = card

    def why_unavailable(self) -> str | None:
        """Why there is no device."""
        return self.card.why_no_runtime()

    @property
    def num_devices(self) -> int:
        """How many devices the runtime sees."""
        return self.card.num_devices

    def load_collectives(self) -> tuple[Collectives | None, str | None]:
        """His library of collectives."""
        return self.card.find_collectives()

    def make_driver(self, number: int) -> VendorDriver:
        """A driver by the runtime's table."""
        return VendorDriver(self.card, number)
