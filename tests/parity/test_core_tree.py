"""Pytrees behave as JAX's: the same trees, paths and errors through both `tree_util`."""

from __future__ import annotations

import collections
import dataclasses
import time

import jax
import numpy as np
import pytest

import infini
from infini import tree_util

Point = collections.namedtuple("Point", "x y")


def declare(t):
    """The same classes, registered with one library."""

    @t.register_pytree_node_class
    class Plain:
        def __init__(self, *children):
            self.children = children

        def tree_flatten(self):
            return self.children, "aux"

        @classmethod
        def tree_unflatten(cls, aux, children):
            assert aux == "aux"
            return cls(*children)

        def __repr__(self):
            return f"Plain{tuple(self.children)}"

    @t.register_pytree_with_keys_class
    class Keyed:
        def __init__(self, first, second):
            self.first, self.second = first, second

        def tree_flatten_with_keys(self):
            return ((t.GetAttrKey("first"), self.first), (t.GetAttrKey("second"), self.second)), None

        @classmethod
        def tree_unflatten(cls, aux, children):
            return cls(*children)

        def __repr__(self):
            return f"Keyed({self.first}, {self.second})"

    @t.register_static
    @dataclasses.dataclass(frozen=True)
    class Option:
        name: str

    @t.register_dataclass
    @dataclasses.dataclass
    class Layer:
        weight: object
        name: str = dataclasses.field(metadata={"static": True}, default="n")

    return Plain, Keyed, Option, Layer


JAX_CLASSES, OUR_CLASSES = declare(jax.tree_util), declare(tree_util)

TREES = {
    "leaf": lambda *c: 3,
    "none": lambda *c: None,
    "nested": lambda *c: {"b": [1, (2, None)], "a": {}},
    "integer keys": lambda *c: {10: 1, 9: 2},
    "ordered": lambda *c: collections.OrderedDict(b=1, a=2),
    "default": lambda *c: collections.defaultdict(list, b=1, a=[2]),
    "deque": lambda *c: [collections.deque([1, 2]), 3],
    "named tuple": lambda *c: Point(1, Point(2, None)),
    "struct": lambda *c: (time.gmtime(0), 1),
    "set": lambda *c: [frozenset({1})],
    "array": lambda *c: [np.arange(3)],
    "plain": lambda plain, *c: {"p": plain(1, [2])},
    "keyed": lambda plain, keyed, *c: [keyed({"x": 1}, plain(2))],
    "static": lambda plain, keyed, option, layer: [option("a"), 1],
    "dataclass": lambda plain, keyed, option, layer: layer([1, 2], "name"),
    "empty list": lambda *c: [[], ()],
}


def both(name):
    return TREES[name](*JAX_CLASSES), TREES[name](*OUR_CLASSES)


def text(tree):
    return repr(tree).replace("array([", "Array([")


@pytest.mark.parametrize("name", TREES)
def test_leaves_and_round_trip(name):
    theirs, ours = both(name)
    leaves, treedef = tree_util.tree_flatten(ours)
    assert text(leaves) == text(jax.tree.leaves(theirs))
    assert treedef.num_leaves == jax.tree.structure(theirs).num_leaves
    assert text(tree_util.tree_unflatten(treedef, leaves)) == text(ours)


@pytest.mark.parametrize("name", TREES)
def test_paths(name):
    theirs, ours = both(name)
    expected = jax.tree_util.tree_leaves_with_path(theirs)
    found = tree_util.tree_leaves_with_path(ours)
    assert [repr(path) for path, _ in found] == [repr(path) for path, _ in expected]
    for simple, separator in ((False, ""), (True, "/")):
        assert [tree_util.keystr(p, simple=simple, separator=separator) for p, _ in found] == [
            jax.tree_util.keystr(p, simple=simple, separator=separator) for p, _ in expected
        ]


@pytest.mark.parametrize("name", TREES)
def test_structures(name):
    theirs, ours = map(lambda t, x: t.structure(x), (jax.tree, infini.tree), both(name))
    assert tree_util.treedef_is_leaf(ours) == jax.tree_util.treedef_is_leaf(theirs)
    assert [c.num_leaves for c in tree_util.treedef_children(ours)] == [
        c.num_leaves for c in jax.tree_util.treedef_children(theirs)
    ]
    assert tree_util.treedef_tuple([ours, ours]).num_leaves == 2 * theirs.num_leaves


@pytest.mark.parametrize("name", TREES)
def test_one_level(name):
    theirs, ours = both(name)
    if not jax.tree_util.is_tree_node(type(theirs)) and theirs is not None:
        for library, tree in ((jax.tree_util, theirs), (tree_util, ours)):
            with pytest.raises(ValueError, match="can't tree-flatten type"):
                library.flatten_one_level(tree)
        return
    expected, _ = jax.tree_util.flatten_one_level_with_keys(theirs)
    found, _ = tree_util.flatten_one_level_with_keys(ours)
    assert text([child for _, child in found]) == text([child for _, child in expected])
    if name != "named tuple":  # JAX gives the first name for every field here, and the right ones in paths
        assert repr([key for key, _ in found]) == repr([key for key, _ in expected])


@pytest.mark.parametrize(
    "cls", [int, list, dict, Point, type(None), collections.deque, collections.OrderedDict]
)
def test_what_is_a_node(cls):
    # JAX does not accept the class of None here; None has no children to visit.
    expected = False if cls is type(None) else cls is Point or jax.tree_util.is_tree_node(cls)
    assert tree_util.is_tree_node(cls) == expected


