"""The letters of attention's operands, and which scores count: what the operations, their derivatives and
their splits over devices share.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.families import bind_scalars

# How far a key may lie before (negative) and after the query that looks at it; None: any distance.
Band: TypeAlias = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class Letters:
    """The letters of a spec.

    Args:
        query: of the queries; ends of rows and columns are `t` and `d`.
        key: of the keys, with `s` and `d`.
        value: of the values, with `s` and `v`.
        extras: of bias and mask, as far as there are.
        out: of the result.
        rows: of what there is one of per row of weights.
    """

    query: str
    key: str
    value: str
    extras: tuple[str, ...]
    out: str
    rows: str

    @property
    def scores(self) -> str:
        """Letters of the matrix of weights."""
        return self.rows + "s"


@functools.cache
def parse_spec(spec: str) -> Letters:
    """The letters of a spec.

    Raises:
        ValueMismatchError: the text is no spec of attention.
    """
    left, _, right = spec.partition("->")
    operands, results = left.split(","), right.split(",")
    if len(operands) >= 3 and len(results) == 2:
        query, key, value, *extras = operands
        found = Letters(query, key, value, tuple(extras), *results)
        batch = set(query) - set("td")
        fits = (
            set(query) == batch | set("td")
            and set(key) - set("sd") == set(value) - set("sv") <= batch
            and {*"sd"} <= set(key)
            and {*"sv"} <= set(value)
            and set(found.out) == batch | set("tv")
            and set(found.rows) == batch | set("t")
            and all(set(x) <= batch | set("ts") for x in extras)
            and all(len(set(x)) == len(x) for x in (*operands, *results))
        )
        if fits:
            return found
    raise errors.ValueMismatchError(
        f"{spec!r} does not describe attention", expected="such as btkgd,bskd,bskv->btkgv,bkgt"
    )


def spread(x: Value, letters: str, wanted: str) -> Value:
    """`x` with a dimension, perhaps of size 1, for each wanted letter, so that it broadcasts."""
    order = tuple(sorted(range(len(letters)), key=lambda i: wanted.index(letters[i])))
    if order != tuple(range(len(letters))):
        x = trace.bind1(view.transpose_p, x, permutation=tuple(i - len(letters) for i in order))
        letters = "".join(letters[i] for i in order)
    core = dict(zip(letters, x.shape[x.ndim - len(letters) :], strict=True))
    shape = tuple(core.get(letter, 1) for letter in wanted)
    return trace.bind1(view.reshape_p, x, shape=shape, ndim=len(letters))


def allowed(
    letters: Letters, operands: Sequence[Value], band: Band, has_mask: bool, first: Value | None = None
) -> Value | None:
    """Where a score counts; broadcasts to the scores.

    Args:
        letters: of the operands.
        operands: queries, keys, values, and bias and mask where there are any.
        band: which keys a query looks at.
        has_mask: whether the last operand is a mask.
        first: number of the first query; 0 when absent.
    """
    found: list[Value] = []
    if has_mask:
        found.append(spread(operands[-1], letters.extras[-1], letters.scores))
    if band != (None, None):
        query, key = operands[:2]
        rows = query.shape[query.ndim - len(letters.query) + letters.query.index("t")]
        columns = key.shape[key.ndim - len(letters.key) + letters.key.index("s")]
        row, column = (
            spread(view.iota(dtypes.int32, size), letter, letters.scores)
            for letter, size in (("t", rows), ("s", columns))
        )
        distance = trace.bind1(e.sub_p, column, row)
        if first is not None:
            distance = bind_scalars(e.sub_p, distance, first)
        if band[0] is not None:
            found.append(bind_scalars(e.ge_p, distance, band[0]))
        if band[1] is not None:
            found.append(bind_scalars(e.le_p, distance, band[1]))
    return functools.reduce(lambda a, b: trace.bind1(e.and_p, a, b), found) if found else None
