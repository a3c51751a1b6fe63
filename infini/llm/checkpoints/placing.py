"""Where weights go while they are loaded: each straight to its devices, so that no device ever holds more
than its own parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import infini as inf
from infini.core import array as array_, mesh as mesh_, tree
from infini.parallel.recipes import Recipe
from infini.quantization import QuantizedArray

Placing: TypeAlias = Callable[[str, tuple[int, ...]], Any]  # Any: a sharding, or None


def by_recipe(recipe: Recipe, mesh: Any) -> Placing:  # Any: a mesh
    """Placements of weights by the rules of a recipe, such as `parallel.recipes.tensor()`.

    Args:
        recipe: its rules look for the names of weights, such as `layers/0/self_attn/q_proj`.
        mesh: the devices.

    Returns:
        What `checkpoints.load(..., sharding=)` takes.
    """

    def place(name: str, shape: tuple[int, ...]) -> Any:  # Any: a sharding
        return inf.NamedSharding(mesh, recipe.place(name.replace(".", "/"), shape, mesh.abstract))

    return place


def placed(value: Any, name: str, placing: Placing | None) -> Any:  # Any: an array, quantised or not
    """A weight on its devices; on one CPU that is the memory that it has.

    Args:
        value: NumPy arrays that nobody writes.
        name: its name.
        placing: says where it goes.
    """
    where = None if placing is None else placing(name, tuple(value.shape))
    if where is None:
        return tree.map(_shared, value)
    if not isinstance(value, QuantizedArray) or not isinstance(where, inf.NamedSharding):
        return tree.map(lambda leaf: inf.device_put(_shared(leaf), where), value)
    spec = _of_groups(value, where)
    return tree.map(
        lambda leaf: inf.device_put(
            _shared(leaf),
            inf.NamedSharding(where.mesh, inf.P(*spec[: leaf.ndim], *(None,) * (leaf.ndim - len(spec)))),
        ),
        value,
    )


def _of_groups(
    value: QuantizedArray, where: Any
) -> tuple[Any, ...]:  # Any: a sharding, and entries of a spec
    """How rows and groups are split where numbers (..., N, K) are: groups are never cut, so where they cannot
    be split evenly they stay whole.
    """
    entries = (*where.spec, *(None,) * (value.ndim - len(where.spec)))
    for axis, entry in enumerate(entries):
        count = 1
        for name in mesh_.entry_axes(entry):
            count *= where.mesh.shape[name]
        sizes = {plane.shape[axis] for plane in value.planes}
        if any(size % count for size in sizes):
            entries = (*entries[:axis], None, *entries[axis + 1 :])
    return entries


def _shared(leaf: Any) -> Any:  # Any: an array of NumPy's, and one of ours
    return array_.shared(np.ascontiguousarray(leaf))
