"""Triton sources of attention and of its gradient, which never hold the matrix of weights (T. Dao,
https://arxiv.org/abs/2307.08691).

Forward, a program owns some queries and walks the keys; largest score and sum of a row go on from block to block.
The gradient computes the weights again: one function owns keys and walks the queries that look at them, groups of
heads included, one owns queries and walks the keys. Nothing is added atomically, so results do not depend on the
order of programs. Keys that a band puts out of sight are left out where their weight is 0 in every row.

Letters in the text: t counts queries, s keys, d is contracted, v is the width of values; `at_b` is the program's
place along the batch letter b.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.triton.access import c_strides
from infini.compiler.triton.function_text import FunctionText, index_dtype
from infini.compiler.triton.source import TritonSource, language_name, literal
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites import attention as composite
from infini.lax.composites.attention import Band, Letters

NAMES: Final = frozenset({"attention", "attention_sums", "attention_gradient"})
_DTYPES: Final = frozenset({dtypes.float32, dtypes.float16, dtypes.bfloat16})
_LARGEST_WIDTH: Final = 256  # of a head: its queries, keys and values stand in registers
_MIN_QUERIES: Final = 4  # fewer do not fill a matrix unit; the definition has more programs for them
_LEAST: Final = 16  # of any dimension of a product
_WIDE_ROW: Final = 256  # bytes of a row of a tile above which blocks are smaller
# A fill below this gives keys out of sight the weight 0 next to any score.
_UNSEEN: Final = -1e8


def is_suited(types: Sequence[ArrayType], attrs: Attrs) -> bool:
    """Whether there is a source for attention, or its gradient, of operands of these types."""
    letters: Letters = composite.parse_spec(attrs["spec"])
    query, key, value = types[:3]
    sizes = _sizes((query, letters.query), (key, letters.key), (value, letters.value))
    return (
        query.dtype in _DTYPES
        and all(0 < sizes[c] <= _LARGEST_WIDTH for c in "dv")
        and sizes["t"] >= _MIN_QUERIES
        and all(t.size for t in (query, key, value))
    )


def attention(types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC) -> tuple[TritonSource, ...]:
    """The source of attention."""
    return _forward(types, attrs, target, has_sums=False)


def attention_sums(
    types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
) -> tuple[TritonSource, ...]:
    """The source of attention that also gives the largest score and the sum of each row."""
    return _forward(types, attrs, target, has_sums=True)


def attention_gradient(
    types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
) -> tuple[TritonSource, ...]:
    """The sources of the gradient: for keys and values, and for queries."""
    letters: Letters = composite.parse_spec(attrs["spec"])
    given = (letters.query, letters.key, letters.value, *letters.extras, letters.out, *(letters.rows,) * 3)
    results = (letters.query, letters.key, letters.value)
    problem = _problem(types, given, results, attrs, is_gradient=True)
    return _keys_gradient(problem, target), _queries_gradient(problem, target)


def _forward(
    types: Sequence[ArrayType], attrs: Attrs, target: Target, *, has_sums: bool
) -> tuple[TritonSource, ...]:
    letters: Letters = composite.parse_spec(attrs["spec"])
    given = (letters.query, letters.key, letters.value, *letters.extras)
    results = (letters.out, letters.rows, letters.rows) if has_sums else (letters.out,)
    problem = _problem(types, given, results, attrs, is_gradient=False)
    return (_result(problem, target, "attention_sums" if has_sums else "attention"),)


# --- the problem --------------------------------------------------------------------------------------


def _sizes(*operands: tuple[ArrayType, str]) -> dict[str, int]:
    return {
        letter: size
        for type_, letters in operands
        for letter, size in zip(letters, type_.shape[type_.ndim - len(letters) :], strict=True)
    }


@dataclass(frozen=True, slots=True)
class _Problem:
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

    def block(self, letter: str, *, is_gradient: bool) -> int:
        """Queries or keys of a tile."""
        row = max(map(self.width, "dv")) * self.dtype.itemsize * (2 if is_gradient else 1)
        edge = 64 if row <= _WIDE_ROW else 32
        return min(edge, max(_LEAST, 1 << (self.sizes[letter] - 1).bit_length()))

    def parameters(self, operands: Sequence[int], results: Sequence[int]) -> list[tuple[str, ArrayType]]:
        """Role and type of some operands and results."""
        return [
            *((f"x{i}", self.types[i]) for i in operands),
            *((f"y{i}", self.types[self.num_operands + i]) for i in results),
        ]


def _problem(
    operands: Sequence[ArrayType],
    given: Sequence[str],
    results: Sequence[str],
    attrs: Attrs,
    *,
    is_gradient: bool,
) -> _Problem:
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
    return _Problem(
        tuple(types), tuple(strides), sizes, tuple(c for c in batch if c in with_keys),
        tuple(c for c in batch if c not in with_keys), len(operands), attrs["scale"], attrs["band"],
        attrs["fill"], attrs["has_bias"], attrs["has_mask"],
    )  # fmt: skip


def _names(letters: str, ndim: int, num_loops: int) -> list[str]:
    """The letters of all dimensions; loop dimensions are numbered from the right."""
    rank = ndim - len(letters)
    return [*(f"loop{num_loops - rank + i}" for i in range(rank)), *letters]


# --- the text -------------------------------------------------------------------------------------------


class _Text(FunctionText):
    """Lines of one function of attention."""

    def __init__(self, problem: _Problem, target: Target, *, is_gradient: bool) -> None:
        super().__init__(target)
        self.p = problem
        self.rows = problem.block("t", is_gradient=is_gradient)
        self.columns = problem.block("s", is_gradient=is_gradient)
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
        self.line(f"{letter} = {first}tl.arange(0, {edge})")

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


def _result(p: _Problem, target: Target, name: str) -> TritonSource:
    """The function that owns queries and gives their results."""
    text = _Text(p, target, is_gradient=False)
    batch = (*p.shared, *p.groups)
    text.start(batch, text.num_rows)
    text.positions("t", "block")
    text.line(f"d = tl.arange(0, {p.width('d')})")
    text.line(f"v = tl.arange(0, {p.width('v')})")
    text.load("queries", 0, "td")
    text.note("of the keys so far: the largest score, the sum of the weights, the weighted sum of the values")
    text.line(f'largest = tl.full([{text.rows}], float("-inf"), tl.float32)  # (t)')
    text.line(f"total = tl.zeros([{text.rows}], tl.float32)  # (t)")
    text.line(f"result = tl.zeros([{text.rows}, {p.width('v')}], tl.float32)  # (t, v)")
    with text.walk(text.keys_in_sight()):
        text.positions("s", "j")
        text.load("keys", 1, "ds")
        text.scores()
        if p.sizes["s"] % text.columns:
            text.line(f'scores = tl.where((s < {p.sizes["s"]})[None, :], scores, float("-inf"))')
        text.line("highest = tl.maximum(largest, tl.max(scores, 1))")
        text.note("a row that has seen nothing but minus infinity is compared with 0")
        text.line('base = tl.where(highest == float("-inf"), 0.0, highest)')
        text.line("weights = tl.exp(scores - base[:, None])  # (t, s)")
        text.line("shrink = tl.exp(largest - base)  # (t)")
        text.line("total = total * shrink + tl.sum(weights, 1)")
        text.load("values", 2, "sv")
        product = f"tl.dot({_cast('weights', p)}, values{text.precision})"
        text.line(f"result = result * shrink[:, None] + {product}")
        text.line("largest = highest")
    text.store(_cast("(result / total[:, None])", p), p.num_operands, "tv")
    results = [0]
    if name == "attention_sums":
        text.store("largest", p.num_operands + 1, "t")
        text.store("total", p.num_operands + 2, "t")
        results = [0, 1, 2]
    about = [_about(name, p, f"{text.rows} queries for each program, {text.columns} keys at a time")]
    return text.source(
        name, p.parameters(range(p.num_operands), results), text.program_count(batch, text.num_rows),
        num_warps=_warps(p), about=about, index=text.index,
    ).renamed({**_called(p), "y1": "largest", "y2": "total"})  # fmt: skip


def _gradient_arrays(p: _Problem) -> dict[str, int]:
    """Numbers of the operands after the extras."""
    first = 3 + p.has_bias + p.has_mask
    return dict(zip(("ct", "largest", "total", "delta"), range(first, first + 4), strict=True))


def _write_change(text: _Text, *, cuts_keys: bool) -> None:
    """Variables `weights`, and `change`, the cotangents of the scores before scaling."""
    has_allowed = text.scores()
    text.line("weights = tl.exp(scores - largest[:, None]) / total[:, None]")
    if cuts_keys and text.p.sizes["s"] % text.columns:
        text.line(f"weights = tl.where((s < {text.p.sizes['s']})[None, :], weights, 0.0)")
    text.line(f"moved = tl.dot(cotangents, values{text.precision})  # (t, s)")
    text.line("change = weights * (moved - delta[:, None])")
    if has_allowed:
        text.line("change = tl.where(allowed, change, 0.0)")


def _keys_gradient(p: _Problem, target: Target) -> TritonSource:
    """The function that owns keys and gives the cotangents of keys and values."""
    text, arrays = _Text(p, target, is_gradient=True), _gradient_arrays(p)
    text.start(p.shared, text.num_columns)
    text.positions("s", "block")
    text.line(f"d = tl.arange(0, {p.width('d')})")
    text.line(f"v = tl.arange(0, {p.width('v')})")
    outer = text.p
    own = _without(outer, outer.groups)
    text.p = own  # keys and values lie the same for all groups
    text.load("keys", 1, "ds")
    text.load("values", 2, "vs")
    text.p = outer
    text.line(f"to_keys = tl.zeros([{text.columns}, {p.width('d')}], tl.float32)  # (s, d)")
    text.line(f"to_values = tl.zeros([{text.columns}, {p.width('v')}], tl.float32)  # (s, v)")
    steps = text.queries_in_sight()
    depth = text.depth
    for letter in (c for c in p.groups if p.sizes[c] > 1):
        text.line(f"for at_{letter} in range(0, {p.sizes[letter]}):")
        text.depth += 1
    with text.walk(steps):
        text.positions("t", "j")
        text.load("queries", 0, "td")
        text.load("cotangents", arrays["ct"], "tv")
        text.load("largest", arrays["largest"], "t")
        text.load("total", arrays["total"], "t", "1.0")
        text.load("delta", arrays["delta"], "t")
        _write_change(text, cuts_keys=False)
        weights, change = _cast("tl.trans(weights)", p), _cast("tl.trans(change)", p)
        text.line(f"to_values = to_values + tl.dot({weights}, cotangents{text.precision})")
        text.line(f"to_keys = to_keys + tl.dot({change}, queries{text.precision})")
    text.depth = depth
    text.p = own
    text.store(_cast(f"(to_keys * {p.scale!r})", p), p.num_operands + 1, "sd")
    text.store(_cast("to_values", p), p.num_operands + 2, "sv")
    text.p = outer
    what = f"{text.columns} keys for each program, {text.rows} queries at a time"
    return text.source(
        "attention_gradient_keys", p.parameters(range(p.num_operands), (1, 2)),
        text.program_count(p.shared, text.num_columns),
        num_warps=_warps(p), about=[_about("the cotangents of keys and values", p, what)], index=text.index,
    ).renamed({**_called(p), "y1": "to_keys", "y2": "to_values"})  # fmt: skip


def _queries_gradient(p: _Problem, target: Target) -> TritonSource:
    """The function that owns queries and gives their cotangents."""
    text, arrays = _Text(p, target, is_gradient=True), _gradient_arrays(p)
    batch = (*p.shared, *p.groups)
    text.start(batch, text.num_rows)
    text.positions("t", "block")
    text.line(f"d = tl.arange(0, {p.width('d')})")
    text.line(f"v = tl.arange(0, {p.width('v')})")
    text.load("queries", 0, "td")
    text.load("cotangents", arrays["ct"], "tv")
    text.load("largest", arrays["largest"], "t")
    text.load("total", arrays["total"], "t", "1.0")
    text.load("delta", arrays["delta"], "t")
    text.line(f"to_queries = tl.zeros([{text.rows}, {p.width('d')}], tl.float32)  # (t, d)")
    with text.walk(text.keys_in_sight()):
        text.positions("s", "j")
        text.load("keys", 1, "ds")
        text.load("values", 2, "vs")
        _write_change(text, cuts_keys=True)
        product = f"tl.dot({_cast('change', p)}, tl.trans(keys){text.precision})"
        text.line(f"to_queries = to_queries + {product}")
    text.store(_cast(f"(to_queries * {p.scale!r})", p), p.num_operands, "td")
    what = f"{text.rows} queries for each program, {text.columns} keys at a time"
    return text.source(
        "attention_gradient_queries", p.parameters(range(p.num_operands), (0,)),
        text.program_count(batch, text.num_rows),
        num_warps=_warps(p), about=[_about("the cotangents of the queries", p, what)], index=text.index,
    ).renamed({**_called(p), "y0": "to_queries"})  # fmt: skip


def _without(p: _Problem, letters: Sequence[str]) -> _Problem:
    """The problem where no array moves along some letters."""
    strides = tuple({c: n for c, n in own.items() if c not in letters} for own in p.strides)
    return _Problem(
        p.types, strides, p.sizes, p.shared, p.groups, p.num_operands, p.scale, p.band, p.fill, p.has_bias,
        p.has_mask,
    )  # fmt: skip


def _called(p: _Problem) -> dict[str, str]:
    """Names of the operands; the user's take their place."""
    names = ["queries", "keys", "values", *["bias"] * p.has_bias, *["mask"] * p.has_mask]
    names += ["cotangents", "largest", "total", "delta"]
    return {f"x{i}": name for i, name in enumerate(names[: p.num_operands])}


def _cast(text: str, p: _Problem) -> str:
    return text if p.dtype == dtypes.float32 else f"{text}.to({language_name(p.dtype)})"


def _about(name: str, p: _Problem, what: str) -> str:
    return f"{name}: {p.sizes['t']} queries, {p.sizes['s']} keys; {what}"


def _warps(p: _Problem) -> int:
    return 4 if max(map(p.width, "dv")) * p.dtype.itemsize <= _WIDE_ROW else 8
