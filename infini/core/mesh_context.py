"""Which mesh is meant where none is named: `set_mesh`, `use_mesh`, `get_mesh` and their abstract relatives,
with JAX's names. `with mesh:` does the same as `with set_mesh(mesh):`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from infini.core import errors, sharding
from infini.core.mesh import AbstractMesh
from infini.core.sharding import Mesh


class set_mesh:  # noqa: N801  # JAX's name of what is called and entered
    """Set the mesh that a plain `P` refers to, as `jax.set_mesh`: from here on, or within a `with` block.

    Args:
        mesh: devices with named axes; None for no mesh at all.

    Raises:
        ValueMismatchError: it is no `Mesh`.

    Example:
        >>> import infini as inf
        >>> mesh = inf.make_mesh((1,), ("data",))
        >>> with inf.set_mesh(mesh):
        ...     inf.sharding.get_mesh().shape
        {'data': 1}
    """

    def __init__(self, mesh: Mesh | None) -> None:
        if mesh is not None and not isinstance(mesh, Mesh):
            raise errors.ValueMismatchError(
                "set_mesh takes a Mesh or None",
                got=f"{mesh!r} of type {type(mesh).__name__}",
                fix="use_abstract_mesh takes meshes without devices"
                if isinstance(mesh, AbstractMesh)
                else "",
            )
        self.mesh = mesh
        self._before = sharding.replace_meshes(() if mesh is None else (mesh,))

    def __enter__(self) -> Mesh | None:
        return self.mesh

    def __exit__(self, *exc: object) -> None:
        sharding.replace_meshes(self._before)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Within a block, the mesh that a plain `P` refers to; `set_mesh` does the same.

    Args:
        mesh: devices with named axes.
    """
    with set_mesh(mesh):
        yield mesh


@contextlib.contextmanager
def use_abstract_mesh(mesh: AbstractMesh) -> Iterator[None]:
    """Within a block, the names and sizes of axes that a plain `P` refers to while functions are traced.

    Args:
        mesh: names and sizes of axes.

    Raises:
        TypeMismatchError: it is no `AbstractMesh`.
    """
    if not isinstance(mesh, AbstractMesh):
        raise errors.TypeMismatchError(
            "use_abstract_mesh takes an AbstractMesh", got=repr(mesh), fix="take mesh.abstract_mesh"
        )
    before = sharding.replace_meshes((*sharding.meshes_in_scope(), mesh))
    try:
        yield
    finally:
        sharding.replace_meshes(before)


def get_mesh() -> Mesh:
    """The mesh that is set, as `jax.sharding.get_mesh`; one without axes when there is none."""
    found = sharding.current_mesh()
    return _nothing() if found is None else found


def get_abstract_mesh() -> AbstractMesh:
    """The mesh that is set, without its devices, as `jax.sharding.get_abstract_mesh`; one without axes when
    there is none. Inside `shard_map` its manual axes are of type `AxisType.Manual`.
    """
    found = sharding.current_abstract_mesh()
    return AbstractMesh((), ()) if found is None else found


def _nothing() -> Mesh:
    nowhere: Any = np.empty((), dtype=object)  # Any: an array of no device
    return Mesh(nowhere, ())
