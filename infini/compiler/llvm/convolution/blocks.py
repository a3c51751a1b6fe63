"""How a product of patches and kernel is cut into blocks, from its sizes alone: tiles, blocks of k, tasks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import blocking, microkernel, pairs
from infini.compiler.llvm.convolution import partial
from infini.compiler.llvm.convolution.problem import Axis, Problem, joined_run, without_ones
from infini.compiler.llvm.target import Target
from infini.core import dtypes

DEPTH = 256  # of a block of k whose rows are runs of the image
PIXELS = 128  # of a block of k whose columns are runs of the image
ROWS = 96  # of a tile
WIDE_ROWS = 160  # of a tile with several places of the result
COLUMNS = 512  # of a tile
LOCAL_COLUMNS = 256  # of a tile that packs its part of the kernel
TASKS = 16  # so that several threads get equal shares
TASK_FLOPS = 2e6
MOST_BLOCKS = 4  # of k, and places of the window, that are written out one by one
MOST_PLACES = 32
MOST_PARTS_SIZE = 1 << 20  # elements of all parts of sums


@dataclass(frozen=True, slots=True)
class Plan:
    """Blocking of one problem.

    Args:
        problem: the convolution.
        has_runs_of_k: whether runs of the image are along k.
        row_axes: axes that number the runs of a block: of m when runs are along k, else of k.
        place_axes: the other axes of runs: of k, or of m.
        length: elements of a run.
        run_other: stride of the elements of a run in the kernel, or in the result.
        piece: elements of a run that are copied at once.
        per: places of a block of k, or pixels of it.
        place_block: places of the result that a tile has, when runs are along m.
        row_block: rows of a tile.
        column_block: columns of a tile.
        rows: of a register block.
        vectors: of a register block.
        lanes: of a register.
        compute: dtype of products.
        packs: whether the kernel is packed in a phase of its own, not by each tile.
        parts: of k, which tasks of their own add up.
        is_paired: whether neighbours along k are pairs of bfloat16 that are multiplied at once.
    """

    problem: Problem
    has_runs_of_k: bool
    row_axes: tuple[Axis, ...]
    place_axes: tuple[Axis, ...]
    length: int
    run_other: int
    piece: int
    per: int
    place_block: int
    row_block: int
    column_block: int
    rows: int
    vectors: int
    lanes: int
    compute: np.dtype
    packs: bool
    parts: int = 1
    is_paired: bool = False

    @property
    def each(self) -> int:
        """Elements along k that are one element of the copies: two of a pair."""
        return 2 if self.is_paired else 1

    @property
    def copied(self) -> np.dtype:
        """Dtype of an element of the copies."""
        return dtypes.int32 if self.is_paired else self.compute

    @property
    def num_pieces(self) -> int:
        """Pieces of a run."""
        return -(-self.length // self.piece)

    @property
    def num_places(self) -> int:
        """Runs that start at other places of the window, or of the result."""
        return _count(self.place_axes)

    @property
    def panel(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.lanes

    @property
    def num_panels(self) -> int:
        """Panels of the kernel."""
        return -(-self.problem.n[0] // self.panel)

    @property
    def num_column_blocks(self) -> int:
        """Tiles along n."""
        return -(-self.num_panels * self.panel // self.column_block)

    @property
    def num_row_blocks(self) -> int:
        """Tiles along m."""
        if self.has_runs_of_k:
            return -(-self.problem.rows // self.row_block)
        return self.num_places // self.place_block * self.num_pieces

    @property
    def num_blocks(self) -> int:
        """Blocks of k."""
        if self.has_runs_of_k:
            return -(-self.num_places // self.per) * self.num_pieces
        return -(-self.problem.depth // self.per)

    @property
    def block_depth(self) -> int:
        """Depth of a block of k, the last one aside."""
        return self.per * self.piece if self.has_runs_of_k else self.per

    @property
    def copied_row(self) -> int:
        """Elements from one run of the copy to the next; whole vectors are written."""
        width = self.block_depth if self.has_runs_of_k else self.row_block
        # Not a power of two, so that runs do not share cache sets.
        return -(-width // 16) * 16 + 16

    @property
    def copied_size(self) -> int:
        """Elements of the copy that a tile needs."""
        return (self.row_block if self.has_runs_of_k else self.per) * self.copied_row

    @property
    def is_written_out(self) -> bool:
        """Whether the code has every place of the window by itself, so that it is known where each lies."""
        return self.has_runs_of_k and self.num_blocks <= MOST_BLOCKS and self.num_places <= MOST_PLACES

    @property
    def num_tasks(self) -> int:
        """Tiles of all groups."""
        return self.problem.num_groups * self.num_row_blocks * self.num_column_blocks * self.parts

    @property
    def row_stride(self) -> int | None:
        """Elements from row to row of a tile in the result, where all rows lie equally."""
        return stride_of(without_ones(self.problem.m)) if self.has_runs_of_k else self.run_other

    @property
    def is_staged(self) -> bool:
        """Whether the sums of a tile are kept aside until they are complete."""
        rounds = self.parts == 1 and self.problem.out_dtype != self.compute and self.num_blocks > 1
        return rounds or self.row_stride is None


def _count(axes: Sequence[Axis]) -> int:
    return math.prod(a.size for a in axes)


def stride_of(axes: Sequence[Axis]) -> int | None:
    """The stride of some axes as one in their other array."""
    for outer, inner in itertools.pairwise(axes):
        if outer.other != inner.size * inner.other:
            return None
    return axes[-1].other if axes else 0


def make_plan(problem: Problem, target: Target) -> Plan | None:
    """Choose the blocks; None when the image is not contiguous along a letter, or the result not along n."""
    size, _, out = problem.n
    if size == 1 or out != 1:
        return None
    compute = blocking.compute_dtype(problem.out_dtype)
    k_rest, k_length, k_other = joined_run(problem.k, problem)
    m_rest, m_length, m_other = joined_run(problem.m, problem)
    k_letter = any(a.x == 1 and a.digit < 0 for a in without_ones(problem.k))
    m_letter = any(a.x == 1 and a.digit < 0 for a in without_ones(problem.m))
    if not k_letter and not m_letter:
        return None
    height = problem.rows if k_letter else m_length
    rows, vectors, lanes = microkernel.block_size(target, height, compute)
    if size <= lanes:  # a register block of twice the rows uses as many registers
        rows, vectors = _even(height, 2 * microkernel.block_size(target, 1 << 20, compute)[0], 1), 1
    panel = vectors * lanes
    padded = -(-size // panel) * panel
    wanted = min(TASKS, problem.flops / TASK_FLOPS)
    row_axes, place_block = without_ones(problem.m), 1
    if k_letter:
        piece = k_length if k_length <= DEPTH else _even(k_length, DEPTH, lanes)
        per = _even(_count(k_rest), max(1, DEPTH // k_length), 1) if piece == k_length else 1
        row_block = _even(problem.rows, ROWS, rows)
        places, length, other = k_rest, k_length, k_other
    else:
        row_axes = tuple(sorted(without_ones(problem.k), key=lambda a: -a.other))
        if stride_of(row_axes) is None:
            return None
        piece = m_length if m_length <= ROWS else _even(m_length, ROWS, rows)
        per = _even(problem.depth, PIXELS, microkernel.UNROLL)
        places, length, other = m_rest, m_length, m_other
        is_even = piece == m_length and stride_of((*places, Axis(m_length, 1, m_other))) is not None
        place_block = _divisor(_count(places), WIDE_ROWS // m_length) if is_even else 1
        row_block = place_block * piece
        if size > lanes:
            rows = microkernel.block_size(target, row_block, compute)[0]
    column_block = _even(padded, COLUMNS, panel)
    plan = Plan(
        problem, k_letter, row_axes, places, length, other, piece, per, place_block, row_block, column_block,
        rows, vectors, lanes, compute, packs=True,
    )  # fmt: skip
    plan = _with_tasks(dataclasses.replace(plan, is_paired=_is_paired(plan, target)), wanted, padded)
    if plan.num_row_blocks == 1:
        plan = dataclasses.replace(
            plan, packs=False, column_block=min(plan.column_block, _even(padded, LOCAL_COLUMNS, panel))
        )
    return plan


def _is_paired(plan: Plan, target: Target) -> bool:
    """Whether the processor multiplies pairs of these dtypes, and no pair begins in one run and ends in the
    next.
    """
    p = plan.problem
    if not pairs.is_paired_kind(p.x_dtype, p.w_dtype, target) or plan.compute != dtypes.float32:
        return False
    if not plan.has_runs_of_k:
        return p.depth % 2 == 0 and plan.per % 2 == 0 and p.n[1] == 1
    is_view = plan.run_other == 1 and not any(
        n % 2 for n in (p.w_first, p.n[1], *(g.w for g in p.groups), *(a.other for a in plan.place_axes))
    )
    return plan.length % 2 == 0 and plan.piece % 2 == 0 and (p.n[1] == 1 or is_view)


def _with_tasks(plan: Plan, wanted: float, padded: int) -> Plan:
    """The plan in parts of k, or in more, smaller tiles, where there would be few tasks."""
    size = partial.size_of(plan.problem)
    if not plan.has_runs_of_k and plan.num_blocks > 1 and partial.is_whole(plan.problem):
        parts = min(math.ceil(wanted / plan.num_tasks), plan.num_blocks, MOST_PARTS_SIZE // size)
        if parts > 1:
            return dataclasses.replace(plan, parts=math.ceil(plan.num_blocks / (plan.num_blocks // parts)))
    while plan.num_tasks < wanted and plan.column_block >= 8 * plan.panel:
        plan = dataclasses.replace(plan, column_block=_even(padded, plan.column_block // 2, plan.panel))
    while plan.has_runs_of_k and plan.num_tasks < wanted and plan.row_block >= 4 * plan.rows:
        plan = dataclasses.replace(plan, row_block=_even(plan.problem.rows, plan.row_block // 2, plan.rows))
    # Copies of narrow tiles cost more than threads gain by equal shares.
    while plan.num_tasks < wanted / 2 and plan.place_block > 1:
        fewer = _divisor(plan.num_places, plan.place_block - 1)
        plan = dataclasses.replace(plan, place_block=fewer, row_block=fewer * plan.piece)
    while plan.num_tasks < wanted / 2 and plan.column_block >= 2 * plan.panel:
        plan = dataclasses.replace(plan, column_block=_even(padded, plan.column_block // 2, plan.panel))
    return plan


def _divisor(size: int, largest: int) -> int:
    """The largest divisor of `size` up to `largest`, or 1."""
    return max((n for n in range(1, largest + 1) if size % n == 0), default=1)


def _even(size: int, largest: int, unit: int) -> int:
    """A block of at most about `largest`, a multiple of `unit`, that cuts `size` into equal parts."""
    part = math.ceil(size / math.ceil(size / max(largest, unit)))
    return math.ceil(part / unit) * unit
