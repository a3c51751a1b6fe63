"""Parts of pytrees: split one into what is differentiated and what is not, put it together again, and
replace single nodes. Names and meaning are Equinox's, https://docs.kidger.site/equinox/api/manipulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from infini.core import dtypes, errors, tree
from infini.core.value import Value

IsLeaf: TypeAlias = Callable[[Any], bool] | None
Filter: TypeAlias = Any  # Any: a bool, a function of a leaf, or a pytree of these that is a prefix


def is_array(element: object) -> bool:
    """Whether a leaf is an array."""
    return isinstance(element, Value)


def is_array_like(element: object) -> bool:
    """Whether a leaf is an array, a NumPy array or a number."""
    return isinstance(element, (Value, np.ndarray, np.generic, bool, int, float, complex))


def is_inexact_array(element: object) -> bool:
    """Whether a leaf is an array of floats or complex numbers, which has a derivative."""
    return isinstance(element, Value) and dtypes.is_inexact(element.dtype)


def filter(  # noqa: A001  # Equinox's name
    pytree: Any, filter_spec: Filter, inverse: bool = False, replace: Any = None
) -> Any:  # Any: pytrees
    """The pytree with the leaves that the filter does not choose replaced.

    Args:
        pytree: any pytree.
        filter_spec: a bool, a function from a leaf to one, or a pytree of these whose structure is that of
            `pytree` or stops above it.
        inverse: keep the others instead.
        replace: what stands where a leaf is left out.
    """

    def choose(spec: Any, part: Any) -> Any:  # Any: pytrees
        def keep(leaf: Any) -> Any:  # Any: a leaf
            chosen = spec(leaf) if callable(spec) else spec
            return leaf if bool(chosen) != inverse else replace

        return tree.map(keep, part)

    return tree.map(choose, filter_spec, pytree)


def partition(pytree: Any, filter_spec: Filter, replace: Any = None) -> tuple[Any, Any]:  # Any: pytrees
    """The pytree in two of equal structure: the leaves that the filter chooses, and the others.

    Example:
        >>> import infini
        >>> import infini.numpy as inp
        >>> from infini import nn
        >>> model = {"scale": inp.ones(2), "steps": inp.asarray(3)}
        >>> chosen, rest = nn.partition(model, nn.is_inexact_array)
        >>> def loss(chosen):
        ...     both = nn.combine(chosen, rest)
        ...     return (both["scale"] * both["steps"]).sum()
        >>> infini.grad(loss)(chosen)["scale"].tolist()
        [3.0, 3.0]
    """
    return filter(pytree, filter_spec, replace=replace), filter(pytree, filter_spec, True, replace)


def combine(*pytrees: Any, is_leaf: IsLeaf = None) -> Any:  # Any: pytrees
    """One pytree from several of equal structure: at each place the first leaf that is not None."""

    def is_end(node: object) -> bool:
        return node is None or (is_leaf is not None and is_leaf(node))

    def first(*leaves: Any) -> Any:  # Any: leaves
        return next((leaf for leaf in leaves if leaf is not None), None)

    return tree.map(first, *pytrees, is_leaf=is_end)


_ABSENT = object()


class _Place:
    """Stands for a leaf while it is found out which ones are replaced; equal to itself alone."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: object) -> None:
        self.leaf = leaf


def tree_at(
    where: Callable[[Any], Any],
    pytree: Any,
    replace: Any = _ABSENT,
    replace_fn: Callable[[Any], Any] | None = None,
    is_leaf: IsLeaf = None,
) -> Any:  # Any: pytrees
    """The pytree with the nodes that `where` names replaced.

    Args:
        where: function from the pytree to one node of it, or to a sequence of nodes.
        pytree: any pytree, such as a module.
        replace: the new node, or a sequence of them.
        replace_fn: function from an old node to the new one, instead of `replace`.
        is_leaf: nodes that count as leaves, such as those that are None.

    Raises:
        ValueMismatchError: `where` names something else than nodes, or the number of new ones differs.

    Example:
        >>> from infini import nn, random
        >>> layer = nn.Linear(2, 3, key=random.key(0))
        >>> nn.tree_at(lambda m: m.weight, layer, replace_fn=lambda w: w > 9).weight.tolist()
        [[False, False], [False, False], [False, False]]
    """
    if (replace is _ABSENT) == (replace_fn is None):
        raise errors.ValueMismatchError("tree_at needs either replace= or replace_fn=")
    leaves, structure = tree.flatten(pytree, is_leaf)
    marked = tree.unflatten(structure, [_Place(leaf) for leaf in leaves])
    chosen = where(marked)
    is_one = any(node is chosen for node in _nodes(marked)) or not isinstance(chosen, (tuple, list))
    nodes = [chosen] if is_one else list(chosen)
    if replace_fn is not None:
        new = [replace_fn(_restored(node)) for node in nodes]
    else:
        new = [replace] if is_one else list(replace)
    if len(new) != len(nodes):
        raise errors.ValueMismatchError(
            "tree_at: as many nodes as `where` names have to be given",
            got=f"{len(new)} for {len(nodes)}",
        )
    parts, outline = tree.flatten(marked, lambda x: any(x is node for node in nodes))
    places = [next((i for i, node in enumerate(nodes) if node is part), None) for part in parts]
    if {i for i in places if i is not None} != set(range(len(nodes))):
        raise errors.ValueMismatchError(
            "tree_at: `where` has to name nodes of the pytree",
            got=", ".join(type(node).__name__ for node in nodes),
            fix="return them unchanged, each once; is_leaf=lambda x: x is None names nodes that are None",
        )
    return tree.unflatten(
        outline,
        [part.leaf if i is None else new[i] for i, part in zip(places, parts, strict=True)],
    )


def _nodes(marked: Any) -> list[Any]:  # Any: pytrees
    """Every node that is no leaf."""
    found: list[Any] = []

    def look(node: Any) -> bool:  # Any: a node
        found.append(node)
        return False

    tree.leaves(marked, look)
    return found


def _restored(node: Any) -> Any:  # Any: pytrees
    """A marked node with its leaves again."""
    return tree.map(lambda place: place.leaf, node, is_leaf=lambda x: isinstance(x, _Place))
