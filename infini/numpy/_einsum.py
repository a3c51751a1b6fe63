"""`einsum`: two operands go to one contraction as they are written; more are contracted in pairs, in the
order of a path (`_einsum_path`).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import contraction, precision as precision_, reduction, view
from infini.numpy import _axes, _einsum_path, _promotion, products
from infini.numpy._einsum_path import PathInfo
from infini.numpy._promotion import ArrayLike, DTypeLike, convert

Term = tuple[Value, str]
# Any: contracts two terms, keeping some letters
Contract = Callable[[Term, Term, str], Value]


def einsum(
    subscripts: Any,
    /,
    *operands: Any,
    out: None = None,
    optimize: Any = "auto",
    precision: precision_.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    _dot_general: Callable[..., Any] = contraction.dot_general,
    out_sharding: Any = None,
) -> Value:
    """Sum of products by letters, as `numpy.einsum`.

    Args:
        subscripts: letters of every operand and, after `->`, of the result; `...` stands for dimensions that
            broadcast. Without `->` the result has the letters that occur once, in alphabetical order. A
            letter that an operand repeats is its diagonal. Instead of one text, operands may alternate with
            lists of integers or `...`, and a last list names the result.
        *operands: operands.
        out: accepted for NumPy's sake; only None.
        optimize: how to order the contractions of more than two operands: True or "auto" for the cheapest
            order, "greedy" step by step, False from left to right, or a path as `einsum_path` gives.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; the common dtype when absent.
        _dot_general: what contracts pairs, with the signature of `lax.dot_general`.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: the subscripts do not fit the operands, or a letter has two sizes.
        TypeMismatchError: operands do not alternate with lists of integers.
        UnsupportedError: `out` is given.

    Example:
        >>> import infini.numpy as inp
        >>> inp.einsum("bmk,bkn->bmn", inp.ones((2, 3, 4)), inp.ones((2, 4, 5))).shape
        (2, 3, 5)
    """
    _axes.no_out("einsum", out)
    text, arrays = _in_letters(subscripts, operands)
    values = _promotion.operands("einsum", *arrays)
    names, result = _parse(text, [value.ndim for value in values])
    dtype = values[0].dtype
    target = dtype if preferred_element_type is None else dtypes.canonical(preferred_element_type)
    terms = [_diagonals(value, letters) for value, letters in zip(values, names, strict=True)]
    sizes = _sizes(text, [letters for _, letters in terms], [value.shape for value, _ in terms])
    terms = [_drop_ones(term, sizes) for term in terms]
    path = _einsum_path.chosen([letters for _, letters in terms], result, sizes, optimize)
    contract = _contractor(_dot_general, precision, target)
    for positions in path:
        taken = [terms[i] for i in positions]
        terms = [term for i, term in enumerate(terms) if i not in positions]
        needed = set(result).union(*(letters for _, letters in terms))
        while len(taken) > 1:
            others = needed.union(*(letters for _, letters in taken[2:]))
            is_last = not terms and len(taken) == 2
            taken = [_pair(taken[0], taken[1], result if is_last else None, others, contract), *taken[2:]]
        terms.append(taken[0])
    value, letters = _sum_out(terms[0], set(result))
    value = view.transpose(value, [letters.index(letter) for letter in result])
    is_weak = preferred_element_type is None and all(v.weak for v in values)
    return contraction.placed(convert(value, target, is_weak), out_sharding)


def einsum_path(
    subscripts: Any, /, *operands: Any, optimize: Any = "auto"
) -> tuple[list[tuple[int, ...]], PathInfo]:
    """The order in which `einsum` would contract some operands, without doing it.

    Args:
        subscripts: as for `einsum`.
        *operands: operands, or anything with a shape.
        optimize: as for `einsum`.

    Returns:
        The path, which `einsum` takes as `optimize`, and what it costs, for printing.

    Raises:
        ValueMismatchError: the subscripts do not fit the operands, or a letter has two sizes.

    Example:
        >>> import infini.numpy as inp
        >>> inp.einsum_path("ij,jk,kl", inp.ones((2, 9)), inp.ones((9, 9)), inp.ones((9, 2)))[0]
        [(0, 1), (0, 1)]
    """
    text, arrays = _in_letters(subscripts, operands)
    shapes = [tuple(getattr(x, "shape", ())) for x in arrays]
    names, result = _parse(text, [len(shape) for shape in shapes])
    sizes = _sizes(text, names, shapes)
    path = _einsum_path.chosen(names, result, sizes, optimize)
    return list(path), _einsum_path.info(names, result, sizes, path)


# --- what is written -------------------------------------------------------------------------------


def _in_letters(subscripts: Any, rest: Sequence[Any]) -> tuple[str, list[ArrayLike]]:
    """The text of the subscripts and the operands, also when these alternate."""
    if isinstance(subscripts, str):
        return subscripts.replace(" ", ""), list(rest)
    items = [subscripts, *rest]
    arrays, lists = items[0 : len(items) - 1 : 2], items[1::2]
    out = items[-1] if len(items) % 2 else None
    named = [*lists, *([] if out is None else [out])]
    if not all(isinstance(x, (list, tuple)) for x in named):
        raise errors.TypeMismatchError(
            "einsum: operands have to alternate with lists of integers",
            got=f"{len(items)} arguments, of types {', '.join(type(x).__name__ for x in items)}",
            expected="einsum(x, [0, 1], y, [1, 2], [0, 2]), or subscripts in one text",
        )
    used = sorted({i for indices in named for i in indices if i is not Ellipsis})
    numbers = dict(zip(used, string.ascii_letters, strict=False))

    def letters(indices: Any) -> str:
        return "".join("..." if i is Ellipsis else numbers[i] for i in indices)

    left = ",".join(map(letters, lists))
    text = left if out is None else f"{left}->{letters(out)}"
    return text, arrays


def _parse(text: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters of every operand and of the result, with `...` replaced by letters that are free."""
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(ranks):
        raise errors.ValueMismatchError(
            "einsum: the subscripts name another number of operands",
            got=f"{text!r} and {len(ranks)} operands",
        )
    unused = sorted(set(string.ascii_letters) - set(text), reverse=True)
    extra = [rank - len(part.replace("...", "", 1)) for part, rank in zip(parts, ranks, strict=True)]
    longest = max((n for n, part in zip(extra, parts, strict=True) if "..." in part), default=0)
    ellipsis = "".join(unused[:longest])
    names = []
    for part, rank, count in zip(parts, ranks, extra, strict=True):
        letters = part.replace("...", ellipsis[longest - count :] if count > 0 else "", 1)
        if not (letters or "a").isalpha() or len(letters) != rank or count < 0:
            raise errors.ValueMismatchError(
                f"einsum: the subscripts {part!r} do not fit an operand",
                got=f"an operand of {rank} dimensions in {text!r}",
                expected="one letter per dimension, and ... at most once",
            )
        names.append(letters)
    joined = "".join(names)
    if arrow:
        result = right.replace("...", ellipsis, 1)
    else:
        result = ellipsis + "".join(sorted(c for c in set(joined) - set(ellipsis) if joined.count(c) == 1))
    if len(set(result)) != len(result) or not set(result) <= set(joined):
        raise errors.ValueMismatchError(
            "einsum: the result repeats a letter or has one that no operand has", got=repr(text)
        )
    return names, result


