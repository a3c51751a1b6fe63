"""What the functions of attention share: sizes and strides of a problem, places in its arrays, and the lines
that make scores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.triton.access import c_strides
from infini.compiler.triton.function_text import FunctionText, index_dtype
from infini.compiler.triton.source import literal
from infini.compiler.triton.target import Target
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites.attention import Band

_KEPT_TILES: Final = 4.5  # tiles of rows that a function keeps in shared memory, as Triton compiles it
_LEAST: Final = 16  # of any dimension of a product
WIDE_ROW: Final = 256  # bytes of a row of a tile above which blocks are smaller
# A fill below this gives keys out of sight the weight 0 next to any score.
_UNSEEN: Final = -1e8


def sizes_of(*operands: tuple[ArrayType, str]) -> dict[str, int]:
    return {
        letter: size
        for type_, letters in operands
        for letter, size in zip(letters, type_.shape[type_.ndim - len(letters) :], strict=True)
    }


@dataclass(frozen=True, slots=True)
class Problem:
    """Attention, whatever letters and loop dimensions its operands have.

    Args:
        types: of operands and results.
        strides: of operands and results: elements from one index to the next, by letter; a letter that an
            array lacks, or repeats, has none.
        sizes: of the letters.
        shared: batch letters whose keys differ.
        groups: batch letters along which queries differ and keys do not.
        num_operands: how many of the arrays are operands.
        scale: factor of the products.
        band: which keys a query may look at.
        fill: score of the others.
        has_bias: whether operand 3 is added to the scores.
        has_mask: whether the last extra says which scores count.
    """

    types: tuple[ArrayType, ...]
    strides: tuple[dict[str, int], ...]
    sizes: dict[str, int]
    shared: tuple[str, ...]
    groups: tuple[str, ...]
    num_operands: int
    scale: float
    band: Band
    fill: float
    has_bias: bool
    has_mask: bool

    @property
    def dtype(self) -> np.dtype:
        """Dtype of queries, keys and values."""
        return self.types[0].dtype

    @property
    def skips(self) -> bool:
        """Whether keys outside the band may be left out: their weight is 0 in every row."""
        low, high = self.band
        queries, keys = self.sizes["t"], self.sizes["s"]
        some_key = (high is None or high >= 0) and (low is None or queries - 1 + low <= keys - 1)
        is_alone = not (self.has_bias or self.has_mask) or self.fill == -math.inf
        return self.band != (None, None) and some_key and is_alone and self.fill <= _UNSEEN

    def width(self, letter: str) -> int:
        """Elements of a tile along d or v."""
        return max(_LEAST, 1 << (self.sizes[letter] - 1).bit_length())

    def block(self, letter: str, target: Target, *, is_gradient: bool) -> int:
        """Queries or keys of a tile."""
        row = max(map(self.width, "dv")) * self.dtype.itemsize
        edge = 64 if row * (2 if is_gradient else 1) <= WIDE_ROW else 32
        while edge > _LEAST and _KEPT_TILES * edge * row > target.shared_bytes:
            edge //= 2
        return min(edge, max(_LEAST, 1 << (self.sizes[letter] - 1).bit_length()))

    def parameters(self, operands: Sequence[int], results: Sequence[int]) -> list[tuple[str, ArrayType]]:
        """Role and type of some operands and results."""
        return [
            *((f"x{i}", self.types[i]) for i in operands),
            *((f"y{i}", self.types[self.num_operands + i]) for i in results),
        ]


def problem_of(
    operands: Sequence[ArrayType],
    given: Sequence[str],
    results: Sequence[str],
    attrs: Attrs,
    *,
    is_gradient: bool,
) -> Problem:
    num_loops = max(t.ndim - len(own) for t, own in zip(operands, given, strict=True))
    sizes: dict[str, int] = {}
    strides = []
    for type_, own in zip(operands, given, strict=True):
        names = _names(own, type_.ndim, num_loops)
        for name, size in zip(names, type_.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
        steps = zip(names, type_.shape, c_strides(type_.shape), strict=True)
        strides.append({name: step for name, size, step in steps if size != 1})
    types = list(operands)
    wide = dtypes.float32
    for number, own in enumerate(results):
        names = _names(own, num_loops + len(own), num_loops)
        shape = tuple(sizes[name] for name in names)
        types.append(ArrayType(shape, operands[0].dtype if is_gradient or number == 0 else wide))
        strides.append(dict(zip(names, c_strides(shape), strict=True)))
    batch = [name for name in sizes if name not in ("t", "s", "d", "v")]
    loops = {name for name in batch if name.startswith("loop")}
    # The gradient of keys has every loop dimension, whether or not the keys do.
    with_keys = set(given[1]) | (loops if is_gradient else loops & {*strides[1], *strides[2]})
    return Problem(
        tuple(types), tuple(strides), sizes, tuple(c for c in batch if c in with_keys),
        tuple(c for c in batch if c not in with_keys), len(operands), attrs["scale"], attrs["band"],
        attrs["fill"], attrs["has_bias"], attrs["has_mask"],
    )  # fmt: skip


def _names(letters: str, ndim: int, num_loops: int) -> list[str]:
    """The letters of all dimensions; loop dimensions are numbered from the right."""
    rank = ndim - len(letters)
    return [*(f"loop{num_loops - rank + i}" for i in range(rank)), *letters]


# --- the text -------------------------------------------------------------------------------------------


class Text(FunctionText):
    """Lines of one function of attention."""

    def __init__(self, problem: Problem, target: Target, *, is_gradient: bool) -> None:
        super().__init__(target)
        self.p = problem
        self.rows = problem.block("t", target, is_gradient=is_gradient)
        self.columns = problem.block("s", target, is_gradient=is_gradient)
        self.num_rows = -(-problem.sizes["t"] // self.rows)
        self.num_columns = -(-problem.sizes["s"] // self.columns)
        self.precision = ', input_precision="ieee"' if problem.dtype == dtypes.float32 else ""
        self.index = index_dtype(*(t.size for t in problem.types))

    def start(self, letters: Sequence[str], num_blocks: int) -> None:
        """Which program this is: its places along batch letters, and its block."""
        shown = [f"{letter} of {self.p.sizes[letter]}" for letter in letters if self.p.sizes[letter] > 1]
        if shown or num_blocks > 1:
            self.note(f"block of {num_blocks}" + (f", place along {', '.join(shown)}" if shown else ""))
        faster = 1
        names = [("block", num_blocks), *((f"at_{c}", self.p.sizes[c]) for c in reversed(letters))]
        names = [(name, size) for name, size in names if size > 1]
        for place, (name, size) in enumerate(names):
            whole = "pid" if faster == 1 else f"pid // {faster}"
            self.line(f"{name} = {whole}" if place + 1 == len(names) else f"{name} = {whole} % {size}")
            faster *= size

    def positions(self, letter: str, block: str) -> None:
        """A variable with the numbers of the queries or keys of a block."""
        edge, count = (self.rows, self.num_rows) if letter == "t" else (self.columns, self.num_columns)
        first = f"{block} * {edge} + " if count > 1 else ""
        found = f"{first}tl.arange(0, {edge})"
        self.line(f"{letter} = ({found}).to(tl.int64)" if self.index == "tl.int64" else f"{letter} = {found}")

    def walk(self, steps: str) -> contextlib.AbstractContextManager[None]:
        """A loop over blocks, where there are several."""
        return self.block(f"for j in {steps}:") if steps else contextlib.nullcontext()

    def program_count(self, letters: Sequence[str], num_blocks: int) -> int:
        """Programs of the function."""
        return num_blocks * math.prod(self.p.sizes[c] for c in letters)

    def base(self, array: int) -> str:
        """Where the program's part of an array begins."""
        role = f"x{array}" if array < self.p.num_operands else f"y{array - self.p.num_operands}"
        steps = self.p.strides[array]
        terms = [
            f"at_{c} * {steps[c]}" if steps[c] > 1 else f"at_{c}"
            for c in (*self.p.shared, *self.p.groups)
            if steps.get(c) and self.p.sizes[c] > 1
        ]
        return " + ".join([role, *terms])

    def place(self, array: int, letters: str) -> str:
        """Pointers to a tile whose dimensions are these letters."""
        found = [self.base(array)]
        steps = self.p.strides[array]
        for position, letter in enumerate(letters):
            step = steps.get(letter, 0)
            if step:
                found.append(f"{letter}{_spread(position, letters)}" + (f" * {step}" if step > 1 else ""))
        missing = [c for c in letters if not steps.get(c)]
        if len(missing) == len(letters):  # the pointer has to become a block
            found.append(f"0 * {letters[0]}{_spread(0, letters)}")
        return " + ".join(found)

    def inside(self, array: int, letters: str) -> str:
        """The mask of such a tile; empty where everything lies inside."""
        edges = {"t": self.rows, "s": self.columns, "d": self.p.width("d"), "v": self.p.width("v")}
        checks = [
            f"({letter} < {self.p.sizes[letter]}){_spread(position, letters)}"
            for position, letter in enumerate(letters)
            if self.p.sizes[letter] % edges[letter] and self.p.strides[array].get(letter)
        ]
        return " & ".join(checks)

    def load(self, name: str, array: int, letters: str, other: str = "0.0") -> None:
        """A variable with a tile."""
        mask = self.inside(array, letters)
        given = f", mask={mask}, other={other}" if mask else ""
        shape = ", ".join(letters)
        self.line(f"{name} = tl.load({self.place(array, letters)}{given})  # ({shape})")

    def store(self, value: str, array: int, letters: str) -> None:
        """Store a tile."""
        mask = self.inside(array, letters)
        self.line(f"tl.store({self.place(array, letters)}, {value}" + (f", mask={mask})" if mask else ")"))

    def scores(self) -> bool:
        """Variables `scores` and, if some do not count, `allowed`; whether there is one."""
        p = self.p
        self.line(f"scores = tl.dot(queries, keys{self.precision}) * {p.scale!r}  # (t, s)")
        if p.has_bias:
            self.load("bias", 3, "ts")
            self.line("scores = scores + bias")
        checks = []
        if p.has_mask:
            self.load("mask", 3 + p.has_bias, "ts", "0")
            checks.append("(mask != 0)")
        low, high = p.band
        if low is not None:
            checks.append(f"(s[None, :] - t[:, None] >= {low})")
        if high is not None:
            checks.append(f"(s[None, :] - t[:, None] <= {high})")
        if checks:
            self.line(f"allowed = {' & '.join(checks) if len(checks) > 1 else checks[0][1:-1]}")
            self.line(f"scores = tl.where(allowed, scores, {literal(p.fill, dtypes.float32)})")
        return bool(checks)

    def keys_in_sight(self) -> str:
        """The blocks of keys that this block of queries looks at; empty when there is one."""
        low, high = self.p.band if self.p.skips else (None, None)
        first, last = "0", f"{self.num_columns}"
        if self.num_columns == 1:
            return ""
        if self.num_rows == 1 and self.p.skips:
            self.line("block = tl.full((), 0, tl.int32)")
        if low is not None and (self.p.sizes["t"] - 1 + low) > 0:
            reach = f"block * {self.rows}" + (f" + {low}" if low > 0 else f" - {-low}" if low else "")
            self.line(f"first = tl.maximum({reach}, 0) // {self.columns}")
            first = "first"
        if high is not None and high < self.p.sizes["s"] - 1:
            self.line(
                f"last = (tl.minimum(block * {self.rows} + {self.rows + high}, {self.p.sizes['s']})"
                f" + {self.columns - 1}) // {self.columns}"
            )
            last = "last"
        return f"range({first}, {last})"

    def queries_in_sight(self) -> str:
        """The blocks of queries that look at this block of keys; empty when there is one."""
        low, high = self.p.band if self.p.skips else (None, None)
        first, last = "0", f"{self.num_rows}"
        if self.num_rows == 1:
            return ""
        if self.num_columns == 1 and self.p.skips:
            self.line("block = tl.full((), 0, tl.int32)")
        if high is not None and self.p.sizes["s"] - 1 - high > 0:
            reach = f"block * {self.columns}" + (f" - {high}" if high > 0 else f" + {-high}" if high else "")
            self.line(f"first = tl.maximum({reach}, 0) // {self.rows}")
            first = "first"
        if low is not None and -low < self.p.sizes["t"] - 1:
            self.line(
                f"last = (tl.minimum(block * {self.columns} + {self.columns - low}, {self.p.sizes['t']})"
                f" + {self.rows - 1}) // {self.rows}"
            )
            last = "last"
        return f"range({first}, {last})"


def _spread(position: int, letters: str) -> str:
    if len(letters) == 1:
        return ""
    return "[:, None]" if position == 0 else "[None, :]"
