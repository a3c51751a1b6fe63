"""Kernels for the tests of the LLVM emitter, and the comparison of native code with the NumPy oracle."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.backends.cpu import objects
from infini.backends.reference.interpreter import evaluate
from infini.compiler.llvm import gemm, kernels
from infini.compiler.llvm.target import Target, host_target
from infini.compiler.llvm.task import TaskFunction
from infini.core import config, dtypes, ir, trace
from infini.core.ir import ArrayType
from infini.lax import contraction
from infini.tile import program as kernel_
from infini.tile.program import Access, Kernel

GUARD = 64  # bytes before and after each result that nothing may write


def types(*arrays: np.ndarray) -> list[ArrayType]:
    """Types of arrays."""
    return [ArrayType(a.shape, a.dtype) for a in arrays]


def body_of(function: Callable[..., Any], tiles: Sequence[ArrayType], grid_rank: int) -> ir.Program:
    """The program of a function of tiles and, if it takes them, program ids."""
    ids = [ArrayType((), dtypes.int32)] * grid_rank

    def run(*args: Any) -> Sequence[Any]:
        takes_ids = function.__code__.co_argcount > len(tiles) if hasattr(function, "__code__") else False
        found = function(*args) if takes_ids else function(*args[: len(tiles)])
        return found if isinstance(found, tuple) else (found,)

    return trace.stage(run, [*tiles, *ids], name="body").program


def on_tiles(function: Callable[..., Any], *tiles: ArrayType) -> Kernel:
    """The kernel of one program that applies `function` to whole arrays as tiles."""
    body = body_of(function, tiles, 1)
    loads = tuple(Access.whole(t.shape, 1) for t in tiles)
    stores = tuple(Access.whole(t.shape, 1) for t in body.out_types)
    return Kernel((1,), loads, stores, body.out_types, body)


def blocks(function: Callable[..., Any], size: int, block: int, *dtypes_: np.dtype) -> Kernel:
    """The pointwise kernel over vectors of `size` elements in tiles of `block`; the last tile may be cut."""
    tiles = [ArrayType((block,), d) for d in dtypes_]
    body = body_of(function, tiles, 1)
    access = Access((block,), ((block,),), ((1,),), (0,), 0 if size % block else None)
    outputs = tuple(ArrayType((size,), t.dtype) for t in body.out_types)
    return Kernel((-(-size // block),), (access,) * len(tiles), (access,) * len(outputs), outputs, body)


def rows(function: Callable[..., Any], num_rows: int, *columns: ArrayType) -> Kernel:
    """The kernel of one program per row; operands of one dimension are shared by all rows."""
    tiles = [ArrayType(c.shape[-1:], c.dtype) for c in columns]
    body = body_of(function, tiles, 1)

    def of_row(shape: ir.Shape) -> Access:
        if len(shape) == 1:
            return Access((), ((1,),), ((),), (0,))
        return Access((shape[1],), ((1,), (0,)), ((0,), (1,)), (0, 0))

    loads = tuple(of_row(c.shape) if c.ndim == 2 else Access.whole(c.shape, 1) for c in columns)
    outputs = tuple(ArrayType((num_rows, *t.shape), t.dtype) for t in body.out_types)
    return Kernel((num_rows,), loads, tuple(of_row(t.shape) for t in outputs), outputs, body)


def load(phases: Sequence[TaskFunction], target: Target | None = None) -> list[int]:
    """Addresses of task functions, compiled together."""
    target = target or host_target()
    declares = sorted(frozenset[str]().union(*(p.declares for p in phases)))
    texts = [p.text for p in {p.name: p for p in phases}.values()]
    text = "\n".join([f'target triple = "{target.triple}"', *declares, *texts])
    with config.config(no_cache=True):
        library = objects.load([objects.compile_module(text, target)], [p.name for p in phases])
    return [library[p.name] for p in phases]


def guarded(type_: ArrayType) -> tuple[np.ndarray, np.ndarray]:
    """Memory for a result, and the whole block with guards around it."""
    block = np.full(type_.nbytes + 2 * GUARD, 0xA5, np.uint8)
    return block[GUARD : GUARD + type_.nbytes].view(type_.dtype).reshape(type_.shape), block


def run_phases(
    phases: Sequence[TaskFunction],
    operands: Sequence[np.ndarray],
    outputs: Sequence[ArrayType],
    target: Target | None = None,
) -> list[np.ndarray]:
    """Run phases on this thread, and check that nothing outside results and scratch was written."""
    found = [guarded(t) for t in outputs]
    scratch = ArrayType((max((p.scratch_bytes for p in phases), default=0) + 64,), dtypes.uint8)
    found.append(guarded(scratch))
    operands = [np.ascontiguousarray(x) for x in operands]
    addresses = [x.ctypes.data for x in (*operands, *(out for out, _ in found))]
    addresses[-1] = -(-addresses[-1] // 64) * 64
    args = (ctypes.c_void_p * len(addresses))(*addresses)
    for phase, address in zip(phases, load(phases, target), strict=True):
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)
        for task in range(phase.num_tasks):
            function(ctypes.addressof(args), task)
    for out, block in found:
        assert (block[:GUARD] == 0xA5).all() and (block[GUARD + out.nbytes :] == 0xA5).all(), "wrote outside"
    return [out for out, _ in found[:-1]]


def run(kernel: Kernel, *operands: np.ndarray) -> list[np.ndarray]:
    """Results of a kernel by native code."""
    phase = kernels.emit_kernel(kernel, types(*operands), host_target())
    return run_phases([phase], operands, kernel.outputs)


def check(kernel: Kernel, *operands: np.ndarray, tolerance: float = 0.0) -> None:
    """Native code gives what NumPy gives.

    Args:
        kernel: the kernel.
        *operands: its operands.
        tolerance: largest difference, relative to 1 or to the value, whichever is larger.
    """
    with np.errstate(all="ignore"):
        expected = kernel_.interpret(kernel, operands, evaluate)
    for found, wanted in zip(run(kernel, *operands), expected, strict=True):
        close(found, wanted, tolerance)


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 0.0) -> None:
    """Equal, or close relative to 1 or the value; NaN equals NaN."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if wanted.dtype == dtypes.bool_ or (tolerance == 0.0 and wanted.dtype in dtypes.INTEGERS):
        np.testing.assert_array_equal(found, wanted)
        return
    np.testing.assert_allclose(
        found.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def contract(spec: str, x: np.ndarray, y: np.ndarray, dtype: Any = None) -> np.ndarray:
    """A contraction by native code."""
    dtype = np.dtype(dtype or x.dtype)
    phases = gemm.emit_contraction(*types(x, y), spec=spec, dtype=dtype, target=host_target())
    out = ir.infer_types(contraction.dot_p, types(x, y), {"spec": spec, "dtype": dtype})
    return run_phases(phases, [x, y], out)[0]
