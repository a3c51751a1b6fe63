"""ggml as a peer: one matrix product of its CPU backend, through ctypes, from a library whose path the user
gives.

A product is a graph of its own over one weight, as llama.cpp has one node per layer. `repacked` asks for the
buffer type in which ggml rearranges some weights for its processor when it loads them, as llama.cpp does by
default. References: https://github.com/ggml-org/ggml, `ggml.h`, `ggml-backend.h`, `ggml-cpu.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

TYPES: Final = {
    "f32": 0, "f16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "bf16": 30,
}  # fmt: skip
_REPACK: Final = b"CPU_REPACK"


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The functions of one build.

    Args:
        library: path of `libggml.so`; the libraries that it needs lie beside it.
        num_threads: threads that compute.
    """

    def __init__(self, library: Path, num_threads: int) -> None:
        folder = library.resolve().parent
        for name in ("base", "cpu"):
            for beside in folder.glob(f"libggml-{name}.so"):
                ctypes.CDLL(str(beside), mode=ctypes.RTLD_GLOBAL)
        self._handles = [ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL), ctypes.CDLL(None)]
        self._silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
            lambda level, text, data: None
        )
        self._call("ggml_log_set", self._silent, None, restype=None)
        self.backend = self._call("ggml_backend_cpu_init")
        self._call("ggml_backend_cpu_set_n_threads", self.backend, ctypes.c_int(num_threads), restype=None)
        self.num_threads = num_threads

    def product(
        self, kind: str, rows: np.ndarray, x: np.ndarray, *, repacked: bool = False
    ) -> Product | None:
        """`x @ w.T` for a weight in bytes (N, bytes of a row); None where ggml does not rearrange this type.

        Args:
            kind: name of the type, such as `Q4_0`.
            rows: the bytes of the weight.
            x: float32 (M, K).
            repacked: whether the weight is rearranged for the processor.
        """
        return Product.made(self, kind, rows, x, repacked=repacked)

    def _call(self, name: str, *arguments: Any, restype: Any = ctypes.c_void_p) -> Any:  # Any: of ctypes
        function = next(getattr(h, name) for h in self._handles if hasattr(h, name))
        function.restype = restype
        wrapped = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments]
        return function(*wrapped)

    def context(self) -> int:
        """Memory for tensors without data."""
        function = next(h.ggml_init for h in self._handles if hasattr(h, "ggml_init"))
        function.restype, function.argtypes = ctypes.c_void_p, [_InitParams]
        found: int = function(_InitParams(1 << 20, None, True))
        return found

    def repacking(self) -> int | None:
        """The buffer type that rearranges weights, where this build has one."""
        device = self._call("ggml_backend_get_device", self.backend)
        registry = self._call("ggml_backend_dev_backend_reg", device)
        address = self._call(
            "ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts"
        )
        if not address:
            return None
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
        for i in range(8):
            if not listed[i]:
                return None
            if self._call("ggml_backend_buft_name", listed[i], restype=ctypes.c_char_p) == _REPACK:
                return int(listed[i])
        return None


class Product:
    """A graph with one matrix product. Made by `Ggml.product`."""

    def __init__(self, library: Ggml, graph: int, out: int, shape: tuple[int, int]) -> None:
        self.library, self.graph, self.out, self.shape = library, graph, out, shape

    @classmethod
    def made(
        cls, library: Ggml, kind: str, rows: np.ndarray, x: np.ndarray, *, repacked: bool
    ) -> Product | None:
        """See `Ggml.product`."""
        call = library._call
        m, k = x.shape
        weights, others, graphs = library.context(), library.context(), library.context()
        w = call("ggml_new_tensor_2d", weights, ctypes.c_int(TYPES[kind]), *_sizes(k, rows.shape[0]))
        given = call("ggml_new_tensor_2d", others, ctypes.c_int(0), *_sizes(k, m))
        out = call("ggml_mul_mat", others, w, given)
        if repacked:
            kind_of_buffer = library.repacking()
            if kind_of_buffer is None:
                return None
            call("ggml_backend_alloc_ctx_tensors_from_buft", weights, kind_of_buffer)
            # Types that are not rearranged have no traits there, and cannot be set.
            extra = ctypes.c_void_p.from_address(w + _offset_of_extra(call)).value
            if not extra:
                return None
        else:
            call("ggml_backend_alloc_ctx_tensors", weights, library.backend)
        call("ggml_backend_alloc_ctx_tensors", others, library.backend)
        graph = call("ggml_new_graph", graphs)
        call("ggml_build_forward_expand", graph, out, restype=None)
        for tensor, data in ((w, rows), (given, x.astype(np.float32))):
            whole = np.ascontiguousarray(data)
            call(
                "ggml_backend_tensor_set", tensor, whole.ctypes.data, *_lengths(0, whole.nbytes), restype=None
            )
        return cls(library, graph, out, (m, rows.shape[0]))

    def run(self) -> None:
        """Compute."""
        self.library._call("ggml_backend_graph_compute", self.library.backend, self.graph)

    def result(self) -> np.ndarray:
        """What was computed, float32 (M, N)."""
        found = np.empty(self.shape, np.float32)
        self.library._call(
            "ggml_backend_tensor_get", self.out, found.ctypes.data, *_lengths(0, found.nbytes), restype=None
        )
        return found


def _sizes(*values: int) -> Sequence[ctypes.c_int64]:
    return [ctypes.c_int64(v) for v in values]


def _lengths(*values: int) -> Sequence[ctypes.c_size_t]:
    return [ctypes.c_size_t(v) for v in values]


def _offset_of_extra(call: Any) -> int:  # Any: a function of ctypes
    """Where a tensor says how it was rearranged: at its end, before 8 bytes of padding."""
    return int(call("ggml_tensor_overhead", restype=ctypes.c_size_t)) - _OBJECT_BYTES - 16


_OBJECT_BYTES: Final = 32  # of what a context keeps for each tensor
