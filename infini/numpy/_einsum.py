"""`einsum`: two operands go to one contraction as they are written; more are contracted in pairs, smallest
results first."""

from __future__ import annotations

import math
import string
from typing import Any, Final

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import contraction, reduction, view
from infini.numpy import products
from infini.numpy._promotion import ArrayLike, DTypeLike, convert, operands

_LETTERS: Final = frozenset(string.ascii_letters)


def einsum(
    subscripts: str,
    /,
    *arrays: ArrayLike,
    out: None = None,
    optimize: Any = "optimal",  # Any: accepted for NumPy's sake
    precision: None = None,
    preferred_element_type: DTypeLike | None = None,
) -> Value:
    """Sum of products by letters, as `numpy.einsum`.

    Args:
        subscripts: letters of every operand and, after `->`, of the result; `...` stands for dimensions
            that broadcast. Without
            `->` the result has the letters that occur once, in alphabetical order.
        *arrays: operands.
        out: accepted for NumPy's sake; only None.
        optimize: accepted for NumPy's sake; the order of contractions is chosen by the size of
            intermediate results.
        precision: accepted for JAX's sake; infini always accumulates 16-bit floats in float32.
        preferred_element_type: dtype of the result; the common dtype when absent.

    Raises:
        ValueMismatchError: the subscripts do not fit the operands.
        TypeMismatchError: a letter has two sizes.

    Example:
        >>> import infini.numpy as inp
        >>> inp.einsum("bmk,bkn->bmn", inp.ones((2, 3, 4)), inp.ones((2, 4, 5))).shape
        (2, 3, 5)
    """
    values = operands("einsum", *arrays)
    names, result = _parse(subscripts, values)
    dtype = values[0].dtype
    target = dtype if preferred_element_type is None else dtypes.canonical(preferred_element_type)
    terms = [_diagonals(value, letters) for value, letters in zip(values, names, strict=True)]
    terms = [_drop_ones(term, terms, result) for term in terms]
    _check_sizes(subscripts, terms)
    while len(terms) > 1:
        i, j = _cheapest(terms, result)
        others = [term for k, term in enumerate(terms) if k not in (i, j)]
        needed = set(result).union(*(letters for _, letters in others))
        is_last = not others
        terms = [
            *others,
            _pair(terms[i], terms[j], result if is_last else None, needed, target if is_last else dtype),
        ]
    value, letters = _sum_out(terms[0], set(result))
    value = view.transpose(value, [letters.index(letter) for letter in result if letter in letters])
    return convert(value, target, value.weak)


def _parse(subscripts: str, values: list[Value]) -> tuple[list[str], str]:
    """Letters of every operand and of the result, with `...` replaced by letters that are free."""
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    parts = left.split(",")
    if len(parts) != len(values):
        raise errors.ValueMismatchError(
            "einsum: the subscripts name another number of operands",
            got=f"{subscripts!r} and {len(values)} operands",
        )
    unused = sorted(_LETTERS - set(subscripts), reverse=True)
    extra = [value.ndim - len(part.replace("...", "")) for part, value in zip(parts, values, strict=True)]
    longest = max((n for n, part in zip(extra, parts, strict=True) if "..." in part), default=0)
    ellipsis = "".join(unused[:longest])
    names = []
    for part, value, count in zip(parts, values, extra, strict=True):
        letters = part.replace("...", ellipsis[longest - count :] if count > 0 else "")
        if not set(letters) <= _LETTERS or len(letters) != value.ndim or count < 0:
            raise errors.ValueMismatchError(
                f"einsum: the subscripts {part!r} do not fit an operand",
                got=str(value.type),
                expected="one letter per dimension",
            )
        names.append(letters)
    joined = "".join(names)
    if arrow:
        result = right.replace("...", ellipsis)
    else:
        result = ellipsis + "".join(sorted(c for c in set(joined) - set(ellipsis) if joined.count(c) == 1))
    if len(set(result)) != len(result) or not set(result) <= set(joined):
        raise errors.ValueMismatchError(
            "einsum: the result repeats a letter or has one that no operand has", got=repr(subscripts)
        )
    return names, result


def _diagonals(x: Value, letters: str) -> tuple[Value, str]:
    """An operand in which every letter occurs once: repeated ones become their diagonal."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first = letters.index(letter)
            second = letters.index(letter, first + 1)
            x = products.diagonal(x, 0, first, second)
            letters = letters[:first] + letters[first + 1 : second] + letters[second + 1 :] + letter
    return x, letters


def _drop_ones(term: tuple[Value, str], terms: list[tuple[Value, str]], result: str) -> tuple[Value, str]:
    """Broadcasting: a dimension of size 1 whose letter is larger elsewhere is left out of this operand."""
    x, letters = term
    largest = {c: max(v.shape[names.index(c)] for v, names in terms if c in names) for c in letters}
    kept = [i for i, c in enumerate(letters) if not (x.shape[i] == 1 and largest[c] > 1)]
    if len(kept) == len(letters):
        return term
    return view.reshape(x, [x.shape[i] for i in kept]), "".join(letters[i] for i in kept)


def _check_sizes(subscripts: str, terms: list[tuple[Value, str]]) -> None:
    sizes: dict[str, int] = {}
    for x, letters in terms:
        for letter, size in zip(letters, x.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise errors.TypeMismatchError(
                    f"einsum: {letter!r} has two sizes, {sizes[letter]} and {size}",
                    got=f"{subscripts!r} with {', '.join(str(value.type) for value, _ in terms)}",
                    expected="equal sizes, or 1",
                )


def _cheapest(terms: list[tuple[Value, str]], result: str) -> tuple[int, int]:
    """The pair whose contraction is smallest, the first of equal ones."""
    sizes = {c: n for x, letters in terms for c, n in zip(letters, x.shape, strict=True)}
    best = (math.inf, 0, 1)
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            both = set(terms[i][1]) | set(terms[j][1])
            needed = set(result).union(*(letters for k, (_, letters) in enumerate(terms) if k not in (i, j)))
            grown = math.prod(sizes[c] for c in both & needed) - terms[i][0].size - terms[j][0].size
            best = min(best, (grown, i, j))
    return best[1], best[2]


def _pair(
    a: tuple[Value, str], b: tuple[Value, str], result: str | None, needed: set[str], dtype: DTypeLike
) -> tuple[Value, str]:
    """Contract two terms, keeping the letters that are needed later, in the order of `result` when it is
    the last pair."""
    x, x_letters = _sum_out(a, needed | set(b[1]))
    y, y_letters = _sum_out(b, needed | set(a[1]))
    both = list(dict.fromkeys(x_letters + y_letters))
    out = "".join(c for c in (result if result is not None else both) if c in both and c in needed)
    compute = dtypes.int32 if x.dtype == dtypes.bool_ else x.dtype
    found = contraction.contract(
        f"{x_letters},{y_letters}->{out}",
        convert(x, compute, x.weak),
        convert(y, compute, y.weak),
        preferred_element_type=compute if x.dtype == dtypes.bool_ else dtype,
    )
    return found, out


def _sum_out(term: tuple[Value, str], needed: set[str]) -> tuple[Value, str]:
    x, letters = term
    gone = [i for i, letter in enumerate(letters) if letter not in needed]
    if not gone:
        return term
    return reduction.reduce_sum(x, gone), "".join(letter for letter in letters if letter in needed)
