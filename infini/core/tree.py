"""Pytrees: optree under JAX's names and rules. The only file that imports optree.

As in JAX, None is a node without children and dictionaries are flattened in the order of their sorted keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import optree

from infini.core import errors

PyTree: TypeAlias = Any  # Any: nested containers of anything
PyTreeDef: TypeAlias = optree.PyTreeSpec
IsLeaf: TypeAlias = Callable[[Any], bool] | None
_NAMESPACE = "infini"


def flatten(tree: PyTree, is_leaf: IsLeaf = None) -> tuple[list[Any], PyTreeDef]:
    """Leaves of a tree from left to right, and its structure."""
    leaves_, treedef = optree.tree_flatten(tree, is_leaf, namespace=_NAMESPACE)
    return leaves_, treedef


def unflatten(treedef: PyTreeDef, leaves: Iterable[Any]) -> PyTree:
    """The tree with this structure and these leaves."""
    return optree.tree_unflatten(treedef, leaves)


def leaves(tree: PyTree, is_leaf: IsLeaf = None) -> list[Any]:
    """Leaves of a tree from left to right."""
    return optree.tree_leaves(tree, is_leaf, namespace=_NAMESPACE)


def structure(tree: PyTree, is_leaf: IsLeaf = None) -> PyTreeDef:
    """Structure of a tree."""
    return optree.tree_structure(tree, is_leaf, namespace=_NAMESPACE)


def map(f: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf: IsLeaf = None) -> PyTree:
    """Apply `f` to the leaves of `tree` and the matching subtrees of `rest`.

    Raises:
        ValueMismatchError: a tree of `rest` does not have the structure of `tree`.

    Example:
        >>> from infini.core import tree
        >>> tree.map(lambda x, y: x + y, {"a": 1}, {"a": 2})
        {'a': 3}
    """
    try:
        return optree.tree_map(f, tree, *rest, is_leaf=is_leaf, namespace=_NAMESPACE)
    except ValueError as error:
        if rest and any(structure(other, is_leaf) != structure(tree, is_leaf) for other in rest):
            raise errors.ValueMismatchError(
                "tree.map was given trees of different structure",
                got="; ".join(str(structure(t, is_leaf)) for t in (tree, *rest)),
                expected="the structure of the first tree in every other",
            ) from error
        raise


def all(tree: PyTree, *, is_leaf: IsLeaf = None) -> bool:
    """Whether every leaf is true."""
    return optree.tree_all(tree, is_leaf=is_leaf, namespace=_NAMESPACE)


def reduce(f: Callable[[Any, Any], Any], tree: PyTree, *initial: Any, is_leaf: IsLeaf = None) -> Any:
    """Combine the leaves from left to right with `f`, starting from `initial` when given."""
    items = iter(leaves(tree, is_leaf))
    result = initial[0] if initial else next(items)
    for item in items:
        result = f(result, item)
    return result


def transpose(outer_treedef: PyTreeDef, inner_treedef: PyTreeDef, pytree_to_transpose: PyTree) -> PyTree:
    """Turn a tree of trees inside out."""
    return optree.tree_transpose(outer_treedef, inner_treedef, pytree_to_transpose)


def flatten_with_path(
    tree: PyTree, is_leaf: IsLeaf = None
) -> tuple[list[tuple[tuple[Any, ...], Any]], PyTreeDef]:
    """Leaves with the keys that lead to them, and the structure."""
    paths, leaves_, treedef = optree.tree_flatten_with_path(tree, is_leaf, namespace=_NAMESPACE)
    return list(zip(paths, leaves_, strict=True)), treedef


def map_with_path(f: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf: IsLeaf = None) -> PyTree:
    """As `map`, with the path of keys as the first argument of `f`."""
    return optree.tree_map_with_path(f, tree, *rest, is_leaf=is_leaf, namespace=_NAMESPACE)


def keystr(path: Sequence[Any]) -> str:
    """A path as text, such as `['layers'][0]`."""
    return "".join(f"[{key!r}]" for key in path)


def register_pytree_node(
    nodetype: type,
    flatten_func: Callable[[Any], tuple[Iterable[Any], Any]],
    unflatten_func: Callable[[Any, Any], Any],
) -> None:
    """Make a class a pytree node: `flatten_func(x) -> (children, aux)`, `unflatten_func(aux, children) ->
    x`.
    """
    optree.register_pytree_node(nodetype, flatten_func, unflatten_func, namespace=_NAMESPACE)


def register_dataclass(
    nodetype: type, data_fields: Sequence[str] | None = None, meta_fields: Sequence[str] | None = None
) -> type:
    """Make a dataclass a pytree node; `meta_fields` (or fields with `metadata={"static": True}`) are not
    leaves.

    Raises:
        TypeMismatchError: the class is no dataclass and no fields are named.
    """
    if data_fields is None:
        if not dataclasses.is_dataclass(nodetype):
            raise errors.TypeMismatchError(
                f"{nodetype.__name__} is not a dataclass", fix="name data_fields= and meta_fields="
            )
        fields = [field for field in dataclasses.fields(nodetype) if field.init]
        meta_fields = [field.name for field in fields if field.metadata.get("static", False)]
        data_fields = [field.name for field in fields if field.name not in meta_fields]
    data, meta = tuple(data_fields), tuple(meta_fields or ())

    def to_children(node: Any) -> tuple[Any, Any, Any]:
        return [getattr(node, name) for name in data], tuple(getattr(node, name) for name in meta), data

    def from_children(aux: Any, children: Any) -> Any:
        node: Any = object.__new__(nodetype)
        for name, value in (*zip(data, children, strict=True), *zip(meta, aux, strict=True)):
            object.__setattr__(node, name, value)
        return node

    optree.register_pytree_node(nodetype, to_children, from_children, namespace=_NAMESPACE)
    return nodetype
