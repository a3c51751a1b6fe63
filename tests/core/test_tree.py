"""Pytrees follow JAX: None is a node, dictionaries are sorted, dataclasses may have static fields."""

import dataclasses
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
        (deque([1, 2]), [1, 2]),
        (5, [5]),
    ],
)
def test_flatten_and_unflatten(value, leaves):
    found, treedef = tree.flatten(value)
    assert found == leaves
    assert tree.unflatten(treedef, found) == value


def test_map_refuses_other_structures():
    with pytest.raises(ValueError, match="different structure"):
        tree.map(lambda x, y: x + y, {"a": 1}, {"b": 1})


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
