"""Pytrees follow JAX: None is a node, deques are leaves, keys are sorted, fields may be static."""

import dataclasses
import re
from collections import OrderedDict, deque, namedtuple

import pytest

from infini.core import tree

Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "leaves"),
    [
        ({"b": 1, "a": 2}, [2, 1]),
        ((1, None, [2, ()]), [1, 2]),
        (None, []),
        (Point(1, Point(2, 3)), [1, 2, 3]),
        (OrderedDict(b=1, a=2), [1, 2]),
        (deque([1, 2]), [deque([1, 2])]),
        (5, [5]),
    ],
)
def test_flatten_and_unflatten(value, leaves):
    found, treedef = tree.flatten(value)
    assert found == leaves
    assert tree.unflatten(treedef, found) == value


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"a": 1},
            {"b": 1},
            "different structure\n  got:      a dict with keys ['b']\n  expected: a dict with keys ['a']",
        ),
        ({"a": [1, (2,)]}, {"a": [1, 5]}, "different structure at ['a'][1]\n  got:      5 of type int"),
        ([1, 2], [1], "a list of length 1\n  expected: a list of length 2"),
        (None, 3, "got:      3 of type int\n  expected: None"),
    ],
)
def test_map_of_other_structures_says_where_they_part(first, second, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tree.map(lambda x, y: x, first, second)


def test_metadata_need_no_hash():
    class Node:
        def __init__(self, child):
            self.child = child

    tree.register_pytree_node(
        Node, lambda node: ((node.child,), ["a list"]), lambda aux, children: Node(*children)
    )
    assert tree.leaves(tree.map(lambda x: x + 1, [Node(1)])) == [2]


def test_dataclasses_with_an_init_of_their_own_are_put_together_by_field():
    @dataclasses.dataclass(init=False)
    class Linear:
        weight: int

        def __init__(self, size):
            self.weight = size * 2

    tree.register_dataclass(Linear)
    assert tree.map(lambda x: x + 1, Linear(3)).weight == 7


def test_static_fields_of_dataclasses_are_no_leaves():
    @dataclasses.dataclass(frozen=True)
    class Layer:
        weight: int
        name: str = dataclasses.field(metadata={"static": True}, default="n")

    tree.register_dataclass(Layer)
    doubled = tree.map(lambda x: x * 2, Layer(3, "first"))
    assert doubled == Layer(6, "first")
    assert tree.structure(Layer(1, "a")) != tree.structure(Layer(1, "b"))


def test_paths_name_the_way_to_a_leaf():
    pairs, _ = tree.flatten_with_path({"layers": [1, 2]})
    assert [(tree.keystr(path), leaf) for path, leaf in pairs] == [("['layers'][0]", 1), ("['layers'][1]", 2)]
