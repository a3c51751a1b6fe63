"""Which modules of JAX infini serves, from which modules of its own, and which names are added to them.

Declarations only. A name that stands in no table is missing, and `infini.as_jax.importer` says so.
"""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np

import infini
from infini.as_jax import abstract, flags, hijax, primitives, refused, shims
from infini.core import dtypes, errors, ir, trace
from infini.experimental import checkify
from infini.transforms import batch_tracing, forward


def _existing(*names: str) -> tuple[str, ...]:
    """Those of these modules that this infini has."""
    return tuple(name for name in names if _exists(name))


def _exists(name: str) -> bool:
    parent = name.rpartition(".")[0]
    return (not parent or _exists(parent)) and importlib.util.find_spec(name) is not None


# Modules of JAX, and the modules of infini whose names they have.
_SAME_NAMES: Final[dict[str, str]] = {
    "jax": "infini",
    "jax.ad_checkpoint": "infini.ad_checkpoint",
    "jax.checkpoint_policies": "infini.checkpoint_policies",
    "jax.custom_batching": "infini.custom_batching",
    "jax.custom_derivatives": "infini.custom_derivatives",
    "jax.custom_transpose": "infini.custom_transpose",
    "jax.debug": "infini.debug",
    "jax.dlpack": "infini.dlpack",
    "jax.dtypes": "infini.dtypes",
    "jax.errors": "infini.errors",
    "jax.experimental": "infini.experimental",
    "jax.experimental.checkify": "infini.experimental.checkify",
    "jax.experimental.layout": "infini.experimental.layout",
    "jax.experimental.multihost_utils": "infini.experimental.multihost_utils",
    "jax.export": "infini.export",
    "jax.flatten_util": "infini.flatten_util",
    "jax.image": "infini.image",
    "jax.lax": "infini.lax",
    "jax.lax.linalg": "infini.lax.linalg",
    "jax.nn": "infini.nn",
    "jax.nn.initializers": "infini.nn.initializers",
    "jax.numpy": "infini.numpy",
    "jax.numpy.fft": "infini.numpy.fft",
    "jax.numpy.linalg": "infini.numpy.linalg",
    "jax.ops": "infini.ops",
    "jax.profiler": "infini.profiler",
    "jax.random": "infini.random",
    "jax.scipy": "infini.scipy",
    "jax.scipy.cluster": "infini.scipy.cluster",
    "jax.scipy.fft": "infini.scipy.fft",
    "jax.scipy.integrate": "infini.scipy.integrate",
    "jax.scipy.interpolate": "infini.scipy.interpolate",
    "jax.scipy.linalg": "infini.scipy.linalg",
    "jax.scipy.ndimage": "infini.scipy.ndimage",
    "jax.scipy.optimize": "infini.scipy.optimize",
    "jax.scipy.signal": "infini.scipy.signal",
    "jax.scipy.sparse": "infini.scipy.sparse",
    "jax.scipy.sparse.linalg": "infini.scipy.sparse.linalg",
    "jax.scipy.spatial": "infini.scipy.spatial",
    "jax.scipy.special": "infini.scipy.special",
    "jax.scipy.stats": "infini.scipy.stats",
    "jax.scipy.stats.norm": "infini.scipy.stats.norm",
    "jax.sharding": "infini.sharding",
    "jax.stages": "infini.stages",
    "jax.tree": "infini.tree",
    "jax.tree_util": "infini.tree_util",
    "jax.typing": "infini.typing",
}


def _names_of(module: types.ModuleType) -> dict[str, Any]:  # Any: names of many kinds
    return {name: found for name, found in vars(module).items() if not name.startswith("_")}


_CORE: Final[dict[str, Any]] = {  # Any: names of many kinds
    "AbstractValue": abstract.AbstractValue,
    "OpaqueTraceState": abstract.OpaqueTraceState,
    "ShapedArray": abstract.ShapedArray,
    "Tracer": trace.Tracer,
    "concrete_or_error": shims.concrete_or_error,
    "get_aval": abstract.get_aval,
    "get_opaque_trace_state": abstract.get_opaque_trace_state,
    "is_concrete": abstract.is_concrete,
    "mapped_aval": abstract.mapped_aval,
    "trace_state_clean": trace.is_eager,
    "unmapped_aval": abstract.unmapped_aval,
}

_TRACEBACKS: Final[dict[str, Any]] = {  # Any: names of many kinds
    "_exclude_paths": [],
    "api_boundary": shims.api_boundary,
    "register_exclusion": shims.register_exclusion,
}

