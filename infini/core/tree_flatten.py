"""Flattening: leaves, structure, paths, one level at a time, and where two trees part.

Used through `core.tree`, which has the rest of JAX's functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import optree

from infini.core import errors, tree_nodes
from infini.core.tree_nodes import (
    NAMESPACE,
    DictKey,
    FlattenedIndexKey,
    GetAttrKey,
    KeyPath,
    SequenceKey,
)

PyTree: TypeAlias = Any  # Any: nested containers of anything
PyTreeDef: TypeAlias = optree.PyTreeSpec
IsLeaf: TypeAlias = Callable[[Any], bool] | None
_MAX_KNOWN: Final = 4096


def flatten(tree: PyTree, is_leaf: IsLeaf = None) -> tuple[list[Any], PyTreeDef]:
    """Leaves of a tree from left to right, and its structure.

    Raises:
        ValueMismatchError: a dictionary has keys that cannot be sorted.
    """
    leaves_, treedef = optree.tree_flatten(tree, is_leaf, namespace=NAMESPACE)
    if not _is_known(treedef) and not _is_as_in_jax(treedef):
        leaves_, treedef = optree.tree_flatten(tree, _strict(is_leaf), namespace=NAMESPACE)
    return leaves_, treedef


def unflatten(treedef: PyTreeDef, leaves: Iterable[Any]) -> PyTree:
    """The tree with this structure and these leaves.

    Raises:
        ValueMismatchError: there are too few or too many leaves.
    """
    given = leaves if isinstance(leaves, (list, tuple)) else list(leaves)
    if len(given) != treedef.num_leaves:
        raise errors.ValueMismatchError(
            "a tree cannot be put together from another number of leaves",
            got=f"{len(given)} leaves",
            expected=f"{treedef.num_leaves} leaves for {treedef}",
        )
    return optree.tree_unflatten(treedef, given)


def leaves(tree: PyTree, is_leaf: IsLeaf = None) -> list[Any]:
    """Leaves of a tree from left to right."""
    return flatten(tree, is_leaf)[0]


def structure(tree: PyTree, is_leaf: IsLeaf = None) -> PyTreeDef:
    """Structure of a tree."""
    return flatten(tree, is_leaf)[1]


# Structures that hold no node which JAX takes for a leaf, and no dictionary that it refuses.
_known: set[PyTreeDef] = set()


def _is_known(treedef: PyTreeDef) -> bool:
    try:
        return treedef in _known
    except TypeError:  # a class gave metadata without a hash; such a structure is looked at every time
        return False


def _is_as_in_jax(treedef: PyTreeDef) -> bool:
    """Whether optree flattened as JAX does; structures that it did are remembered."""
    if any(node.type is not None and tree_nodes.is_leaf_in_jax(node.type) for node in _nodes(treedef)):
        return False
    for node in _nodes(treedef):
        if node.type is not None and issubclass(node.type, dict):
            _check_sortable(node)
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    with contextlib.suppress(TypeError):  # as in `_is_known`
        _known.add(treedef)
    return True


def _nodes(treedef: PyTreeDef) -> Iterator[PyTreeDef]:
    yield treedef
    for child in treedef.children():
        yield from _nodes(child)


def _check_sortable(node: PyTreeDef) -> None:
    keys = node.entries()
    try:
        sorted(keys)
    except TypeError as error:
        raise errors.ValueMismatchError(
            "the keys of a dictionary in a pytree cannot be sorted",
            got=", ".join(f"{key!r} of type {type(key).__name__}" for key in keys[:4]),
            expected="keys that compare with each other, such as strings alone",
        ) from error


def _strict(is_leaf: IsLeaf) -> Callable[[Any], bool]:
    """`is_leaf`, and what JAX does not take apart."""

    def is_leaf_too(node: Any) -> bool:
        return tree_nodes.is_leaf_in_jax(type(node)) or (is_leaf is not None and is_leaf(node))

    return is_leaf_too


# --- paths ---------------------------------------------------------------------------------------------


def flatten_with_path(
    tree: PyTree, is_leaf: Callable[..., bool] | None = None, is_leaf_takes_path: bool = False
) -> tuple[list[tuple[KeyPath, Any]], PyTreeDef]:
    """Leaves with the keys that lead to them, and the structure.

    Args:
        tree: tree to flatten.
        is_leaf: what else is a leaf.
        is_leaf_takes_path: whether it is called as `is_leaf(path, node)`.
    """
    if is_leaf is not None and is_leaf_takes_path:
        return _flatten_by_path(tree, is_leaf)
    _, treedef = optree.tree_flatten(tree, is_leaf, namespace=NAMESPACE)
    test = is_leaf if _is_known(treedef) or _is_as_in_jax(treedef) else _strict(is_leaf)
    accessors, leaves_, treedef = optree.tree_flatten_with_accessor(tree, test, namespace=NAMESPACE)
    paths = [tuple([tree_nodes.key_of(entry) for entry in accessor]) for accessor in accessors]
    return list(zip(paths, leaves_, strict=True)), treedef


def _flatten_by_path(
    tree: PyTree, is_leaf: Callable[..., bool]
) -> tuple[list[tuple[KeyPath, Any]], PyTreeDef]:
    """As `flatten_with_path`, with a test that wants to know where it is."""
    found: list[tuple[KeyPath, Any]] = []
    chosen: list[Any] = []  # keeps the nodes alive whose ids are compared below

    def walk(path: KeyPath, node: Any) -> None:
        if is_leaf(path, node):
            chosen.append(node)
            found.append((path, node))
        elif _is_leaf_itself(node):
            found.append((path, node))
        else:
            for key, child in flatten_one_level_with_keys(node)[0]:
                walk((*path, key), child)

    walk((), tree)
    ids = {id(node) for node in chosen}
    return found, structure(tree, lambda node: id(node) in ids)


def leaves_with_path(
    tree: PyTree, is_leaf: Callable[..., bool] | None = None, is_leaf_takes_path: bool = False
) -> list[tuple[KeyPath, Any]]:
    """Leaves with the keys that lead to them."""
    return flatten_with_path(tree, is_leaf, is_leaf_takes_path)[0]


def keystr(keys: KeyPath, *, simple: bool = False, separator: str = "") -> str:
    """A path as text.

    Args:
        keys: path.
        simple: write keys without brackets, quotes and dots.
        separator: what stands between them.

    Example:
        >>> from infini import tree, tree_util
        >>> [(path, _)] = tree.leaves_with_path({"layers": [1]})
        >>> tree_util.keystr(path), tree_util.keystr(path, simple=True, separator="/")
        ("['layers'][0]", 'layers/0')
    """
    return separator.join(_simple(key) if simple else str(key) for key in keys)


def _simple(key: Any) -> str:  # Any: as in KeyPath
    match key:
        case SequenceKey(idx=name) | DictKey(key=name) | GetAttrKey(name=name) | FlattenedIndexKey(key=name):
            return str(name)
    return str(key)


# --- one level -------------------------------------------------------------------------------------------


def is_tree_node(typ: type) -> bool:
    """Whether instances of a class have children."""
    return typ is not type(None) and tree_nodes.is_node(typ)


def _is_leaf_itself(node: Any) -> bool:
    return not tree_nodes.is_node(type(node))


def flatten_one_level(tree: PyTree) -> tuple[tuple[Any, ...], Any]:
    """Children of a node, and what else it holds (keys of a dictionary, aux data of a class).

    Raises:
        ValueMismatchError: it is a leaf.
    """
    pairs, aux = flatten_one_level_with_keys(tree)
    return tuple(child for _, child in pairs), aux


def flatten_one_level_with_keys(tree: PyTree) -> tuple[tuple[tuple[Any, Any], ...], Any]:
    """As `flatten_one_level`, with the key of each child.

    Raises:
        ValueMismatchError: it is a leaf.
    """
    if _is_leaf_itself(tree):
        raise errors.ValueMismatchError(f"can't tree-flatten type: {type(tree)}", expected="a pytree node")
    pairs, treedef = flatten_with_path(tree, lambda node: node is not tree)
    aux = tuple(treedef.entries()) if isinstance(tree, dict) else tree_nodes.aux_of(tree)
    return tuple((path[0], child) for path, child in pairs), aux


# --- what differs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where two trees part, and what each has there."""

    path: KeyPath
    got: str
    expected: str

    @property
    def place(self) -> str:
        """The path as the end of a sentence; nothing for the root."""
        return f" at {keystr(self.path)}" if self.path else ""


