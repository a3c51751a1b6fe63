"""NVIDIA's library of collectives, NCCL, through CuPy: the six calls of a group of GPUs, on their memory.

CuPy's module is there without the library and says so. Numbers of dtypes and reductions are CuPy's constants;
identifiers are tuples of C's `char`, which is signed on some machines. Written against CuPy 13 and 14.
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors

_ID_BYTES: Final = 128
_DTYPES: Final[dict[np.dtype, str]] = {
    dtypes.int8: "NCCL_INT8", dtypes.uint8: "NCCL_UINT8", dtypes.int32: "NCCL_INT32",
    dtypes.uint32: "NCCL_UINT32", dtypes.int64: "NCCL_INT64", dtypes.uint64: "NCCL_UINT64",
    dtypes.float16: "NCCL_FLOAT16", dtypes.float32: "NCCL_FLOAT32", dtypes.float64: "NCCL_FLOAT64",
    dtypes.bfloat16: "NCCL_BFLOAT16",
}  # fmt: skip
_OPS: Final = {"sum": "NCCL_SUM", "prod": "NCCL_PROD", "max": "NCCL_MAX", "min": "NCCL_MIN"}
_INSTALL: Final = "pip install nvidia-nccl-cu12 or nvidia-nccl-cu13, by the version of CUDA"


class Nccl:
    """NCCL, loaded.

    Args:
        cupy: CuPy.
        module: its module for NCCL.
    """

    has_messages = True

    def __init__(self, cupy: Any, module: Any) -> None:  # Any: modules without types
        self.cupy, self.module = cupy, module
        self.numbers = {d: int(getattr(module, n)) for d, n in _DTYPES.items() if hasattr(module, n)}
        self.ops = {op: int(getattr(module, name)) for op, name in _OPS.items()}

    @classmethod
    def load(cls, cupy: Any) -> tuple[Nccl | None, str | None]:  # Any: a module without types
        """NCCL, or why it cannot be used."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns where NCCL is missing; the reason says it
            try:
                module = importlib.import_module("cupy.cuda").nccl
                version = module.get_version() if module.available else 0
            except (ImportError, AttributeError, RuntimeError) as error:
                return None, f"NCCL cannot be loaded: {error}; {_INSTALL}"
        if not module.available:
            return None, f"CuPy finds no NCCL; {_INSTALL}"
        if version and version < 2700:
            return None, f"NCCL {version} has no messages between two devices; use 2.7 or newer"
        return cls(cupy, module), None

    @property
    def version(self) -> int:
        """NCCL's version, such as 22703 for 2.27.3."""
        return int(self.module.get_version())

    @property
    def dtypes(self) -> Collection[np.dtype]:
        """Those that NCCL takes."""
        return self.numbers.keys()

    def new_id(self) -> bytes:
        """A unique identifier of NCCL."""
        found = self.call("ncclGetUniqueId", self.module.get_unique_id)
        return bytes(item & 0xFF for item in found)

    def join(self, id_: bytes, num_ranks: int, rank: int, device: int) -> NcclGroup:
        """Become a member of a group; returns when all of them have.

        Args:
            id_: from `new_id` of one of them.
            num_ranks: how many there are.
            rank: number of this one.
            device: the GPU that it uses.

        Raises:
            ValueMismatchError: the identifier has a wrong length.
            CollectiveError: NCCL refuses.
        """
        if len(id_) != _ID_BYTES:
            raise errors.ValueMismatchError(
                "the identifier of a group of NCCL has the wrong length",
                got=f"{len(id_)} bytes",
                expected=f"{_ID_BYTES} bytes",
                fix="share what `new_id` gave to one of the ranks, all of it",
            )
        made = self.module.NcclCommunicator

        def joined() -> Any:  # Any: CuPy's communicator
            try:
                return made(num_ranks, tuple(np.frombuffer(id_, np.int8).tolist()), rank)
            except OverflowError:  # C's `char` has no sign here
                return made(num_ranks, tuple(id_), rank)

        with self.cupy.cuda.Device(device):
            handle = self.call(f"ncclCommInitRank of rank {rank} of {num_ranks}", joined)
        return NcclGroup(self, handle, num_ranks, rank, device)

    def join_all(self, devices: Sequence[int]) -> list[NcclGroup]:
        """A group of GPUs of this process.

        Raises:
            CollectiveError: NCCL refuses.
        """
        numbers = list(devices)
        handles = self.call(
            f"ncclCommInitAll of the devices {numbers}", self.module.NcclCommunicator.initAll, numbers
        )
        pairs = enumerate(zip(handles, numbers, strict=True))
        return [NcclGroup(self, handle, len(numbers), rank, device) for rank, (handle, device) in pairs]

    def call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:  # Any: CuPy's
        """Call NCCL.

        Raises:
            CollectiveError: it failed.
        """
        try:
            return function(*arguments)
        except RuntimeError as error:  # NcclError is one
            raise errors.CollectiveError(
                f"{what} failed", got=str(error), fix="run again with NCCL_DEBUG=INFO, which says more"
            ) from error

    def number(self, dtype: np.dtype) -> int:
        """NCCL's number of a dtype.

        Raises:
            UnsupportedError: it does not take it.
        """
        if dtype not in self.numbers:
            raise errors.UnsupportedError(
                f"NCCL does not take {dtypes.short(dtype)}",
                expected=", ".join(dtypes.short(d) for d in self.numbers),
                fix="convert it before it is communicated",
            )
        return self.numbers[dtype]


