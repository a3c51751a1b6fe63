"""Pytrees: optree under JAX's names and rules.

As in JAX, None is a node without children, dictionaries are flattened in the order of their sorted keys, and
deques are leaves. `core.tree_nodes` says which classes are nodes, `core.tree_flatten` takes trees apart.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import optree

from infini.core import errors
from infini.core.tree_flatten import (
    IsLeaf,
    PyTree as PyTree,
    PyTreeDef as PyTreeDef,
    flatten as flatten,
    flatten_one_level as flatten_one_level,
    flatten_one_level_with_keys as flatten_one_level_with_keys,
    flatten_with_path as flatten_with_path,
    is_tree_node as is_tree_node,
    keystr as keystr,
    leaves as leaves,
    leaves_with_path as leaves_with_path,
    mismatch,
    structure as structure,
    unflatten as unflatten,
)
from infini.core.tree_nodes import (
    NAMESPACE,
    DictKey as DictKey,
    FlattenedIndexKey as FlattenedIndexKey,
    GetAttrKey as GetAttrKey,
    KeyEntry as KeyEntry,
    KeyPath as KeyPath,
    Partial as Partial,
    SequenceKey as SequenceKey,
    register_dataclass as register_dataclass,
    register_pytree_node as register_pytree_node,
    register_pytree_node_class as register_pytree_node_class,
    register_pytree_with_keys as register_pytree_with_keys,
    register_pytree_with_keys_class as register_pytree_with_keys_class,
    register_static as register_static,
)

T = TypeVar("T")


# --- mapping and combining ------------------------------------------------------------------------


def map(f: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf: IsLeaf = None) -> PyTree:
    """Apply `f` to the leaves of `tree` and the matching subtrees of `rest`.

    Raises:
        ValueMismatchError: a tree of `rest` does not have the structure of `tree`; the message says where.

    Example:
        >>> from infini.core import tree
        >>> tree.map(lambda x, y: x + y, {"a": 1}, {"a": 2})
        {'a': 3}
    """
    leaves_, treedef = flatten(tree, is_leaf)
    columns = [leaves_, *(_up_to(treedef, other, "tree.map", is_leaf, tree) for other in rest)]
    return unflatten(treedef, [f(*xs) for xs in zip(*columns, strict=True)])


def _up_to(treedef: PyTreeDef, other: PyTree, what: str, is_leaf: IsLeaf, first: PyTree) -> list[Any]:
    """The subtrees of `other` at the leaves of a structure."""
    try:
        return treedef.flatten_up_to(other)
    except ValueError as error:
        problem = mismatch(first, other, is_leaf)
        raise errors.ValueMismatchError(
            f"{what} was given trees of different structure{problem.place if problem else ''}",
            got=problem.got if problem else str(error),
            expected=problem.expected if problem else "the structure of the first tree in every other",
        ) from error


def all(tree: PyTree, *, is_leaf: IsLeaf = None) -> bool:
    """Whether every leaf is true."""
    return not any(not leaf for leaf in leaves(tree, is_leaf))


class _Absent:
    """Stands for an argument that was not given; None is a possible value."""


def reduce(
    function: Callable[[T, Any], T],
    tree: PyTree,
    initializer: T | type[_Absent] = _Absent,
    is_leaf: IsLeaf = None,
) -> T:
    """Combine the leaves from left to right with `function`, starting from `initializer` when given.

    Raises:
        TypeMismatchError: there are no leaves and no `initializer`.
    """
    items = iter(leaves(tree, is_leaf))
    result: Any = next(items, _Absent) if initializer is _Absent else initializer
    if result is _Absent:
        raise errors.TypeMismatchError("tree.reduce of a tree without leaves", fix="pass initializer=")
    for item in items:
        result = function(result, item)
    return result


def reduce_associative(
    operation: Callable[[T, T], T],
    tree: PyTree,
    *,
    identity: T | type[_Absent] = _Absent,
    is_leaf: IsLeaf = None,
) -> T:
    """Combine the leaves pairwise, as a tree of small depth; `operation` must be associative.

    Raises:
        TypeMismatchError: there are no leaves and no `identity`.
    """

    def combine(items: Sequence[Any]) -> Any:
        if len(items) == 1:
            return items[0]
        middle = len(items) // 2
        return operation(combine(items[:middle]), combine(items[middle:]))

    found = leaves(tree, is_leaf)
    if found:
        return combine(found)
    if identity is _Absent:
        raise errors.TypeMismatchError(
            "tree.reduce_associative of a tree without leaves", fix="pass identity="
        )
    return identity  # type: ignore[return-value]  # it is given


def transpose(
    outer_treedef: PyTreeDef, inner_treedef: PyTreeDef | None, pytree_to_transpose: PyTree
) -> PyTree:
    """Turn a tree of trees inside out.

    Args:
        outer_treedef: structure of the outer tree.
        inner_treedef: structure of each of its leaves; found from the first when None.
        pytree_to_transpose: tree of structure outer, with subtrees of structure inner.

    Raises:
        TypeMismatchError: the tree does not have that structure.
    """
    found, treedef = flatten(pytree_to_transpose)
    if inner_treedef is None:
        subtrees = outer_treedef.flatten_up_to(pytree_to_transpose)
        inner_treedef = structure(subtrees[0])
    if treedef.num_leaves != outer_treedef.num_leaves * inner_treedef.num_leaves:
        raise errors.TypeMismatchError(
            "tree.transpose was given a tree of another structure",
            got=str(treedef),
            expected=str(outer_treedef.compose(inner_treedef)),
        )
    width = inner_treedef.num_leaves
    columns = [found[i::width] for i in range(width)]
    return unflatten(inner_treedef, [unflatten(outer_treedef, column) for column in columns])


def broadcast(prefix_tree: PyTree, full_tree: PyTree, is_leaf: IsLeaf = None) -> PyTree:
    """A tree of the structure of `full_tree`, with each leaf of `prefix_tree` in place of what it stands for.

    Raises:
        ValueMismatchError: `prefix_tree` is no prefix of `full_tree`.
    """
    found, treedef = flatten(prefix_tree, is_leaf)
    subtrees = _up_to(treedef, full_tree, "tree.broadcast", is_leaf, prefix_tree)
    pairs = zip(found, subtrees, strict=True)
    spread = [itertools.repeat(leaf, structure(subtree, is_leaf).num_leaves) for leaf, subtree in pairs]
    return unflatten(structure(full_tree, is_leaf), itertools.chain.from_iterable(spread))


def all_leaves(iterable: Iterable[Any], is_leaf: IsLeaf = None) -> bool:
    """Whether every item is a leaf itself; None is not."""
    items = list(iterable)
    found = leaves(items, is_leaf)
    return len(found) == len(items) and not any(a is not b for a, b in zip(found, items, strict=True))


# --- paths ----------------------------------------------------------------------------------------


def map_with_path(
    f: Callable[..., Any],
    tree: PyTree,
    *rest: PyTree,
    is_leaf: Callable[..., bool] | None = None,
    is_leaf_takes_path: bool = False,
) -> PyTree:
    """As `map`, with the path of keys as the first argument of `f`."""
    pairs, treedef = flatten_with_path(tree, is_leaf, is_leaf_takes_path)
    test = None if is_leaf_takes_path else is_leaf
    others = [_up_to(treedef, other, "tree.map_with_path", test, tree) for other in rest]
    return unflatten(treedef, [f(path, leaf, *xs) for (path, leaf), *xs in zip(pairs, *others, strict=True)])


def static(**options: Any) -> Any:  # Any: as dataclasses.field
    """A field of a dataclass that is structure and no child: a `dataclasses.field` marked static.

    Args:
        **options: options of `dataclasses.field`.
    """
    metadata = {"static": True, **(options.pop("metadata", None) or {})}
    return dataclasses.field(metadata=metadata, **options)


def treedef_children(treedef: PyTreeDef) -> list[PyTreeDef]:
    """Structures of the children of a structure's root."""
    return treedef.children()


def treedef_is_leaf(treedef: PyTreeDef) -> bool:
    """Whether a structure is a single node: a leaf, or a container of nothing."""
    return treedef.num_nodes == 1


def treedef_tuple(treedefs: Iterable[PyTreeDef]) -> PyTreeDef:
    """Structure of a tuple of trees."""
    return optree.treespec_tuple(list(treedefs), namespace=NAMESPACE)
