"""Meshes and placements, with JAX's names."""

from infini.core.sharding import (
    AbstractMesh as AbstractMesh,
    Mesh as Mesh,
    NamedSharding as NamedSharding,
    P as P,
    PartitionSpec as PartitionSpec,
    Sharding as Sharding,
    SingleDeviceSharding as SingleDeviceSharding,
    make_mesh as make_mesh,
)