def mismatch(prefix: PyTree, full: PyTree, is_leaf: IsLeaf = None) -> Mismatch | None:
    """The first place where `prefix` is no prefix of `full`, or None when it is one."""
    return next(_mismatches((), prefix, full, is_leaf), None)


def _mismatches(path: KeyPath, prefix: PyTree, full: PyTree, is_leaf: IsLeaf) -> Iterator[Mismatch]:
    if _is_leaf_itself(prefix) or (is_leaf is not None and is_leaf(prefix)):
        return
    if type(prefix) is not type(full):
        yield Mismatch(path, _described(full), _described(prefix))
        return
    pairs, aux = flatten_one_level_with_keys(prefix)
    others, other_aux = flatten_one_level_with_keys(full)
    if len(pairs) != len(others):
        kind = type(prefix).__name__
        yield Mismatch(path, f"a {kind} of length {len(others)}", f"a {kind} of length {len(pairs)}")
    elif aux != other_aux:
        kind = type(prefix).__name__
        yield Mismatch(path, f"a {kind} with {_keys(other_aux)}", f"a {kind} with {_keys(aux)}")
    else:
        for (key, child), (_, other) in zip(pairs, others, strict=True):
            yield from _mismatches((*path, key), child, other, is_leaf)


def _described(node: Any) -> str:
    text = repr(node)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return "None" if node is None else f"{shown} of type {type(node).__name__}"


def _keys(aux: Any) -> str:
    return f"keys {list(aux)}" if isinstance(aux, tuple) else f"metadata {aux!r}"
