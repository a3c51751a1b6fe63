"""The order in which `einsum` contracts more than two operands.

The best order is found for few operands by dynamic programming over sets of them (as in "Faster
identification of optimal contraction sequences for tensor networks", arXiv:1304.6112), and step by step for
more. A path is a list of positions: the operands there are taken out, and their contraction goes to the end,
as in NumPy.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from infini.core import errors

Path: TypeAlias = tuple[tuple[int, ...], ...]
Letters: TypeAlias = frozenset[str]

MAX_OPTIMAL: Final = 8  # operands of which every order is considered
_OPTIMAL: Final = ("optimal", "auto", "auto-hq", "dp", "optimize", "branch-all", "branch-2", "branch-1")
_GREEDY: Final = ("greedy", "eager", "opportunistic", "random-greedy", "random-greedy-128")


@dataclass(frozen=True, slots=True)
class Step:
    """One contraction of a path.

    Args:
        positions: operands it takes.
        spec: what it does, as a spec of einsum.
        flops: products it computes.
        size: elements of its result.
    """

    positions: tuple[int, ...]
    spec: str
    flops: int
    size: int


@dataclass(frozen=True, slots=True)
class PathInfo:
    """What a path costs; printed by people who tune an einsum.

    Args:
        spec: the whole einsum.
        naive_flops: products without an order.
        steps: contractions in order.
    """

    spec: str
    naive_flops: int
    steps: tuple[Step, ...]

    @property
    def opt_cost(self) -> int:
        """Products that the path computes."""
        return sum(step.flops for step in self.steps)

    @property
    def largest_intermediate(self) -> int:
        """Elements of the largest result on the way."""
        return max((step.size for step in self.steps), default=0)

    def __str__(self) -> str:
        lines = [
            f"einsum {self.spec}",
            f"  products at once:    {self.naive_flops:.3e}",
            f"  products along path: {self.opt_cost:.3e}",
            f"  largest result:      {self.largest_intermediate:.3e} elements",
        ]
        lines += [f"  {step.positions!s:<12} {step.spec}" for step in self.steps]
        return "\n".join(lines)

    __repr__ = __str__


def chosen(names: Sequence[str], result: str, sizes: Mapping[str, int], optimize: Any) -> Path:
    """The path for some operands.

    Args:
        names: letters of each operand.
        result: letters of the result.
        sizes: size of each letter.
        optimize: True or the name of a strategy; False for all operands from left to right; or a path.

    Raises:
        ValueMismatchError: there is no such strategy, or the path does not fit the operands.
    """
    has_steps = isinstance(optimize, (list, tuple)) and not all(isinstance(p, (str, int)) for p in optimize)
    if has_steps:
        return _checked([p for p in optimize if not isinstance(p, str)], len(names), optimize)
    # NumPy's pairs of a strategy and a limit of memory; there is no such limit here.
    strategy = optimize[0] if isinstance(optimize, (list, tuple)) and optimize else optimize
    if strategy is False:
        return tuple((0, 1) if i == 0 else (0, len(names) - 1 - i) for i in range(len(names) - 1)) or ((0,),)
    if strategy is not True and strategy not in (*_OPTIMAL, *_GREEDY):
        raise errors.ValueMismatchError(
            "einsum: there is no such way to order contractions",
            got=f"optimize={optimize!r}",
            expected="True, False, a path, or one of " + ", ".join((*_OPTIMAL, *_GREEDY)),
        )
    is_greedy = strategy in _GREEDY or len(names) > MAX_OPTIMAL
    return _found(tuple(names), result, tuple(sorted(sizes.items())), is_greedy)


def _checked(path: Sequence[Any], count: int, given: object) -> Path:
    found = []
    for positions in path:
        step = tuple(positions)
        if not step or len(set(step)) != len(step) or not all(0 <= i < count for i in step):
            raise errors.ValueMismatchError(
                "einsum: this is no path for the operands", got=f"optimize={given!r}"
            )
        count -= len(step) - 1
        found.append(step)
    if count != 1:
        raise errors.ValueMismatchError(
            "einsum: the path does not contract all operands", got=f"optimize={given!r}"
        )
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def _found(names: tuple[str, ...], result: str, sizes: tuple[tuple[str, int], ...], is_greedy: bool) -> Path:
    if len(names) == 1:
        return ((0,),)
    terms = [frozenset(letters) for letters in names]
    if is_greedy:
        return _greedy(terms, frozenset(result), dict(sizes))
    return _as_path(_optimal(terms, frozenset(result), dict(sizes)), len(names))


def _volume(letters: Iterable[str], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[c] for c in letters)


def _optimal(terms: Sequence[Letters], result: Letters, sizes: Mapping[str, int]) -> Any:  # Any: nested pairs
    """The cheapest tree over all operands, as nested pairs of their numbers."""
    count = len(terms)
    full = (1 << count) - 1
    union = [frozenset[str]()] * (full + 1)
    for mask in range(1, full + 1):
        lowest = mask & -mask
        union[mask] = union[mask ^ lowest] | terms[lowest.bit_length() - 1]
    kept = [union[mask] & (union[full ^ mask] | result) for mask in range(full + 1)]
    best: dict[int, tuple[int, Any]] = {1 << i: (0, i) for i in range(count)}
    for size in range(2, count + 1):
        for members in itertools.combinations(range(count), size):
            mask = sum(1 << i for i in members)
            # Every split is seen once: the first part has the lowest member.
            lowest, rest = mask & -mask, mask ^ (mask & -mask)
            part = rest
            found: tuple[int, Any] | None = None
            while part:
                part = (part - 1) & rest
                left, right = lowest | part, rest ^ part
                cost = best[left][0] + best[right][0] + _volume(kept[left] | kept[right], sizes)
                if found is None or cost < found[0]:
                    found = cost, (best[left][1], best[right][1])
            assert found is not None, "two operands can be split"
            best[mask] = found
    return best[full][1]


def _as_path(tree: Any, count: int) -> Path:  # Any: nested pairs
    """Positions of the operands of each contraction in the list that is left."""
    have: list[Any] = list(range(count))
    path = []

    def visit(node: Any) -> None:  # Any: nested pairs
        if isinstance(node, int):
            return
        for part in node:
            visit(part)
        positions = tuple(sorted(have.index(part) for part in node))
        path.append(positions)
        for position in reversed(positions):
            have.pop(position)
        have.append(node)

    visit(tree)
    return tuple(path)


def _greedy(terms: list[Letters], result: Letters, sizes: Mapping[str, int]) -> Path:
    """At every step the pair whose contraction grows the operands least."""
    terms = list(terms)
    path = []
    while len(terms) > 1:
        best = (math.inf, 0, 1)
        for i, j in itertools.combinations(range(len(terms)), 2):
            needed = result.union(*(t for k, t in enumerate(terms) if k not in (i, j)))
            kept = (terms[i] | terms[j]) & needed
            grown = _volume(kept, sizes) - _volume(terms[i], sizes) - _volume(terms[j], sizes)
            best = min(best, (grown, i, j))
        _, i, j = best
        path.append((i, j))
        pair = terms[i] | terms[j]
        terms = [t for k, t in enumerate(terms) if k not in (i, j)]
        terms.append(pair & result.union(*terms))
    return tuple(path)


def info(names: Sequence[str], result: str, sizes: Mapping[str, int], path: Path) -> PathInfo:
    """What a path costs."""
    terms = list(names)
    naive = _volume(set("".join(names)), sizes) * max(1, len(names) - 1)
    steps = []
    for positions in path:
        taken = [terms[i] for i in positions]
        terms = [t for i, t in enumerate(terms) if i not in positions]
        both = dict.fromkeys("".join(taken))
        needed = set(result).union(*terms)
        out = result if not terms else "".join(c for c in both if c in needed)
        flops = _volume(both, sizes) * max(1, len(taken) - 1)
        steps.append(Step(tuple(positions), f"{','.join(taken)}->{out}", flops, _volume(out, sizes)))
        terms.append(out)
    return PathInfo(f"{','.join(names)}->{result}", naive, tuple(steps))
