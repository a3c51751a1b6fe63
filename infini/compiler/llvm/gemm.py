"""Contractions as native code: blocked matrix products, and streaming loops where nothing would be reused.

The blocked product follows K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
(ACM TOMS, 2008): panels of B packed once, blocks of A copied by each task, a register block inside. A task
computes a whole tile of the result over all of k, so results do not depend on the number of threads. 16-bit
floats are converted while they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import blocking, contraction, few_rows, pairs, product_tasks, skinny, streaming
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import dtypes
from infini.core.ir import ArrayType

MIN_ROWS = 4  # with fewer rows B is used too seldom to be packed


def emit_contraction(
    x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, target: Target
) -> tuple[TaskFunction, ...]:
    """Native code of the operation `dot`.

    Args:
        x: type of the left operand.
        y: type of the right operand.
        spec: letters of both operands and of the result; dimensions left of them are loops and broadcast.
        dtype: dtype of the result.
        target: processor to make code for.

    Returns:
        Phases to run one after the other, all with `args` x, y, result and, when any has scratch_bytes,
            scratch.

    Raises:
        LoweringError: the emitter does not compute with a dtype.
    """
    plan = blocked(x, y, spec=spec, dtype=dtype, target=target)
    if plan is not None:
        return product_tasks.emit([_alone(plan)], 3)
    problem = contraction.analyse(x, y, spec)
    first, second = (y.dtype, x.dtype) if problem.is_swapped else (x.dtype, y.dtype)
    if _is_product_of_integers(problem, first, second, dtype):
        return product_tasks.emit([_alone(_plan(problem, first, second, dtype, target))], 3)
    compute = blocking.compute_dtype(dtype)
    if not _is_matrix(problem, compute):
        return streaming.emit(x, y, spec, dtype, compute, target)
    if skinny.is_suited(problem, second):
        return skinny.emit(problem, first, second, dtype, compute, target)
    if few_rows.is_suited(problem, first, second):
        return few_rows.emit(problem, first, second, dtype, compute, target)
    return streaming.emit(x, y, spec, dtype, compute, target)


def blocked(x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, target: Target) -> Plan | None:
    """The blocks of a contraction that is computed as a blocked product; None when it is not."""
    problem = contraction.analyse(x, y, spec)
    first, second = (y.dtype, x.dtype) if problem.is_swapped else (x.dtype, y.dtype)
    if not _is_matrix(problem, blocking.compute_dtype(dtype)):
        return None
    if skinny.is_suited(problem, second) or few_rows.is_suited(problem, first, second):
        return None
    if problem.m.size < MIN_ROWS or problem.n.size < MIN_ROWS:
        return None
    return _plan(problem, first, second, dtype, target)


def _is_matrix(problem: contraction.Problem, compute: np.dtype) -> bool:
    """Whether a contraction is products of matrices of floats, and rows of the result are in order."""
    is_dense = problem.n.out == 1 or problem.n.size == 1
    return problem.flops > 0 and dtypes.is_float(compute) and is_dense and len(problem.k) <= 1


def _is_product_of_integers(
    problem: contraction.Problem, x_dtype: np.dtype, y_dtype: np.dtype, dtype: np.dtype
) -> bool:
    """Whether a contraction is products of matrices of integers that are worth packing."""
    return (
        problem.flops > 0
        and {x_dtype, y_dtype, dtype} <= dtypes.INTEGERS
        and dtype.itemsize >= 4
        and (problem.n.out == 1 or problem.n.size == 1)
        and len(problem.k) <= 1
        and min(problem.m.size, problem.n.size) >= MIN_ROWS
    )


def _alone(plan: Plan) -> product_tasks.Product:
    """A product whose task functions have x, y and result as arguments."""
    x, y = (1, 0) if plan.problem.is_swapped else (0, 1)
    return product_tasks.Product(plan, x, y, 2)


def _plan(
    problem: contraction.Problem,
    x_dtype: np.dtype,
    y_dtype: np.dtype,
    dtype: np.dtype,
    target: Target,
    panel_depth: int = 0,
) -> Plan:
    """The blocks of a product, of pairs where the processor multiplies such."""
    pair = None if panel_depth % 2 else pairs.paired(problem, x_dtype, y_dtype, dtype, target)
    if pair is None:
        return blocking.make_plan(problem, x_dtype, y_dtype, dtype, target, panel_depth)
    return blocking.make_plan(
        pair.problem, pair.x_dtype, pair.y_dtype, dtype, target, panel_depth // 2, pairs=pair
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """An operand whose memory is in panels: operand 0 or 1, and the rows and columns of a block."""

    operand: int
    depth: int
    width: int


def emit_packed(
    x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, panels: Panels, target: Target
) -> tuple[TaskFunction, ...]:
    """As `emit_contraction`, with one operand in panels that `takes_panels` accepts: nothing is packed."""
    plan = blocked_panels(x, y, spec=spec, dtype=dtype, panels=panels, target=target)
    return product_tasks.emit([_alone(plan)], 3)


def blocked_panels(
    x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, panels: Panels, target: Target
) -> Plan:
    """The blocks of a product with one operand in panels."""
    problem = contraction.analyse(x, y, spec)
    first, second = (y.dtype, x.dtype) if problem.is_swapped else (x.dtype, y.dtype)
    return _plan(problem, first, second, dtype, target, panels.depth)


def takes_panels(
    x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, panels: Panels, target: Target
) -> bool:
    """Whether the blocked product can read an operand, of this logical type, in panels: it is a matrix [K, N]
    or a stack of them, and the one that the product packs.
    """
    problem = contraction.analyse(x, y, spec)
    packed, other = (x, y) if panels.operand == 0 else (y, x)
    if not is_packed_kind(problem, dtype, packed.dtype, other.dtype):
        return False
    plan = _plan(problem, other.dtype, packed.dtype, dtype, target, panels.depth)
    (k,), n = problem.k, problem.n
    is_matrix = packed.shape[-2:] == (k.size, n.size) and (k.y, n.y) == (n.size, 1)
    is_stack = [d.y for d in problem.batch if d.y] == [k.size * n.size] * (packed.ndim - 2)
    return (
        problem.is_swapped == (panels.operand == 0)
        and packed.ndim <= 3
        and is_matrix
        and is_stack
        and panels.width == plan.panel
        and (panels.depth >= k.size or plan.panel_depth % plan.depth == 0)
    )


def is_packed_kind(problem: contraction.Problem, dtype: np.dtype, packed: np.dtype, other: np.dtype) -> bool:
    """Whether a product, with these operands and this result, is one that the blocked product computes."""
    compute = blocking.compute_dtype(dtype)
    return (
        problem.flops > 0
        and dtypes.is_float(compute)
        and all(dtypes.is_float(d) and d.itemsize >= 2 for d in (packed, other))
        and (problem.n.out == 1 or problem.n.size == 1)
        and len(problem.k) == 1
    )