def _sizes(text: str, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """Size of each letter; those of size 1 broadcast."""
    sizes: dict[str, int] = {}
    for letters, shape in zip(names, shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            known = sizes.get(letter, 1)
            if known != 1 and size not in (1, known):
                raise errors.ValueMismatchError(
                    f"einsum: {letter!r} has two sizes, {known} and {size}",
                    got=f"{text!r} with shapes {', '.join(str(tuple(s)) for s in shapes)}",
                    expected="equal sizes, or 1",
                )
            sizes[letter] = size if known == 1 else known
    return sizes


def _diagonals(x: Value, letters: str) -> Term:
    """An operand in which every letter occurs once: repeated ones become their diagonal."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first = letters.index(letter)
            second = letters.index(letter, first + 1)
            if x.shape[first] != x.shape[second]:
                raise errors.ValueMismatchError(
                    f"einsum: {letter!r} has two sizes in one operand",
                    got=str(x.type),
                    expected="equal sizes",
                )
            x = products.diagonal(x, 0, first, second)
            letters = letters[:first] + letters[first + 1 : second] + letters[second + 1 :] + letter
    return x, letters


def _drop_ones(term: Term, sizes: dict[str, int]) -> Term:
    """Broadcasting: a dimension of size 1 whose letter is larger elsewhere is left out of this operand."""
    x, letters = term
    kept = [i for i, c in enumerate(letters) if not (x.shape[i] == 1 and sizes[c] != 1)]
    if len(kept) == len(letters):
        return term
    return view.reshape(x, [x.shape[i] for i in kept]), "".join(letters[i] for i in kept)


# --- what is computed ------------------------------------------------------------------------------


def _contractor(
    dot_general: Callable[..., Any], precision: precision_.PrecisionLike, dtype: DTypeLike
) -> Contract:
    """What contracts pairs: `lax.contract`, or what the user gives in place of `lax.dot_general`."""

    def by_letters(a: Term, b: Term, out: str) -> Value:
        (x, left), (y, right) = a, b
        spec = f"{left},{right}->{out}"
        return contraction.contract(spec, x, y, precision=precision, preferred_element_type=dtype)

    def by_numbers(a: Term, b: Term, out: str) -> Value:
        (x, left), (y, right) = a, b
        shared = [c for c in left if c in right]
        batch = [c for c in out if c in shared]
        summed = [c for c in shared if c not in out]
        numbers = tuple(
            (tuple(left.index(c) for c in group), tuple(right.index(c) for c in group))
            for group in (summed, batch)
        )
        found = dot_general(x, y, numbers, precision=precision, preferred_element_type=dtype)
        order = batch + [c for c in left if c not in shared] + [c for c in right if c not in shared]
        return view.transpose(found, [order.index(c) for c in out])

    return by_letters if dot_general is contraction.dot_general else by_numbers


def _pair(a: Term, b: Term, result: str | None, needed: set[str], contract: Contract) -> Term:
    """Contract two terms, keeping the letters that are needed later, in the order of `result` when it is
    the last pair.
    """
    a, b = _sum_out(a, needed | set(b[1])), _sum_out(b, needed | set(a[1]))
    both = dict.fromkeys(a[1] + b[1])
    out = "".join(c for c in (result if result is not None else both) if c in both and c in needed)
    return contract(a, b, out), out


def _sum_out(term: Term, needed: set[str]) -> Term:
    x, letters = term
    gone = [i for i, letter in enumerate(letters) if letter not in needed]
    if not gone:
        return term
    kept = "".join(letter for letter in letters if letter in needed)
    if x.dtype == dtypes.bool_:
        return convert(reduction.reduce_max(x, gone), dtypes.bool_), kept
    return reduction.reduce_sum(x, gone), kept
