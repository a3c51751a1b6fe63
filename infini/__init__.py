"""infini: a functional array framework. Names and semantics are JAX's; see https://docs.jax.dev for the
model.

Importing it installs the operators of arrays (`infini.numpy._methods`) and loads no compiler and no
device library. `infini.nn` and `infini.scipy` load when they are first used: making its classes takes a
tenth of the whole.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from infini import (
    ad_checkpoint as ad_checkpoint,
    checkpoint_policies as checkpoint_policies,
    custom_batching as custom_batching,
    custom_derivatives as custom_derivatives,
    debug as debug,
    dlpack as dlpack,
    dtypes as dtypes,
    errors as errors,
    flatten_util as flatten_util,
    lax as lax,
    numpy as numpy,
    ops as ops,
    quantization as quantization,
    random as random,
    sharding as sharding,
    stages as stages,
    tree as tree,
    tree_util as tree_util,
    typing as typing,
)
from infini.core.abstract import typeof as typeof
from infini.core.array_class import Array as Array
from infini.core.backend import Device as Device, devices as devices, local_devices as local_devices
from infini.core.config import (
    check_tracer_leaks as check_tracer_leaks,
    config as config,
    debug_infs as debug_infs,
    debug_nans as debug_nans,
)
from infini.core.dtypes import float0 as float0
from infini.core.errors import InfiniError as InfiniError
from infini.core.execute import clear_caches as clear_caches
from infini.core.leaks import checking_leaks as checking_leaks
from infini.core.mesh_context import set_mesh as set_mesh
from infini.core.sharding import Mesh as Mesh, NamedSharding as NamedSharding, P as P, make_mesh as make_mesh
from infini.core.world import (
    default_backend as default_backend,
    default_device as default_device,
    device_count as device_count,
    local_device_count as local_device_count,
    process_count as process_count,
    process_index as process_index,
    process_indices as process_indices,
)
from infini.lax.callbacks import pure_callback as pure_callback
from infini.numpy import _methods
from infini.transforms.batching import vmap as vmap
from infini.transforms.checkpointing import checkpoint as checkpoint, remat as remat
from infini.transforms.custom import custom_jvp as custom_jvp, custom_vjp as custom_vjp
from infini.transforms.custom_gradients import custom_gradient as custom_gradient
from infini.transforms.differentiate import (
    fwd_and_bwd as fwd_and_bwd,
    grad as grad,
    jvp as jvp,
    linear_transpose as linear_transpose,
    linearize as linearize,
    value_and_grad as value_and_grad,
    vjp as vjp,
)
from infini.transforms.hosting import (
    block_until_ready as block_until_ready,
    closure_convert as closure_convert,
    device_get as device_get,
    disable_jit as disable_jit,
    effects_barrier as effects_barrier,
    ensure_compile_time_eval as ensure_compile_time_eval,
    named_call as named_call,
    named_scope as named_scope,
)
from infini.transforms.jacobians import (
    hessian as hessian,
    jacfwd as jacfwd,
    jacobian as jacobian,
    jacrev as jacrev,
)
from infini.transforms.parts import (
    make_array_from_single_device_arrays as make_array_from_single_device_arrays,
)
from infini.transforms.placement import (
    device_put as device_put,
    make_array_from_callback as make_array_from_callback,
    make_array_from_process_local_data as make_array_from_process_local_data,
)
from infini.transforms.resharding import reshard as reshard
from infini.transforms.shard import shard as shard, shard_map as shard_map, smap as smap
from infini.transforms.staging import (
    ShapeDtypeStruct as ShapeDtypeStruct,
    eval_shape as eval_shape,
    jit as jit,
    make_jaxpr as make_jaxpr,
)

if TYPE_CHECKING:
    from infini import image as image, nn as nn, scipy as scipy

__version__ = "0.1.0"
_LATER = ("image", "nn", "scipy")  # modules that load when they are first used

_methods.install()


def __getattr__(name: str) -> ModuleType:
    if name in _LATER:
        return importlib.import_module(f"infini.{name}")
    raise AttributeError(f"module 'infini' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
