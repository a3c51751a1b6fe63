"""Triton sources of attention over keys in blocks: programs own a tile of tokens of one request, a key head
and a run of its keys, which they find through the table; a second function joins what the runs gave.

Which request a tile is of is known at run time only: every program counts the tiles of the requests before
it. There are as many programs as the shapes may need; those beyond the tiles, tokens and keys that there are
do next to nothing. Runs have equally many keys in every batch, so neighbours change no result.

Letters in the text: r requests, m rows of a tile (tokens, and for each the query heads of a key head), s
keys, d the width of keys, v that of values, g query heads of a key head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.triton.function_text import FunctionText, index_dtype
from infini.compiler.triton.source import TritonSource, language_name
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites.paged_definition import Operands, Options, operands_of

NAME: Final = "paged_attention"
_FLOATS: Final = frozenset({dtypes.float32, dtypes.float16, dtypes.bfloat16})
_LARGEST_WIDTH: Final = 256  # of a head: its queries, keys and values stand in registers
_FEWEST_ROWS: Final = 16  # of a product
_TILE_BYTES: Final = 16 << 10  # of the queries of a tile where requests have many tokens, and of its keys
_MOST_ROWS: Final = 64  # of either
_CHUNK: Final = 1024  # keys of a run


def is_suited(types: Sequence[ArrayType], attrs: Attrs) -> bool:
    """Whether there are sources for operands of these types."""
    options = Options(**attrs)
    o = operands_of(types, options)
    floats = (o.query, *(x for x in (o.key_scales, o.value_scales, o.sinks) if x is not None))
    values = o.values if o.values is not None else o.keys
    return (
        all(x.dtype in _FLOATS for x in floats)
        and o.keys.dtype in _FLOATS | {dtypes.int8}
        and max(o.query.shape[2], options.width_of(values)) <= _LARGEST_WIDTH
        and all(x.size for x in o.in_order())
    )


def paged_attention(
    types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC
) -> tuple[TritonSource, ...]:
    """The sources of `paged_attention`."""
    options = Options(**attrs)
    writer = _Writer(_Plan(operands_of(types, options), options), target)
    return writer.runs(), writer.join()


def scratch_bytes(types: Sequence[ArrayType], attrs: Attrs) -> int:
    """Scratch memory that the sources share."""
    options = Options(**attrs)
    return 4 * _Plan(operands_of(types, options), options).scratch


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True, slots=True)
class _Plan:
    """Sizes, with the letters of `lax.paged_attention`."""

    types: Operands[ArrayType]
    options: Options

    @property
    def values(self) -> ArrayType:
        """The cache that values are read from."""
        return self.types.keys if self.types.values is None else self.types.values

    @property
    def width(self) -> int:
        """E."""
        return self.options.width_of(self.values)

    @property
    def wide(self) -> int:
        """Columns of a result in registers."""
        return max(_FEWEST_ROWS, _power(self.width))

    @property
    def key_heads(self) -> int:
        """K."""
        return self.types.keys.shape[1]

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.types.query.shape[1] // self.key_heads

    @property
    def tokens(self) -> int:
        """T."""
        return self.types.query.shape[0]

    @property
    def requests(self) -> int:
        """R."""
        return self.types.tables.shape[0]

    @property
    def most_keys(self) -> int:
        """Keys that a table has room for."""
        return self.types.tables.shape[1] * self.types.keys.shape[2]

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        few = self.tokens <= 4 * self.requests
        return max(_power(self.group), _FEWEST_ROWS if few else self.columns)

    @property
    def columns(self) -> int:
        """Keys that a program takes at a time; they begin at multiples of that."""
        row_bytes = max(_power(self.types.query.shape[2]), self.wide) * self.compute.itemsize
        return max(_FEWEST_ROWS, min(_MOST_ROWS, _TILE_BYTES // row_bytes))

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile."""
        return self.rows // self.group

    @property
    def tiles(self) -> int:
        """Most tiles there may be."""
        return min(self.tokens, self.tokens // self.tile_tokens + self.requests)

    @property
    def runs(self) -> int:
        """Most runs of keys there may be."""
        return -(-self.most_keys // _CHUNK)

    @property
    def programs(self) -> int:
        """Of the first function."""
        return self.tiles * self.runs * self.key_heads

    @property
    def scratch(self) -> int:
        """Elements of the scratch memory: of every row the sums, the largest score and the total."""
        return self.programs * self.rows * (self.wide + 2)

    @property
    def compute(self) -> np.dtype:
        """Dtype of the operands of products."""
        query, keys = self.types.query.dtype, self.types.keys.dtype
        return query if keys in (query, dtypes.int8) else dtypes.float32

    @property
    def index(self) -> str:
        """Dtype of places."""
        return index_dtype(self.types.keys.size, self.values.size, self.types.query.size, self.scratch)


class _Writer:
    def __init__(self, plan: _Plan, target: Target) -> None:
        self.p, self.target = plan, target
        names = [name for name in Operands.__slots__ if getattr(plan.types, name) is not None]
        self.at = {name: f"x{i}" for i, name in enumerate(names)}
        self.operands = [(role, getattr(plan.types, name)) for name, role in self.at.items()]
        self.scratch = ("scratch", ArrayType((plan.scratch,), dtypes.float32))
        self.out = ("y0", plan.types.query.update(shape=(*plan.types.query.shape[:2], plan.width)))

    # --- what both functions find out -------------------------------------------------------------

    def _requests(self, text: FunctionText, owner: str) -> None:
        """Variables about all requests, and about the one that `owner` says."""
        p, at = self.p, self.at
        text.note("of every request: its first token, the end, how many, and its tiles")
        text.line(f"r = tl.arange(0, {_power(p.requests)})")
        text.line(f"starts = tl.maximum(tl.load({at['starts']} + r, mask=r < {p.requests}, other=0), 0)")
        text.line(f"stops = tl.load({at['starts']} + r + 1, mask=r < {p.requests}, other=0)")
        text.line(f"counts = tl.maximum(tl.minimum(stops, {p.tokens}) - starts, 0)")
        text.line(f"needed = (counts + {p.tile_tokens - 1}) // {p.tile_tokens}")
        text.line("behind = tl.cumsum(needed, 0)")
        text.note("the request of this program")
        text.line(f"owner = tl.sum(({owner}).to(tl.int32), 0)")
        text.line(f"is_used = owner < {p.requests}")
        text.line("own = r == owner")
        for name, source in (("first", "starts"), ("stop", "stops"), ("count", "counts")):
            text.line(f"{name} = tl.sum(tl.where(own, {source}, 0), 0)")
        text.line("before = tl.sum(tl.where(own, behind - needed, 0), 0)")
        text.line(f"length = tl.load({at['lengths']} + owner, mask=is_used, other=0)")

    def _row(self, place: str) -> tuple[str, str, str]:
        """Text of the offsets in the scratch memory of sums, largest score and total of rows."""
        p = self.p
        rows, wide = p.programs * p.rows, p.wide
        return (
            f"{place}[:, None] * {wide} + v[None, :]",
            f"{rows * wide} + {place}",
            f"{rows * (wide + 1)} + {place}",
        )

    # --- runs of keys ---------------------------------------------------------------------------------

    def runs(self) -> TritonSource:
        """The function that takes a run of keys."""
        p, at, text = self.p, self.at, FunctionText(self.target)
        heads, depth = p.types.query.shape[1:]
        text.line(f"k = pid % {p.key_heads}")
        text.line(f"tile = pid // {p.key_heads} % {p.tiles}")
        text.line(f"run = pid // {p.key_heads * p.tiles}")
        self._requests(text, "behind <= tile")
        text.note("rows: tokens, and for each the query heads of the key head")
        text.line(f"m = tl.arange(0, {p.rows})")
        text.line(f"token = first + (tile - before) * {p.tile_tokens} + m // {p.group}")
        text.line(f"inside = is_used & (token < first + count) & (m < {p.tile_tokens * p.group})")
        text.line("end = length - stop + token + 1  # behind the last key that a row sees")
        text.line(f"high = tl.minimum(tl.max(tl.where(inside, end, 0), 0), {p.most_keys})")
        text.line(f"high = tl.minimum(high, (run + 1) * {_CHUNK})")
        text.line(f"low = run * {_CHUNK}")
        window = p.options.window
        if window is not None:
            text.line(f"begin = end - {window}")
            text.line(f"least = tl.maximum(tl.min(tl.where(inside, begin, {p.most_keys}), 0), 0)")
            text.line(f"low = tl.maximum(low, least // {p.columns} * {p.columns})")
        text.line(f"d = tl.arange(0, {max(_FEWEST_ROWS, _power(depth))})")
        text.line(f"v = tl.arange(0, {p.wide})")
        text.line(f"row = token.to({p.index}) * {heads} + k * {p.group} + m % {p.group}")
        queries = f"tl.load({at['query']} + row[:, None] * {depth} + d[None, :]"
        text.line(f"queries = {queries}, mask=inside[:, None] & (d < {depth})[None, :], other=0.0)")
        text.line(f"queries = queries.to({language_name(p.compute)})")
        text.line(f'largest = tl.full([{p.rows}], float("-inf"), tl.float32)')
        text.line(f"total = tl.zeros([{p.rows}], tl.float32)")
        text.line(f"result = tl.zeros([{p.rows}, {p.wide}], tl.float32)")
        with text.block(f"for j in range(low, high, {p.columns}):"):
            self._keys(text)
            self._softmax(text)
        text.line(f"place = pid.to({p.index}) * {p.rows} + m")
        for value, offset in zip(("result", "largest", "total"), self._row("place"), strict=True):
            mask = "inside[:, None]" if value == "result" else "inside"
            text.line(f"tl.store(scratch + {offset}, {value}, mask={mask})")
        about = [f"attention over keys in blocks: {p.rows} rows and at most {_CHUNK} keys for each program"]
        return text.source(
            "paged_attention", (*self.operands, self.scratch), p.programs, about=about, index=p.index
        )

    def _keys(self, text: FunctionText) -> None:
        """Some keys, and the scores of all rows."""
        p, at = self.p, self.at
        num_blocks, _, size, depth = p.types.keys.shape
        text.line(f"s = j + tl.arange(0, {p.columns})")
        text.line("exists = s < high")
        if p.options.window is not None:
            text.line("exists = exists & (s >= least)")
        entry = f"owner * {p.types.tables.shape[1]} + s // {size}"
        text.line(f"block = tl.load({at['tables']} + {entry}, mask=exists, other=0)")
        text.line(f"block = tl.minimum(tl.maximum(block, 0), {num_blocks - 1}).to({p.index})")
        text.line(f"at_key = (block * {p.key_heads} + k) * {size} + s % {size}")
        mask = f"exists[None, :] & (d < {depth})[:, None]"
        text.line(
            f"keys = tl.load({at['keys']} + at_key[None, :] * {depth} + d[:, None], mask={mask}, other=0)"
        )
        precision = self._precision
        text.line(
            f"scores = tl.dot(queries, keys.to({language_name(p.compute)}){precision}) * {p.options.scale!r}"
        )
        if p.options.has_scales:
            text.line(f"factors = tl.load({at['key_scales']} + at_key, mask=exists, other=0.0)")
            text.line("scores = scores * factors.to(tl.float32)[None, :]")
        if p.options.softcap is not None:
            text.note("the hyperbolic tangent")
            text.line(f"capped = 2.0 / (1.0 + tl.exp(-2.0 * scores / {p.options.softcap!r})) - 1.0")
            text.line(f"scores = capped * {p.options.softcap!r}")
        text.line("seen = exists[None, :] & (s[None, :] < end[:, None])")
        if p.options.window is not None:
            text.line("seen = seen & (s[None, :] >= begin[:, None])")
        text.line('scores = tl.where(seen, scores, float("-inf"))')

    def _softmax(self, text: FunctionText) -> None:
        """Takes the scores into what is carried, with the values of their keys."""
        p, at = self.p, self.at
        text.line("highest = tl.maximum(largest, tl.max(scores, 1))")
        text.note("a row that has seen no key is compared with 0")
        text.line('base = tl.where(highest == float("-inf"), 0.0, highest)')
        text.line("weights = tl.exp(scores - base[:, None])")
        text.line("shrink = tl.exp(largest - base)")
        text.line("total = total * shrink + tl.sum(weights, 1)")
        text.line("largest = highest")
        name = "keys" if p.types.values is None else "values"
        if p.options.has_scales:
            scales = "key_scales" if p.types.values is None else "value_scales"
            text.line(f"factors = tl.load({at[scales]} + at_key, mask=exists, other=0.0)")
            text.line("weights = weights * factors.to(tl.float32)[None, :]")
        mask = f"exists[:, None] & (v < {p.width})[None, :]"
        offset = f"at_key[:, None] * {p.values.shape[3]} + v[None, :]"
        text.line(f"values = tl.load({at[name]} + {offset}, mask={mask}, other=0)")
        kind = language_name(p.compute)
        product = f"tl.dot(weights.to({kind}), values.to({kind}){self._precision})"
        text.line(f"result = result * shrink[:, None] + {product}")

    @property
    def _precision(self) -> str:
        return ', input_precision="ieee"' if self.p.compute == dtypes.float32 else ""

    # --- their results together ---------------------------------------------------------------------

    def join(self) -> TritonSource:
        """The function that joins the runs of a token and a key head, or gives zeros where there is none."""
        p, at, text = self.p, self.at, FunctionText(self.target)
        heads = p.types.query.shape[1]
        text.line(f"k = pid % {p.key_heads}")
        text.line(f"token = pid // {p.key_heads}")
        self._requests(text, f"(stops <= token) & (r < {p.requests})")
        text.line("has_keys = is_used & (token >= first) & (token < first + count)")
        text.line("end = length - stop + token + 1")
        text.line(f"runs = tl.where(has_keys, (tl.maximum(end, 0) + {_CHUNK - 1}) // {_CHUNK}, 0)")
        text.line(f"runs = tl.minimum(runs, {p.runs})")
        text.line(f"tile = before + (token - first) // {p.tile_tokens}")
        text.line(f"g = tl.arange(0, {_power(p.group)})")
        text.line(f"m = (token - first) % {p.tile_tokens} * {p.group} + g")
        text.line(f"v = tl.arange(0, {p.wide})")
        text.line(f'largest = tl.full([{_power(p.group)}], float("-inf"), tl.float32)')
        text.line(f"total = tl.zeros([{_power(p.group)}], tl.float32)")
        text.line(f"result = tl.zeros([{_power(p.group)}, {p.wide}], tl.float32)")
        with text.block("for run in range(0, runs):"):
            text.line(f"program = (run * {p.tiles} + tile) * {p.key_heads} + k")
            text.line(f"place = program.to({p.index}) * {p.rows} + m")
            own = f"g < {p.group}"
            sums, top, amount = self._row("place")
            text.line(f'top = tl.load(scratch + {top}, mask={own}, other=float("-inf"))')
            text.line(f"amount = tl.load(scratch + {amount}, mask={own}, other=0.0)")
            text.line(f"part = tl.load(scratch + {sums}, mask=({own})[:, None], other=0.0)")
            text.line("highest = tl.maximum(largest, top)")
            text.line('base = tl.where(highest == float("-inf"), 0.0, highest)')
            text.line("shrink = tl.exp(largest - base)")
            text.line("share = tl.exp(top - base)")
            text.line("total = total * shrink + amount * share")
            text.line("result = result * shrink[:, None] + part * share[:, None]")
            text.line("largest = highest")
        text.line(f"head = k * {p.group} + g")
        if p.types.sinks is not None:
            text.line(f"sink = tl.load({at['sinks']} + head, mask=g < {p.group}, other=0.0).to(tl.float32)")
            text.line("highest = tl.maximum(largest, sink)")
            text.line("shrink = tl.exp(largest - highest)")
            text.line("total = total * shrink + tl.where(runs > 0, tl.exp(sink - highest), 0.0)")
            text.line("result = result * shrink[:, None]")
        text.line("total = tl.where(total == 0.0, 1.0, total)")
        text.line(f"row = token.to({p.index}) * {heads} + head")
        kind = language_name(p.types.query.dtype)
        text.line(f"found = (result / total[:, None]).to({kind})")
        mask = f"(g < {p.group})[:, None] & (v < {p.width})[None, :]"
        text.line(f"tl.store(y0 + row[:, None] * {p.width} + v[None, :], found, mask={mask})")
        about = [f"attention over keys in blocks: joins the runs of a token, {p.group} query heads each"]
        parameters = (*self.operands, self.out, self.scratch)
        return text.source(
            "paged_attention_join", parameters, p.tokens * p.key_heads, about=about, index=p.index
        )
