"""Waiting for arrays, whatever holds them."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.core import errors


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    "hold",
    [
        lambda x: x,
        lambda x: [1, (x, None)],
        lambda x: {"b": {"a": x}, 1: "text"},
        lambda x: Pair(np.ones(2), x),
        lambda x: collections.OrderedDict(a=[x]),
    ],
)
def test_every_array_of_a_tree_is_waited_for(hold: Any) -> None:
    whole, array = hold(inp.ones(3)), inp.ones(3)
    assert inf.block_until_ready(whole) is whole
    array.delete()
    with pytest.raises(errors.DeletedBufferError):
        inf.block_until_ready(hold(array))