# --- functions: name, arguments made with a library; the result must be equal ---------------------

CALLS = {
    "map": lambda t: t.tree_map(lambda x, y: (x, y), {"a": [1, 2]}, {"a": [3, (4, 5)]}),
    "map over none": lambda t: t.tree_map(lambda x, y: (x, y), [None, 1], [None, None]),
    "map with is_leaf": lambda t: t.tree_map(
        lambda x: x, {"a": (1, 2)}, is_leaf=lambda x: isinstance(x, tuple)
    ),
    "map with path": lambda t: t.tree_map_with_path(lambda p, x: (t.keystr(p), x), {"a": [1, Point(2, 3)]}),
    "path in is_leaf": lambda t: t.tree_map_with_path(
        lambda p, x: (t.keystr(p), x), {"a": [1, 2], "b": [3]},
        is_leaf=lambda p, x: t.keystr(p) == "['a']", is_leaf_takes_path=True,
    ),
    "all": lambda t: (t.tree_all([1, True]), t.tree_all([1, 0]), t.tree_all([])),
    "reduce": lambda t: t.tree_reduce(lambda a, b: f"({a}{b})", {"b": 1, "a": [2, 3]}),
    "reduce from": lambda t: t.tree_reduce(lambda a, b: f"({a}{b})", [1, 2], "s"),
    "reduce none from": lambda t: t.tree_reduce(lambda a, b: a, [], None),
    "reduce pairs": lambda t: t.tree_reduce_associative(lambda a, b: f"({a}{b})", list("abcdefg")),
    "reduce pairs of nothing": lambda t: t.tree_reduce_associative(lambda a, b: a, [], identity=4),
    "transpose": lambda t: t.tree_transpose(
        t.tree_structure([0, 0]), t.tree_structure((0, 0)), [(1, 2), (3, 4)]
    ),
    "transpose unknown": lambda t: t.tree_transpose(t.tree_structure({"a": 0}), None, {"a": [1, {"b": 2}]}),
    "broadcast": lambda t: t.tree_broadcast([1, (2, None)], [(1, 2), ({"a": 3, "b": 4}, None)]),
    "all leaves": lambda t: [t.all_leaves(x) for x in ([1, 2], [1, [2]], [1, None], [])],
    "flatten up to": lambda t: t.tree_structure([0, (0,)]).flatten_up_to([{"a": 1}, (None,)]),
    "partial": lambda t: t.tree_map(lambda x: 10 * x, t.Partial(lambda x, *, y: x - y, 1, y=2))(),
    "partial of partial": lambda t: (
        t.Partial(t.Partial(lambda *x: x, 1, 2), 3)(4), t.tree_leaves(t.Partial(t.Partial(max, 1, 2), 3)),
    ),
    "sorted keys": lambda t: t.tree_leaves({"b": 1, "a": 2, "c": {2: 0, 1: 3}}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    assert CALLS[name](tree_util) == CALLS[name](jax.tree_util)


FAULTS = {
    "keys that do not compare": lambda t: t.tree_leaves({1: 1, "a": 2}),
    "other keys": lambda t: t.tree_map(lambda x, y: x, {"a": 1}, {"b": 1}),
    "other length": lambda t: t.tree_map(lambda x, y: x, [1, 2], [1]),
    "other type": lambda t: t.tree_map(lambda x, y: x, (1, 2), [1, 2]),
    "leaf for a node": lambda t: t.tree_map(lambda x, y: x, [1, (2,)], [1, 2]),
    "none for a leaf is a prefix, a leaf for none is not": lambda t: t.tree_map(lambda x, y: x, None, 3),
    "too few leaves": lambda t: t.tree_unflatten(t.tree_structure([1, 2]), [1]),
    "too many leaves": lambda t: t.tree_unflatten(t.tree_structure([1, 2]), [1, 2, 3]),
    "no leaves to reduce": lambda t: t.tree_reduce(max, []),
    "no leaves to reduce in pairs": lambda t: t.tree_reduce_associative(max, []),
    "transpose of another tree": lambda t: t.tree_transpose(
        t.tree_structure([0, 0]), t.tree_structure((0, 0)), [(1, 2, 3), (4, 5, 6)]
    ),
    "broadcast of no prefix": lambda t: t.tree_broadcast([1, 2, 3], [1, 2]),
    "registered twice": lambda t: t.register_pytree_node(
        (JAX_CLASSES if t is jax.tree_util else OUR_CLASSES)[0], lambda x: ((), None), lambda a, c: None
    ),
    "fields that are missing": lambda t: t.register_dataclass(
        dataclasses.make_dataclass("C", ["a", "b"]), ["a"], []
    ),
    "fields that do not exist": lambda t: t.register_dataclass(
        dataclasses.make_dataclass("C", ["a"]), ["a", "c"], []
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_raise_the_same_kind_of_error(name):
    with pytest.raises((ValueError, TypeError)) as theirs:
        FAULTS[name](jax.tree_util)
    with pytest.raises(theirs.type):
        FAULTS[name](tree_util)


@pytest.mark.parametrize("module", ["tree", "tree_util"])
def test_names_are_all_there(module):
    theirs = {name for name in dir(getattr(jax, module)) if not name.startswith("_")}
    # JAX's registries are objects of their own; ours is one for all.
    assert theirs - set(dir(getattr(infini, module))) <= {"default_registry"}
