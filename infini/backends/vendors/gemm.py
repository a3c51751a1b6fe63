"""Products by a vendor's library, where it has cuBLAS's calls: what differs are names and numbers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.backends.vendors.libraries import Library
from infini.backends.vendors.tables import GemmTable
from infini.core import errors


class GemmLibrary:
    """A library of products.

    Args:
        vendor: whose it is.
        table: how it is called.
        library: the library, loaded.
    """

    def __init__(self, vendor: str, table: GemmTable, library: Library) -> None:
        self.name = table.name
        self.vendor, self.table, self.library = vendor, table, library
        self._handles = threading.local()  # a handle may not be used by two threads at once

    def _call(self, operation: str, **values: Any) -> list[Any]:  # Any: numbers
        function = self.library.functions[operation]
        status, results = function(values)
        if status != 0:
            raise errors.DeviceError(
                f"{self.vendor}: {function.symbol} failed",
                got=f"status {status} {self.table.error_texts.get(status, '')}".rstrip(),
            )
        return results

    def _handle(self, device: int) -> int:
        """The handle of this thread for a device, which is current."""
        handles: dict[int, int] = self._handles.__dict__.setdefault("by_device", {})
        if device not in handles:
            (handles[device],) = self._call("create")
        return handles[device]

    def start(self, driver: Any, numbers: Sequence[int], compute: int, scalar: np.dtype) -> None:
        """Start a product on a driver's stream; `numbers` as `accelerator.gemm.Gemm.numbers` gives them."""
        driver.runtime.use(driver.number)
        handle = self._handle(driver.number)
        transpose_a, transpose_b, m, n, k, *rest, count = numbers
        table = self.table
        operands: dict[str, int] = {}
        for name, (address, type_, leading, stride) in zip(
            "abc", (rest[:4], rest[4:8], rest[8:]), strict=True
        ):
            operands |= {
                name: address, f"{name}_type": table.types.get(type_, type_), f"ld{name}": leading,
                f"{name}_stride": stride,
            }  # fmt: skip
        one, zero = np.ones((), scalar), np.zeros((), scalar)
        self._call("set_stream", handle=handle, stream=driver.stream)
        self._call(
            "gemm", handle=handle, transpose_a=table.transposes[transpose_a],
            transpose_b=table.transposes[transpose_b], m=m, n=n, k=k, alpha=one.ctypes.data,
            beta=zero.ctypes.data, **operands, count=count, compute=table.computes.get(compute, compute),
        )  # fmt: skip
