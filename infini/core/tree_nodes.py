"""Which classes are nodes of pytrees, and the keys that lead from a node to its children; JAX's names.

Lists, tuples, named tuples, dictionaries (sorted by key), `OrderedDict`, `defaultdict` and None are nodes
from the start; anything else that nobody registered is a leaf. Used through `core.tree`; only these two
import optree.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import optree

from infini.core import errors

NAMESPACE: Final = "infini"
Node = TypeVar("Node", bound=type)
KeyLeafPair: TypeAlias = tuple[Any, Any]  # Any: a key of any kind, and a child of any kind


# --- keys -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SequenceKey:
    """The step to an item of a list or tuple."""

    idx: int

    def __str__(self) -> str:
        return f"[{self.idx}]"


@dataclass(frozen=True, slots=True)
class DictKey:
    """The step to a value of a dictionary."""

    key: Hashable

    def __str__(self) -> str:
        return f"[{self.key!r}]"


@dataclass(frozen=True, slots=True)
class GetAttrKey:
    """The step to a field of a named tuple or dataclass."""

    name: str

    def __str__(self) -> str:
        return f".{self.name}"


@dataclass(frozen=True, slots=True)
class FlattenedIndexKey:
    """The step to a child of a class registered without keys, by its number."""

    key: int

    def __str__(self) -> str:
        return f"[<flat index {self.key}>]"


KeyEntry: TypeAlias = SequenceKey | DictKey | GetAttrKey | FlattenedIndexKey
KeyPath: TypeAlias = tuple[Any, ...]  # Any: a class registered with keys may use its own kind


def key_of(entry: optree.PyTreeEntry) -> Any:  # Any: as in KeyPath
    """Our key for one step of an accessor of optree."""
    if isinstance(entry, optree.NamedTupleEntry):
        return GetAttrKey(entry.field)
    if isinstance(entry, optree.SequenceEntry):
        return SequenceKey(entry.index)
    if isinstance(entry, optree.MappingEntry):
        return DictKey(entry.key)
    if isinstance(entry.entry, _Key):
        return entry.entry.key
    return FlattenedIndexKey(entry.entry)


@dataclass(frozen=True, slots=True)
class _Key:
    """The key of a child that a class registered with keys gave; optree keeps it as an entry."""

    key: Any  # Any: as in KeyPath


# --- registration ---------------------------------------------------------------------------------

_FlattenWithKeys = Callable[[Any], tuple[Iterable[KeyLeafPair], Any]]
# Fields of registered dataclasses: those that are children, and those that belong to the structure.
FIELDS: Final[dict[type, tuple[tuple[str, ...], tuple[str, ...]]]] = {}
_registered: dict[type, Callable[[Any], tuple[Any, Any, Any]]] = {}  # how optree flattens each class


def register_pytree_node(
    nodetype: type,
    flatten_func: Callable[[Any], tuple[Iterable[Any], Any]],
    unflatten_func: Callable[[Any, Any], Any],
    flatten_with_keys_func: _FlattenWithKeys | None = None,
) -> None:
    """Make a class a pytree node.

    Args:
        nodetype: class; subclasses are not covered.
        flatten_func: `flatten_func(x) -> (children, aux)`; aux data are hashable and compared with `==`.
        unflatten_func: `unflatten_func(aux, children) -> x`; children may be anything.
        flatten_with_keys_func: `flatten_with_keys_func(x) -> (pairs of key and child, aux)`; without it
            children are numbered.

    Raises:
        ValueMismatchError: the class is a node already.
    """
    if nodetype in _registered or is_node(nodetype):
        raise errors.ValueMismatchError(
            f"{nodetype.__module__}.{nodetype.__qualname__} is a pytree node already",
            fix="register a class once, where it is defined",
        )

    def flatten(node: Any) -> Any:
        if flatten_with_keys_func is None:
            children, aux = flatten_func(node)
            return tuple(children), aux, None
        pairs, aux = flatten_with_keys_func(node)
        pairs = tuple(pairs)
        return tuple(child for _, child in pairs), aux, tuple(_Key(key) for key, _ in pairs)

    optree.register_pytree_node(nodetype, flatten, unflatten_func, namespace=NAMESPACE)
    _registered[nodetype] = flatten


def register_pytree_with_keys(
    nodetype: type,
    flatten_with_keys: _FlattenWithKeys,
    unflatten_func: Callable[[Any, Any], Any],
    flatten_func: Callable[[Any], tuple[Iterable[Any], Any]] | None = None,
) -> None:
    """Make a class a pytree node whose children have keys; see `register_pytree_node`."""

    def flatten_without_keys(node: Any) -> tuple[Iterable[Any], Any]:
        pairs, aux = flatten_with_keys(node)
        return [child for _, child in pairs], aux

    register_pytree_node(nodetype, flatten_func or flatten_without_keys, unflatten_func, flatten_with_keys)


def register_pytree_node_class(cls: Node) -> Node:
    """Class decorator: a node by its methods `tree_flatten()` and, as a class method, `tree_unflatten`.

    Example:
        >>> from infini import tree, tree_util
        >>> @tree_util.register_pytree_node_class
        ... class Pair:
        ...     def __init__(self, x, y):
        ...         self.x, self.y = x, y
        ...     def tree_flatten(self):
        ...         return (self.x, self.y), None
        ...     @classmethod
        ...     def tree_unflatten(cls, aux, children):
        ...         return cls(*children)
        >>> tree.leaves(Pair(1, 2))
        [1, 2]
    """
    node: Any = cls  # Any: its two methods are a protocol that type checkers do not know
    register_pytree_node(cls, node.tree_flatten, node.tree_unflatten)
    return cls


def register_pytree_with_keys_class(cls: Node) -> Node:
    """Class decorator: a node by `tree_flatten_with_keys()` and the class method `tree_unflatten`."""
    node: Any = cls  # Any: as in register_pytree_node_class
    register_pytree_with_keys(
        cls, node.tree_flatten_with_keys, node.tree_unflatten, getattr(node, "tree_flatten", None)
    )
    return cls


def register_static(cls: Node) -> Node:
    """Class decorator: instances are nodes without children, compared with `==` as part of the structure."""
    register_pytree_node(cls, lambda node: ((), node), lambda node, _: node)
    return cls


def register_dataclass(
    nodetype: Node,
    data_fields: Sequence[str] | None = None,
    meta_fields: Sequence[str] | None = None,
    drop_fields: Sequence[str] = (),
) -> Node:
    """Make a dataclass a pytree node, as `jax.tree_util.register_dataclass`.

    Args:
        nodetype: dataclass, or any class when both kinds of fields are named.
        data_fields: names of the fields that are children; those of the dataclass that are not static when
            absent.
        meta_fields: names of fields that belong to the structure; those with `metadata={"static": True}` when
            absent.
        drop_fields: names of fields that are left to their defaults.

    Returns:
        The class, so this is a decorator, too.

    Raises:
        TypeMismatchError: the class is no dataclass and no fields are named.
        ValueMismatchError: the named fields are not the fields of the dataclass.
    """
    is_dataclass = dataclasses.is_dataclass(nodetype)
    if (data_fields is None) != (meta_fields is None):
        raise errors.TypeMismatchError(
            "register_dataclass: name both data_fields and meta_fields, or neither"
        )
    if data_fields is None or meta_fields is None:
        if not is_dataclass:
            raise errors.TypeMismatchError(
                f"{nodetype.__name__} is not a dataclass", fix="name data_fields= and meta_fields="
            )
        fields = [f for f in dataclasses.fields(nodetype) if f.init and f.name not in drop_fields]
        meta_fields = [f.name for f in fields if f.metadata.get("static", False)]
        data_fields = [f.name for f in fields if f.name not in meta_fields]
    data, meta = tuple(data_fields), tuple(meta_fields)
    if is_dataclass:
        _check_fields(nodetype, (*data, *meta), drop_fields)
    # A dataclass with an `__init__` of its own is put together field by field: nobody knows its arguments.
    params = getattr(nodetype, "__dataclass_params__", None)
    has_own_init = params is not None and not params.init

    def to_pairs(node: Any) -> tuple[Iterable[KeyLeafPair], Any]:
        pairs = [(GetAttrKey(name), getattr(node, name)) for name in data]
        return pairs, tuple([getattr(node, name) for name in meta])

    def from_children(aux: Any, children: Any) -> Any:
        given = {**dict(zip(data, children, strict=True)), **dict(zip(meta, aux, strict=True))}
        if not has_own_init:
            return nodetype(**given)
        node: Any = object.__new__(nodetype)
        for name, value in given.items():
            object.__setattr__(node, name, value)
        return node

    register_pytree_with_keys(nodetype, to_pairs, from_children)
    FIELDS[nodetype] = data, meta
    return nodetype


def _check_fields(nodetype: type, named: Sequence[str], dropped: Sequence[str]) -> None:
    wanted = {f.name for f in dataclasses.fields(nodetype) if f.init}
    missing, unexpected = wanted - {*named, *dropped}, set(named) - (wanted - set(dropped))
    if missing or unexpected:
        raise errors.ValueMismatchError(
            "data_fields and meta_fields must include all dataclass fields with init=True and only them",
            got=f"{'without' if missing else 'with'} {', '.join(sorted(missing or unexpected))}",
            expected=", ".join(sorted(wanted)),
            fix="add missing fields to drop_fields to leave them out",
        )


def is_node(cls: type) -> bool:
    """Whether instances of a class have children; None does, though `is_tree_node(type(None))` is False."""
    if cls in _registered or cls in (list, tuple, dict, collections.OrderedDict, collections.defaultdict):
        return True
    return cls is type(None) or bool(optree.is_namedtuple_class(cls))


def aux_of(node: Any) -> Any:
    """What a node holds besides children, except for dictionaries."""
    if type(node) in _registered:
        return _registered[type(node)](node)[1]
    return type(node) if optree.is_namedtuple_class(type(node)) else None


def is_registered(cls: type) -> bool:
    """Whether somebody registered a class, rather than its being a node from the start."""
    return cls in _registered


def is_leaf_in_jax(cls: type) -> bool:
    """Whether optree takes instances of a class apart and JAX does not: deques, and tuples made in C."""
    return cls is collections.deque or bool(optree.is_structseq_class(cls))


# --- partial applications -------------------------------------------------------------------------


class Partial(functools.partial):  # type: ignore[type-arg]  # as JAX's, without parameters
    """A `functools.partial` that is a pytree: the arguments are children, the function is structure.

    Example:
        >>> from infini import tree, tree_util
        >>> tree.map(lambda x: x * 2, tree_util.Partial(lambda x, y: x + y, 1, y=2))()
        6
    """

    def __new__(cls, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Partial:
        # functools would merge the arguments of another partial application into this one's.
        whole = _Whole(func) if isinstance(func, functools.partial) else func
        return super().__new__(cls, whole, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Whole:
    """A partial application as one function."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


register_pytree_node(
    Partial,
    lambda partial: ((partial.args, partial.keywords), partial.func),
    lambda function, children: Partial(function, *children[0], **children[1]),
)
