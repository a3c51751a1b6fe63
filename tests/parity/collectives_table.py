"""Collectives over one and several axes of a mesh of eight devices, for infini and JAX alike.

Run as a program, it saves what JAX makes of them; a process has one number of host devices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

AXES, SIZES = ("x", "y", "z"), (2, 2, 2)
X = np.sin(np.arange(8 * 8 * 4, dtype=np.float32)).reshape(64, 4)  # (8, 4) on each device

# name -> function of (lax, the part of a device)
CASES: dict[str, Callable[[Any, Any], Any]] = {
    "psum": lambda l, x: l.psum(x, ("x", "z")),
    "pmax": lambda l, x: l.pmax(x, ("z", "y")),
    "pmean of a tree": lambda l, x: l.pmean({"a": x, "b": x[0]}, ("y", "x")),
    "all_gather": lambda l, x: l.all_gather(x, ("x", "y")),
    "all_gather in another order": lambda l, x: l.all_gather(x, ("y", "x"), axis=1),
    "all_gather tiled": lambda l, x: l.all_gather(x, ("z", "x"), axis=1, tiled=True),
    "all_gather of everything": lambda l, x: l.all_gather(x[0], ("x", "y", "z"), tiled=True),
    "all_gather of one": lambda l, x: l.all_gather(x, ("y",), tiled=True),
    "psum_scatter": lambda l, x: l.psum_scatter(x[:4], ("x", "y")),
    "psum_scatter tiled": lambda l, x: l.psum_scatter(x, ("z", "y"), scatter_dimension=0, tiled=True),
    "psum_scatter of columns": lambda l, x: l.psum_scatter(x, ("x", "z"), scatter_dimension=1, tiled=True),
    "all_to_all": lambda l, x: l.all_to_all(x, ("x", "y"), 1, 0),
    "all_to_all tiled": lambda l, x: l.all_to_all(x, ("z", "x"), 0, 1, tiled=True),
    "all_to_all in place": lambda l, x: l.all_to_all(x, ("y", "z"), 0, 0, tiled=True),
    "ppermute": lambda l, x: l.ppermute(x, ("x", "y"), [(0, 3), (3, 1), (1, 0)]),
    "axis_index": lambda l, x: x * l.axis_index(("z", "x")),
}
# JAX has no derivative of the first two; that of the third fails there with cotangents of the wrong shape.
WITHOUT_GRADIENT = {"pmax", "axis_index", "all_to_all"}


def results(j: Any, n: Any, make_mesh: Any, P: Any) -> dict[str, np.ndarray]:
    """What one library gives: per case the results of all devices, and a gradient."""
    mesh, spec = make_mesh(), P(AXES)

    def mapped(name: str) -> Any:
        def stacked(x: Any) -> Any:
            return [leaf[None] for leaf in j.tree.leaves(CASES[name](j.lax, x))]

        return j.shard_map(stacked, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def gradient(name: str, x: Any) -> Any:
        def loss(x: Any) -> Any:
            return sum((n.sin(leaf) * (leaf + 1)).sum() for leaf in mapped(name)(x))

        return j.grad(loss)(x)

    def everything(x: Any) -> Any:  # in one program, which JAX compiles faster than many
        found = {f"{name}/{i}": leaf for name in CASES for i, leaf in enumerate(mapped(name)(x))}
        wanted = [name for name in CASES if name not in WITHOUT_GRADIENT]
        return {**found, **{f"{name}/gradient": gradient(name, x) for name in wanted}}

    return {key: np.asarray(leaf) for key, leaf in j.jit(everything)(X).items()}


if __name__ == "__main__":
    import jax

    def jax_mesh() -> Any:
        return jax.make_mesh(SIZES, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))

    np.savez(sys.argv[1], **results(jax, jax.numpy, jax_mesh, jax.sharding.PartitionSpec))
