"""Contractions in which nothing is reused enough to be packed: vectors times matrices, integers, unusual
strides.

They are written as a kernel (products, summed over the contracted dimensions) and go through the emitter of
kernels, which chooses the contiguous dimension as the vector.
"""

from __future__ import annotations

import numpy as np

from infini.compiler.llvm import kernels
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import dtypes, ir
from infini.core.ir import ArrayType, Var
from infini.lax import contraction, elementwise, families, reduction, view
from infini.tile.program import Access, Kernel

COLUMNS = 128  # of the result per program


def emit(
    x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype, compute: np.dtype, target: Target
) -> tuple[TaskFunction, ...]:
    """One phase for a contraction of any kind, with `args` x, y, result."""
    return (kernels.emit_kernel(as_kernel(x, y, spec, dtype, compute), [x, y], target),)


def as_kernel(x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype, compute: np.dtype) -> Kernel:
    """A contraction as a kernel: one program per element of the result but for its last dimension, which is
    cut into tiles.

    The grid runs over blocks of the last dimension before it runs over the others, so neighbouring programs
    share a block of y.
    """
    a, b, out = contraction.parse_spec(spec)
    loops = families.loop_shape("dot", [x, y], [len(a), len(b)])
    loop_names = [f"loop{i}" for i in range(len(loops))]
    x_names = [*loop_names[len(loops) - (x.ndim - len(a)) :], *a]
    y_names = [*loop_names[len(loops) - (y.ndim - len(b)) :], *b]
    out_names = [*loop_names, *out]
    sizes = dict(zip(loop_names, loops, strict=True)) | dict(zip(a, x.shape[x.ndim - len(a) :], strict=True))
    sizes |= dict(zip(b, y.shape[y.ndim - len(b) :], strict=True))
    depth = [name for name in dict.fromkeys([*x_names, *y_names]) if name not in out_names]
    columns = out_names[-1:]
    grid_names = [*columns, *out_names[:-1]]
    block = {name: min(COLUMNS, max(1, sizes[name])) for name in columns}
    grid = tuple(-(-sizes[name] // block.get(name, 1)) for name in grid_names)

    def access(names: list[str], type_: ArrayType, tile_names: list[str]) -> Access:
        present = [
            name for name in tile_names if name in names and type_.shape[names.index(name)] == sizes[name]
        ]
        rows = [name if type_.shape[d] == sizes[name] else "" for d, name in enumerate(names)]
        has_edge = any(name in present and sizes[name] % block[name] for name in columns)
        return Access(
            tuple(block.get(name, sizes[name]) for name in present),
            tuple(tuple(block.get(g, 1) * (g == row) for g in grid_names) for row in rows),
            tuple(tuple(int(t == row) for t in present) for row in rows),
            (0,) * len(rows),
            0 if has_edge else None,
        )

    tile_names = [*depth, *columns]
    shape = tuple(block.get(name, sizes[name]) for name in tile_names)
    result = ArrayType(tuple(sizes[name] for name in out_names), dtype)
    loads = (access(x_names, x, tile_names), access(y_names, y, tile_names))
    store = access(out_names, result, columns)
    builder = ir.Builder()
    params = [Var(ArrayType(load.tile, t.dtype)) for load, t in zip(loads, (x, y), strict=True)]
    factors = []
    for param, names, type_ in zip(params, (x_names, y_names), (x, y), strict=True):
        present = [n for n in tile_names if n in names and type_.shape[names.index(n)] == sizes[n]]
        dims = tuple(tile_names.index(n) - len(tile_names) for n in present)
        wide = _convert(builder, param, compute)
        if len(dims) < len(shape):
            wide = builder.emit1(view.broadcast_in_dim_p, [wide], shape=shape, dims=dims)
        factors.append(wide)
    is_bool = compute == dtypes.bool_
    total = builder.emit1(elementwise.and_p if is_bool else elementwise.mul_p, factors)
    if depth:
        axes = tuple(range(-len(shape), -len(columns)))
        total = builder.emit1(
            reduction.reduce_max_p if is_bool else reduction.reduce_sum_p, [total], axes=axes
        )
    ids = [Var(ArrayType((), dtypes.int32)) for _ in grid]
    body = builder.build([*params, *ids], [_convert(builder, total, dtype)])
    return Kernel(grid, loads, (store,), (result,), body, name="dot")


def _convert(builder: ir.Builder, x: Var, dtype: np.dtype) -> Var:
    if x.type.dtype == dtype:
        return x
    return builder.emit1(elementwise.convert_element_type_p, [x], new_dtype=dtype)
