"""How a matrix product is cut into blocks, from its sizes alone: register blocks, panels, tiles, tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import microkernel
from infini.compiler.llvm.contraction import Dimension, Problem
from infini.compiler.llvm.pairs import Paired
from infini.compiler.llvm.target import Target
from infini.core import dtypes

# Rows of A per task that packs the columns of B that it needs by itself, depth block by depth block, so that
# they stay in its cache: the more rows, the seldomer a column is packed. Copies of A and sums take stack.
TILE_ROWS = 256
TILE_ROWS_OF_PANELS = 128  # when A is copied in panels: every tile beside a tile copies it again
TILE_ROWS_OF_COPIES = 512  # when A is copied, and sums are stored in the result
TILE_ROWS_IN_PLACE = 1024  # when nothing is copied but B
TILE_DEPTH = 64  # rows of B that it packs at once: as many as are read while those before are used
TILE_RUN_BYTES = 1024  # the same of a B in which k is contiguous: reads come faster in long runs
FEW_ROWS = 96  # of A
TILE_DEPTH_OF_MANY = 128  # rows of B that are packed at once with more than FEW_ROWS rows of A
MIN_COLUMN_TILES = 2  # with fewer tasks B is packed by all of them together
DEPTH_BLOCK = 256  # rows of a packed panel, so that it stays in the first-level cache
ROW_BLOCK = 128  # rows of A per task
COLUMN_BLOCK = 512  # columns per task, so that DEPTH_BLOCK rows of B stay in the second-level cache
LOCAL_BYTES = 128 << 10  # largest B that a task packs on its stack
LOCAL_FLOPS = 2e7  # largest product that is one task
SMALL_FLOPS = 1.5e6  # a single product below this is one task
TASK_FLOPS = 2e6
STAGED_COLUMNS = 256  # per task when the sums of a tile are kept aside
FAR_BYTES = 1 << 20  # of B from which on it is not expected in a cache
DEPTH_UNIT = 16  # depth blocks are a multiple of it, so that B is packed in whole squares
DIRECT_DEPTH = 2048  # longest rows of A that are read where they are
MIN_COLUMNS = 4  # panels of a task
LEAST_COLUMNS = 2  # the same of a task with so few rows that it has all of them, and packs
MIN_TILES = 8  # so that several threads get equal shares; with more of them copies cost more
FEW_TILES = 4  # below it tiles that pack have fewer rows than pays


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """Dtype of products and sums for a result of `dtype`."""
    return dtypes.float32 if dtypes.is_float(dtype) and dtype.itemsize <= 2 else dtype


@dataclass(frozen=True, slots=True)
class Plan:
    """Blocking of a product: sizes of blocks, how A is laid out, and who packs B."""

    problem: Problem
    x_dtype: np.dtype
    y_dtype: np.dtype
    out_dtype: np.dtype
    compute: np.dtype
    rows: int  # of a register block
    vectors: int
    lanes: int
    depth: int  # of a packed panel
    row_block: int
    column_block: int
    a_layout: str  # "direct", "rows" or "panels"
    # Who packs B: an own "phase", each "task" a whole matrix, each "tile" what it needs, or nobody: it comes
    # "ready", in panels of `panel_depth` rows.
    packs: str
    batches_per_task: int
    panel_depth: int = 0
    pairs: Paired | None = None  # when elements are pairs of bfloat16

    @property
    def copied(self) -> np.dtype:
        """Dtype of the copies of operands."""
        return dtypes.int32 if self.pairs is not None else self.compute

    @property
    def panels(self) -> np.dtype:
        """Dtype of an element of the panels of B."""
        return self.y_dtype if self.packs == "ready" and self.pairs is None else self.copied

    @property
    def panel(self) -> int:
        """Columns of a packed panel."""
        return self.vectors * self.lanes

    @property
    def num_panels(self) -> int:
        """Panels of one matrix."""
        return -(-self.problem.n.size // self.panel)

    @property
    def k(self) -> Dimension:
        """The contracted dimension."""
        return self.problem.k[0]

    @property
    def num_row_blocks(self) -> int:
        """Blocks along m."""
        return -(-self.problem.m.size // self.row_block)

    @property
    def num_column_blocks(self) -> int:
        """Blocks along n."""
        return -(-self.problem.n.size // self.column_block)

    @property
    def packed_size(self) -> int:
        """Elements of one packed matrix."""
        rows = self.k.size
        if self.packs == "ready":
            rows = -(-rows // self.panel_depth) * self.panel_depth
        return rows * self.num_panels * self.panel

    @property
    def y_batch(self) -> tuple[Dimension, ...]:
        """Batch dimensions along which B changes."""
        return tuple(d for d in self.problem.batch if d.y)

    @property
    def copied_row(self) -> int:
        """Elements of a row of the copy of A: of a row of A, or of a column when it is copied in panels."""
        if self.a_layout == "panels":
            return -(-self.rows // self.lanes) * self.lanes
        # Not a power of two, so that rows do not share cache sets.
        return -(-self.depth // 16) * 16 + 16

    @property
    def copied_size(self) -> int:
        """Elements of the copy of the rows of A that a tile needs."""
        if self.a_layout == "panels":
            return self.row_block // self.rows * self.depth * self.copied_row
        return self.row_block * self.copied_row

    @property
    def is_staged(self) -> bool:
        """Whether sums over several depth blocks are kept aside, because the result cannot hold them."""
        return self.out_dtype != self.compute and self.num_depth_blocks > 1

    @property
    def out_row(self) -> int:
        """Elements from row to row of where the register blocks store."""
        return self.column_block if self.is_staged else self.problem.m.out

    @property
    def asks_ahead(self) -> bool:
        """Whether register blocks ask for what the tile packs next: B comes from memory and is used once."""
        nbytes = self.k.size * self.problem.n.size * self.y_dtype.itemsize
        return self.packs == "tile" and self.num_depth_blocks > 1 and nbytes >= FAR_BYTES

    @property
    def num_packed(self) -> int:
        """Different matrices B."""
        return int(np.prod([d.size for d in self.y_batch], dtype=np.int64))

    @property
    def num_depth_blocks(self) -> int:
        """Blocks along k."""
        return -(-self.k.size // self.depth)


def make_plan(
    problem: Problem,
    x_dtype: np.dtype,
    y_dtype: np.dtype,
    out_dtype: np.dtype,
    target: Target,
    panel_depth: int = 0,
    *,
    pairs: Paired | None = None,
) -> Plan:
    """Choose the blocks of a product; B may come packed, in panels of `panel_depth` rows. With `pairs` the
    problem and dtypes are those of it.
    """
    compute = compute_dtype(out_dtype)
    m, (k,) = problem.m.size, problem.k
    rows, vectors, lanes = microkernel.block_size(target, m, compute)
    panel = vectors * lanes
    padded = -(-problem.n.size // panel) * panel
    one = problem.flops / problem.num_batches
    is_conflicting = problem.m.x * compute.itemsize % 2048 == 0  # rows share the sets of the cache
    is_direct = (
        x_dtype == (dtypes.int32 if pairs else compute)
        and k.x == 1
        and k.size <= DIRECT_DEPTH
        and not is_conflicting
    )
    a_layout = "direct" if is_direct else "rows" if k.x == 1 else "panels"
    tile_rows = TILE_ROWS
    if out_dtype == compute and compute.itemsize <= 4 and a_layout != "panels":
        tile_rows = TILE_ROWS_IN_PLACE if is_direct else TILE_ROWS_OF_COPIES
    has_tiles = m <= (TILE_ROWS_OF_PANELS if a_layout == "panels" else TILE_ROWS) or tile_rows > TILE_ROWS
    column_tiles = MIN_COLUMN_TILES if m <= tile_rows else 2 * MIN_COLUMN_TILES
    has_tiles = has_tiles and padded >= column_tiles * MIN_COLUMNS * panel
    packs = "tile" if has_tiles else "phase"
    if padded * k.size * compute.itemsize <= LOCAL_BYTES and (
        problem.flops <= SMALL_FLOPS or (problem.num_batches >= 4 and one <= LOCAL_FLOPS)
    ):
        packs = "task"
    runs_along_k = k.y == 1 and problem.n.y != 1
    tile_depth = TILE_RUN_BYTES // compute.itemsize if runs_along_k else TILE_DEPTH
    tile_depth = tile_depth if m <= FEW_ROWS else TILE_DEPTH_OF_MANY
    depth = _even_block(k.size, tile_depth if packs == "tile" else DEPTH_BLOCK, DEPTH_UNIT)
    row_block = _even_block(m, tile_rows if packs == "tile" else ROW_BLOCK, rows)
    column_block = padded if packs == "task" else _even_block(padded, COLUMN_BLOCK, panel)
    if out_dtype != compute:  # the sums of a tile stay on the stack
        column_block = (
            padded if packs == "task" and k.size <= depth else _even_block(padded, STAGED_COLUMNS, panel)
        )
    if packs != "task":
        wanted = min(MIN_TILES, problem.flops / TASK_FLOPS)
        columns = (LEAST_COLUMNS if packs == "tile" and m <= TILE_ROWS else MIN_COLUMNS) * panel
        while column_block >= 2 * columns and _tiles(problem, row_block, column_block) < wanted:
            column_block = _even_block(padded, column_block // 2, panel)
        while (tiles := _tiles(problem, row_block, column_block)) < wanted:
            least = rows if packs != "tile" else TILE_ROWS if tiles >= FEW_TILES else TILE_ROWS // 2
            if row_block < 2 * least:
                break
            row_block = _even_block(m, row_block // 2, rows)
    batches = max(1, round(TASK_FLOPS / one)) if packs == "task" else 1
    if problem.flops <= SMALL_FLOPS and packs == "task":
        batches = problem.num_batches
    if panel_depth:  # sums are cut as before, so that their bits do not change
        packs, batches = "ready", 1
    return Plan(
        problem, x_dtype, y_dtype, out_dtype, compute, rows, vectors, lanes, depth, row_block, column_block,
        a_layout, packs, batches, panel_depth, pairs,
    )  # fmt: skip


def _tiles(problem: Problem, row_block: int, column_block: int) -> int:
    return problem.num_batches * -(-problem.m.size // row_block) * -(-problem.n.size // column_block)


def _even_block(size: int, largest: int, unit: int) -> int:
    """A block size of at most about `largest`, a multiple of `unit`, that cuts `size` into equal parts."""
    parts = _ceil_div(size, max(largest, unit))
    return _ceil_div(_ceil_div(size, parts), unit) * unit


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
