"""What the tests of split dimensions share: a function run on devices in lockstep against the same function
on one device, and what it communicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition
from infini.core import check, tree
from infini.core.mesh import AbstractMesh
from infini.sharding import NamedSharding, P, make_mesh

Counts = dict[str, int]


def counts(f: Callable[..., Any], args: Sequence[Any], specs: Sequence[P], sizes: Sequence[int]) -> Counts:
    """How many collectives of each name the partitioner inserts."""
    return {name: count for name, (count, _) in traffic(f, args, specs, sizes).items()}


def traffic(
    f: Callable[..., Any], args: Sequence[Any], specs: Sequence[P], sizes: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """For each collective how often it is used, and how many bytes a device gives altogether."""
    mesh = AbstractMesh(("a", "b")[: len(sizes)], tuple(sizes))
    program = inf.make_jaxpr(f)(*args)
    found = partition.partition(program, mesh, [tuple(s) for s in specs])
    check.check(found.program)
    total: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for c in found.collectives:
        total[c.name] += 1
        nbytes[c.name] += c.nbytes
    return {name: (total[name], nbytes[name]) for name in sorted(total)}


def assert_same(
    f: Callable[..., Any],
    args: Sequence[Any],
    specs: Sequence[P],
    sizes: Sequence[int],
    *,
    exact: bool = False,
) -> None:
    """The results on a mesh equal those on one device."""
    mesh = make_mesh(tuple(sizes), ("a", "b")[: len(sizes)])
    expected = inf.jit(f)(*args)
    placed = [inf.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(args, specs, strict=True)]
    found = inf.jit(f)(*placed)
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        if exact:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        else:
            np.testing.assert_allclose(_wide(a), _wide(b), rtol=5e-5, atol=2e-5)


def _wide(x: Any) -> np.ndarray:
    host = np.asarray(x)
    return host if host.dtype.kind == "c" else host.astype(np.float64)


def gradient_of(f: Callable[..., Any], num_args: int) -> Callable[..., Any]:
    """The gradient of a loss of the floating results of a function."""

    def loss(*args: Any) -> Any:
        leaves = [leaf for leaf in tree.leaves(f(*args)) if np.issubdtype(leaf.dtype, np.floating)]
        return sum((inf.numpy.sin(leaf) * leaf).sum() for leaf in leaves)

    return inf.grad(loss, argnums=tuple(range(num_args)))


def scanned(x: Any, w: Any) -> Any:  # Any: arrays
    """A scan of products, to try on parts."""

    def step(carry, row):
        carry = inp.tanh(carry @ w + row)
        return carry, carry.sum()

    return lax.scan(step, x[0], x)


def looped(x: Any, w: Any) -> Any:  # Any: arrays
    """A loop that ends when a sum says so, to try on parts."""

    return lax.while_loop(lambda c: (c[0] < 3) & (c[1].sum() < 1e6), lambda c: (c[0] + 1, c[1] @ w), (0, x))
