"""Triton sources of attention and of its gradient, which never hold the matrix of weights (T. Dao,
https://arxiv.org/abs/2307.08691).

Forward, a program owns some queries and walks the keys; largest score and sum of a row go on from block to
block. The gradient computes the weights again: one function owns keys and walks the queries that look at
them, groups of heads included, one owns queries and walks the keys. Nothing is added atomically, so results
do not depend on the order of programs. Keys that a band puts out of sight are left out where their weight
is 0 in every row.

Letters in the text: t counts queries, s keys, d is contracted, v is the width of values; `at_b` is the
program's place along the batch letter b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from infini.compiler.triton.attention_problem import WIDE_ROW, Problem, Text, problem_of, sizes_of
from infini.compiler.triton.source import TritonSource, language_name
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites import attention as composite
from infini.lax.composites.attention import Letters

NAMES: Final = frozenset({"attention", "attention_sums", "attention_gradient"})
_DTYPES: Final = frozenset({dtypes.float32, dtypes.float16, dtypes.bfloat16})
_LARGEST_WIDTH: Final = 256  # of a head: its queries, keys and values stand in registers
_MIN_QUERIES: Final = 2  # one row of scores is no matrix, and its definition has more programs


def is_suited(types: Sequence[ArrayType], attrs: Attrs) -> bool:
    """Whether there is a source for attention, or its gradient, of operands of these types."""
    letters: Letters = composite.parse_spec(attrs["spec"])
    query, key, value = types[:3]
    sizes = sizes_of((query, letters.query), (key, letters.key), (value, letters.value))
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
    problem = problem_of(types, given, results, attrs, is_gradient=True)
    return _keys_gradient(problem, target), _queries_gradient(problem, target)


def _forward(
    types: Sequence[ArrayType], attrs: Attrs, target: Target, *, has_sums: bool
) -> tuple[TritonSource, ...]:
    letters: Letters = composite.parse_spec(attrs["spec"])
    given = (letters.query, letters.key, letters.value, *letters.extras)
    results = (letters.out, letters.rows, letters.rows) if has_sums else (letters.out,)
    problem = problem_of(types, given, results, attrs, is_gradient=False)
    return (_result(problem, target, "attention_sums" if has_sums else "attention"),)


def _result(p: Problem, target: Target, name: str) -> TritonSource:
    """The function that owns queries and gives their results."""
    text = Text(p, target, is_gradient=False)
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


def _gradient_arrays(p: Problem) -> dict[str, int]:
    """Numbers of the operands after the extras."""
    first = 3 + p.has_bias + p.has_mask
    return dict(zip(("ct", "largest", "total", "delta"), range(first, first + 4), strict=True))


def _write_change(text: Text, *, cuts_keys: bool) -> None:
    """Variables `weights`, and `change`, the cotangents of the scores before scaling."""
    has_allowed = text.scores()
    text.line("weights = tl.exp(scores - largest[:, None]) / total[:, None]")
    if cuts_keys and text.p.sizes["s"] % text.columns:
        text.line(f"weights = tl.where((s < {text.p.sizes['s']})[None, :], weights, 0.0)")
    text.line(f"moved = tl.dot(cotangents, values{text.precision})  # (t, s)")
    text.line("change = weights * (moved - delta[:, None])")
    if has_allowed:
        text.line("change = tl.where(allowed, change, 0.0)")


def _keys_gradient(p: Problem, target: Target) -> TritonSource:
    """The function that owns keys and gives the cotangents of keys and values."""
    text, arrays = Text(p, target, is_gradient=True), _gradient_arrays(p)
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


def _queries_gradient(p: Problem, target: Target) -> TritonSource:
    """The function that owns queries and gives their cotangents."""
    text, arrays = Text(p, target, is_gradient=True), _gradient_arrays(p)
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


def _without(p: Problem, letters: Sequence[str]) -> Problem:
    """The problem where no array moves along some letters."""
    strides = tuple({c: n for c, n in own.items() if c not in letters} for own in p.strides)
    return Problem(
        p.types, strides, p.sizes, p.shared, p.groups, p.num_operands, p.scale, p.band, p.fill, p.has_bias,
        p.has_mask,
    )  # fmt: skip


def _called(p: Problem) -> dict[str, str]:
    """Names of the operands; the user's take their place."""
    names = ["queries", "keys", "values", *["bias"] * p.has_bias, *["mask"] * p.has_mask]
    names += ["cotangents", "largest", "total", "delta"]
    return {f"x{i}": name for i, name in enumerate(names[: p.num_operands])}


def _cast(text: str, p: Problem) -> str:
    return text if p.dtype == dtypes.float32 else f"{text}.to({language_name(p.dtype)})"


def _about(name: str, p: Problem, what: str) -> str:
    return f"{name}: {p.sizes['t']} queries, {p.sizes['s']} keys; {what}"


def _warps(p: Problem) -> int:
    return 4 if max(map(p.width, "dv")) * p.dtype.itemsize <= WIDE_ROW else 8
