"""Ranks and coordinates: which device of a mesh has which index along each axis, and which of them make a
group.

The rank of a device is its position in mesh order, `mesh.flat_devices[rank]`, the last axis varying fastest.
A process holds those in `mesh.local_ranks`.
"""

from __future__ import annotations

from infini.core import errors
from infini.core.mesh import AbstractMesh
from infini.core.sharding import Mesh


def coordinates_of(mesh: Mesh | AbstractMesh, rank: int) -> dict[str, int]:
    """The index of a device along each axis.

    Args:
        mesh: a mesh, with or without its devices.
        rank: number of a device in mesh order, from 0.

    Raises:
        IndexOutOfRangeError: the mesh has fewer devices.

    Example:
        >>> import infini.parallel as parallel
        >>> from infini.sharding import AbstractMesh
        >>> mesh = AbstractMesh((2, 4), ("dp", "tp"))
        >>> parallel.coordinates_of(mesh, 6)
        {'dp': 1, 'tp': 2}
    """
    found = _abstract(mesh)
    _check_rank(found, rank)
    return found.coordinates(rank)


def rank_of(mesh: Mesh | AbstractMesh, **coordinates: int) -> int:
    """The number in mesh order of the device at an index along each axis.

    Args:
        mesh: a mesh, with or without its devices.
        **coordinates: for every axis an index, from 0.

    Raises:
        ValueMismatchError: an axis is missing, or the mesh lacks one.
        IndexOutOfRangeError: an axis is shorter.

    Example:
        >>> import infini.parallel as parallel
        >>> from infini.sharding import AbstractMesh
        >>> mesh = AbstractMesh((2, 4), ("dp", "tp"))
        >>> parallel.rank_of(mesh, dp=1, tp=2)
        6
    """
    shape = _abstract(mesh).shape
    if coordinates.keys() != shape.keys():
        raise errors.ValueMismatchError(
            "rank_of needs one index for each axis of the mesh",
            got=", ".join(f"{axis}={index}" for axis, index in coordinates.items()) or "no index",
            expected=", ".join(shape) or "none",
        )
    rank = 0
    for axis, size in shape.items():
        if coordinates[axis] not in range(size):
            raise errors.IndexOutOfRangeError(
                f"axis {axis!r} of the mesh has no index {coordinates[axis]}", expected=f"0 to {size - 1}"
            )
        rank = rank * size + coordinates[axis]
    return rank


def groups_of(mesh: Mesh | AbstractMesh, *axes: str) -> tuple[tuple[int, ...], ...]:
    """The ranks that a collective over some axes joins: each group differs in its indices along these axes
    only, and has its members in their order, the first axis most significant.

    Args:
        mesh: a mesh, with or without its devices.
        *axes: names of axes.

    Returns:
        The groups; every rank is in one of them.

    Raises:
        ValueMismatchError: the mesh lacks an axis, or one is named twice.

    Example:
        >>> import infini.parallel as parallel
        >>> from infini.sharding import AbstractMesh
        >>> mesh = AbstractMesh((2, 2), ("dp", "tp"))
        >>> parallel.groups_of(mesh, "tp"), parallel.groups_of(mesh, "dp")
        (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    """
    found = _abstract(mesh)
    if len(set(axes)) != len(axes) or not set(axes) <= set(found.axis_names):
        raise errors.ValueMismatchError(
            "groups_of takes axes of the mesh, each once",
            got=", ".join(map(repr, axes)),
            expected=f"among {', '.join(map(repr, found.axis_names))}",
        )
    return found.groups(axes)


def group_of(mesh: Mesh | AbstractMesh, rank: int, *axes: str) -> tuple[int, ...]:
    """The group of `groups_of` that a device is in; its place there is `group.index(rank)`.

    Args:
        mesh: a mesh, with or without its devices.
        rank: number of a device in mesh order, from 0.
        *axes: names of axes.

    Raises:
        ValueMismatchError: as `groups_of`.
        IndexOutOfRangeError: the mesh has fewer devices.

    Example:
        >>> import infini.parallel as parallel
        >>> from infini.sharding import AbstractMesh
        >>> mesh = AbstractMesh((2, 2), ("dp", "tp"))
        >>> parallel.group_of(mesh, 3, "dp")
        (1, 3)
    """
    _check_rank(_abstract(mesh), rank)
    return next(group for group in groups_of(mesh, *axes) if rank in group)


def _abstract(mesh: Mesh | AbstractMesh) -> AbstractMesh:
    return mesh.abstract if isinstance(mesh, Mesh) else mesh


def _check_rank(mesh: AbstractMesh, rank: int) -> None:
    if rank not in range(mesh.size):
        raise errors.IndexOutOfRangeError(
            f"the mesh has no device number {rank}",
            got=f"a mesh of {', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())}",
            expected=f"0 to {mesh.size - 1}",
        )
