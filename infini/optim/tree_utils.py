"""Arithmetic of pytrees, with the names of `optax.tree_utils`."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import infini.numpy as inp
from infini import Array, tree
from infini.optim import moments
from infini.optim.base import DType

Tree: TypeAlias = Any  # Any: a pytree of arrays
Scalar: TypeAlias = float | Array

tree_update_moment = moments.update_moment
tree_update_moment_per_elem_norm = moments.update_moment_per_elem_norm
tree_update_infinity_moment = moments.update_infinity_moment
tree_bias_correction = moments.bias_correction


def tree_add(tree_x: Tree, tree_y: Tree, *other_trees: Tree) -> Tree:
    """The sum of pytrees."""
    return tree.map(lambda *leaves: functools.reduce(inp.add, leaves), tree_x, tree_y, *other_trees)


def tree_sub(tree_x: Tree, tree_y: Tree) -> Tree:
    """The difference of two pytrees."""
    return tree.map(inp.subtract, tree_x, tree_y)


def tree_mul(tree_x: Tree, tree_y: Tree) -> Tree:
    """The product of two pytrees, element by element."""
    return tree.map(inp.multiply, tree_x, tree_y)


def tree_div(tree_x: Tree, tree_y: Tree) -> Tree:
    """The quotient of two pytrees, element by element."""
    return tree.map(inp.divide, tree_x, tree_y)


def tree_scale(scalar: Scalar, tree: Tree) -> Tree:  # the name of the argument is optax's
    """A number times a pytree."""
    return _map(lambda x: scalar * x, tree)


def tree_add_scale(tree_x: Tree, scalar: Scalar, tree_y: Tree) -> Tree:
    """`x + scalar * y`."""
    return tree.map(lambda x, y: x + scalar * y, tree_x, tree_y)


def tree_vdot(tree_x: Tree, tree_y: Tree) -> Array:
    """The inner product of two pytrees."""
    return tree_sum(tree.map(lambda x, y: inp.sum(inp.conj(x) * y), tree_x, tree_y))


def tree_sum(tree: Tree) -> Array:
    """The sum of all elements."""
    return functools.reduce(inp.add, [inp.sum(leaf) for leaf in _leaves(tree)], inp.zeros(()))


def tree_max(tree: Tree) -> Array:
    """The largest element."""
    return functools.reduce(
        inp.maximum, [inp.max(leaf) for leaf in _leaves(tree) if leaf.size], inp.asarray(-inp.inf)
    )


def tree_min(tree: Tree) -> Array:
    """The smallest element."""
    return functools.reduce(
        inp.minimum, [inp.min(leaf) for leaf in _leaves(tree) if leaf.size], inp.asarray(inp.inf)
    )


def tree_size(tree: Tree) -> int:
    """The number of elements."""
    return sum(leaf.size for leaf in _leaves(tree))


def tree_norm(tree: Tree, ord: int | float | str | None = None, squared: bool = False) -> Array:  # noqa: A002
    """A norm of all elements together: the Euclidean one, 1 or infinity.

    Args:
        tree: pytree of arrays.
        ord: None or 2, 1, or `inf`.
        squared: give its square.
    """
    if ord in (None, 2):
        total = tree_sum(_map(moments.squared, tree))
        return total if squared else inp.sqrt(total)
    found = tree_sum(_map(inp.abs, tree)) if ord == 1 else tree_max(_map(inp.abs, tree))
    return found * found if squared else found


def tree_zeros_like(tree: Tree, dtype: DType | None = None) -> Tree:
    """Zeros of the same shapes."""
    return _map(lambda x: inp.zeros_like(x, dtype=dtype), tree)


def tree_ones_like(tree: Tree, dtype: DType | None = None) -> Tree:
    """Ones of the same shapes."""
    return _map(lambda x: inp.ones_like(x, dtype=dtype), tree)


def tree_full_like(tree: Tree, fill_value: Scalar, dtype: DType | None = None) -> Tree:
    """One value in the same shapes."""
    return _map(lambda x: inp.full_like(x, fill_value, dtype=dtype), tree)


def tree_cast(tree: Tree, dtype: DType | None) -> Tree:
    """Leaves in a dtype, as they are when there is none."""
    return moments.cast(tree, dtype)


def tree_cast_like(tree_x: Tree, other_tree: Tree) -> Tree:
    """Leaves in the dtypes of another pytree."""
    return tree.map(lambda x, other: x.astype(other.dtype), tree_x, other_tree)


def tree_clip(tree: Tree, min_value: Scalar | None = None, max_value: Scalar | None = None) -> Tree:
    """Elements limited to a range."""
    return _map(lambda x: inp.clip(x, min_value, max_value), tree)


def tree_where(condition: Array, tree_x: Tree, tree_y: Tree) -> Tree:
    """Leaves of one pytree where a condition holds, those of the other elsewhere."""
    return tree.map(lambda x, y: inp.where(condition, x, y), tree_x, tree_y)


_map, _leaves = tree.map, tree.leaves
