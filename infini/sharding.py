"""Meshes and placements, with JAX's names; the machine that programs over a mesh are planned for."""

from infini.core.abstract import ManualAxisType as ManualAxisType
from infini.core.machine import Collectives as Collectives, Link as Link, Machine as Machine
from infini.core.mesh_context import (
    get_abstract_mesh as get_abstract_mesh,
    get_mesh as get_mesh,
    set_mesh as set_mesh,
    use_abstract_mesh as use_abstract_mesh,
    use_mesh as use_mesh,
)
from infini.core.sharding import (
    AbstractMesh as AbstractMesh,
    AxisType as AxisType,
    Mesh as Mesh,
    NamedSharding as NamedSharding,
    P as P,
    PartitionSpec as PartitionSpec,
    Sharding as Sharding,
    SingleDeviceSharding as SingleDeviceSharding,
    make_mesh as make_mesh,
    make_single_device_sharding as make_single_device_sharding,
)
from infini.transforms.resharding import (
    auto_axes as auto_axes,
    explicit_axes as explicit_axes,
    reshard as reshard,
)
