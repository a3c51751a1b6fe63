"""Meshes and placements, with JAX's names; the machine that programs over a mesh are planned for."""

from infini.core.machine import Collectives as Collectives, Link as Link, Machine as Machine
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