class NcclGroup:
    """One GPU's part in a group. Addresses are of its memory, counts are elements, streams its own."""

    has_groups = True

    def __init__(self, library: Nccl, handle: Any, num_ranks: int, rank: int, device: int) -> None:
        self.library, self.handle = library, handle  # CuPy's communicator
        self.num_ranks, self.rank, self.device = num_ranks, rank, device

    def all_reduce(self, send: int, recv: int, n: int, dtype: np.dtype, op: str, stream: int) -> None:
        """Reduce `n` elements over the ranks."""
        self._call("allReduce", send, recv, n, self.library.number(dtype), self._op(op), stream)

    def all_gather(self, send: int, recv: int, n: int, dtype: np.dtype, stream: int) -> None:
        """`n` elements of every rank, one after another."""
        self._call("allGather", send, recv, n, self.library.number(dtype), stream)

    def reduce_scatter(self, send: int, recv: int, n: int, dtype: np.dtype, op: str, stream: int) -> None:
        """Reduce, and give every rank `n` elements of the result."""
        self._call("reduceScatter", send, recv, n, self.library.number(dtype), self._op(op), stream)

    def broadcast(self, send: int, recv: int, n: int, dtype: np.dtype, root: int, stream: int) -> None:
        """What one rank sends, for all."""
        self._call("broadcast", send, recv, n, self.library.number(dtype), root, stream)

    def send(self, send: int, n: int, dtype: np.dtype, peer: int, stream: int) -> None:
        """Give `n` elements to a rank that takes them by `recv`."""
        self._call("send", send, n, self.library.number(dtype), peer, stream)

    def recv(self, recv: int, n: int, dtype: np.dtype, peer: int, stream: int) -> None:
        """Take `n` elements from a rank that gives them by `send`."""
        self._call("recv", recv, n, self.library.number(dtype), peer, stream)

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        """Calls of the block go together: those of one process, in any order between its GPUs."""
        call, module = self.library.call, self.library.module
        call("ncclGroupStart", module.groupStart)
        try:
            yield
        except BaseException:
            with contextlib.suppress(errors.CollectiveError):  # what failed inside is told
                call("ncclGroupEnd", module.groupEnd)
            raise
        call("ncclGroupEnd", module.groupEnd)

    def check(self) -> None:
        """Raise what NCCL has found since the calls have returned, such as a connection that broke."""
        self.library.call("a collective of NCCL that was on its way", self.handle.check_async_error)

    def abort(self) -> None:
        """Leave the group at once."""
        with self.library.cupy.cuda.Device(self.device):
            self.library.call("ncclCommAbort", self.handle.abort)

    def destroy(self) -> None:
        """Leave the group when what was started has ended."""
        with self.library.cupy.cuda.Device(self.device):
            self.library.call("ncclCommDestroy", self.handle.destroy)

    def _op(self, op: str) -> int:
        if op not in self.library.ops:
            raise errors.UnsupportedError(
                f"NCCL is asked for no reduction {op!r} here", expected=", ".join(self.library.ops)
            )
        return self.library.ops[op]

    def _call(self, name: str, *arguments: int) -> None:
        with self.library.cupy.cuda.Device(self.device):
            self.library.call(f"nccl{name[0].upper()}{name[1:]}", getattr(self.handle, name), *arguments)