# Names that infini keeps elsewhere or that JAX has for libraries alone, by module of JAX.
ADDED: Final[Mapping[str, Mapping[str, Any]]] = {  # Any: names of many kinds
    "jax": {
        "Ref": refused.refused_class("jax.Ref"),
        "__version__": shims.VERSION,
        "__version_info__": shims.VERSION_INFO,
        "config": flags.jax_config,
        "default_matmul_precision": flags.default_matmul_precision,
        "enable_x64": flags.enable_x64,
        "log_compiles": flags.log_compiles,
        "new_ref": refused.Refused("jax.new_ref", "carry the value through the function and return it"),
        "numpy_dtype_promotion": flags.numpy_dtype_promotion,
        "numpy_rank_promotion": flags.numpy_rank_promotion,
        "pmap": shims.pmap,
    },
    "jax._src": {},
    "jax._src.checkify": {
        "Error": checkify.Error,
        "checkify": checkify.checkify,
        "user_checks": checkify.user_checks,
    },
    "jax._src.core": _CORE,
    "jax._src.dispatch": {"wait_for_tokens": shims.wait_for_tokens},
    "jax._src.dtypes": {
        **_names_of(infini.dtypes),
        "DType": np.dtype,
        "ExtendedDType": dtypes.ExtendedDType,
        "TypePromotionError": errors.PromotionError,
    },
    "jax._src.earray": {"EArray": refused.refused_class("jax._src.earray.EArray")},
    "jax._src.interpreters": {},
    "jax._src.interpreters.pxla": {},
    "jax._src.literals": {
        "LiteralArray": refused.refused_class("jax._src.literals.LiteralArray"),
        "TypedNdArray": refused.refused_class("jax._src.literals.TypedNdArray"),
    },
    "jax._src.state": {},
    "jax._src.state.types": {"AbstractRef": refused.refused_class("jax._src.state.types.AbstractRef")},
    "jax._src.traceback_util": _TRACEBACKS,
    "jax._src.tree_util": {"_registry": shims.NODE_CLASSES},
    "jax._src.typing": {},
    "jax.core": _CORE,
    "jax.custom_derivatives": {
        "custom_jvp_call_p": primitives.Primitive("custom_jvp_call"),
        "custom_vjp_call_p": primitives.Primitive("custom_vjp_call"),
    },
    "jax.errors": {"JaxRuntimeError": errors.InfiniError, "JAXRuntimeError": errors.InfiniError},
    "jax.api_util": {},
    "jax.experimental": {},
    "jax.experimental.hijax": {
        "AbstractValue": abstract.AbstractValue,
        "AvalMutableQDD": hijax.AvalMutableQDD,
        "AvalQDD": hijax.AvalQDD,
        "HiPrimitive": hijax.HiPrimitive,
        "HiType": hijax.HiType,
        "MutableHiType": hijax.MutableHiType,
        "Zero": primitives.Zero,
        "aval_method": hijax.aval_method,
        "aval_property": hijax.aval_property,
        "control_flow_allowed_effects": hijax.control_flow_allowed_effects,
        "instantiate_zeros": primitives.instantiate_zeros,
        "is_undefined_primal": primitives.is_undefined_primal,
        "register_hitype": hijax.register_hitype,
    },
    "jax.extend": {},
    "jax.extend.core": {
        "ClosedJaxpr": ir.Program,
        "Effect": primitives.Effect,
        "Jaxpr": ir.Program,
        "Primitive": primitives.Primitive,
        "Var": ir.Var,
        "get_opaque_trace_state": abstract.get_opaque_trace_state,
        "mapped_aval": abstract.mapped_aval,
        "unmapped_aval": abstract.unmapped_aval,
    },
    "jax.extend.linear_util": {},
    "jax.extend.source_info_util": {"register_exclusion": shims.register_exclusion},
    "jax.interpreters": {},
    "jax.interpreters.ad": {
        "JVPTracer": forward.JVPTracer,
        "UndefinedPrimal": primitives.UndefinedPrimal,
        "Zero": primitives.Zero,
        "instantiate_zeros": primitives.instantiate_zeros,
        "is_undefined_primal": primitives.is_undefined_primal,
        "primitive_jvps": primitives.primitive_jvps,
        "primitive_transposes": primitives.primitive_transposes,
    },
    "jax.interpreters.batching": {
        "BatchTracer": batch_tracing.BatchTracer,
        "axis_primitive_batchers": primitives.axis_primitive_batchers,
        "not_mapped": None,
        "primitive_batchers": primitives.primitive_batchers,
    },
    "jax.interpreters.mlir": {
        "emit_python_callback": refused.Refused(
            "jax.interpreters.mlir.emit_python_callback", "call the function through jax.pure_callback"
        ),
        "lower_fun": primitives.lower_fun,
        "register_lowering": primitives.register_lowering,
    },
    "jax.interpreters.partial_eval": {
        "PartialVal": refused.refused_class("jax.interpreters.partial_eval.PartialVal")
    },
    "jax.monitoring": {
        "record_event": shims.record_event,
        "record_event_duration_secs": shims.record_event_duration_secs,
    },
    "jax.stages": {"CompilerOptions": dict[str, str | bool | int | float]},
    "jax.version": {"__version__": shims.VERSION, "__version_info__": shims.VERSION_INFO},
    "jaxlib": {"__version__": shims.VERSION},
    "jaxlib.version": {"__version__": shims.VERSION},
}

# Names of JAX that stand here until infini has its own, which then wins.
STAND_INS: Final[Mapping[str, Mapping[str, Any]]] = {  # Any: names of many kinds
    "jax.numpy": {
        # Named in libraries; infini says that it does not compute with them when an array is made.
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    },
}

# Every module that is served, with the modules of infini that have its names.
MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    name: found
    for name in sorted({*_SAME_NAMES, *ADDED})
    if (found := _existing(_SAME_NAMES[name]) if name in _SAME_NAMES else ()) or name in ADDED
}
