"""`jax.config`: flags with a knob behind them set it, flags about what infini has no counterpart of are
noted in an event, and flags that would change results here are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from infini.core import config, errors, events

# What infini always does. Setting one of these to its value is right, to another an error.
FIXED: Final[dict[str, tuple[object, ...]]] = {
    "jax_enable_x64": (False,),
    "jax_default_prng_impl": ("threefry2x32",),
    "jax_threefry_partitionable": (True,),
    "jax_enable_custom_prng": (False, True),  # typed keys and raw ones both work
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_numpy_rank_promotion": ("allow",),
    "jax_default_matmul_precision": (None,),
    "jax_softmax_custom_jvp": (True,),
    "jax_no_tracing": (False,),
    "jax_debug_key_reuse": (False,),
    "jax_legacy_prng_key": ("allow",),
}

# They change messages, logs, caches on disk or XLA's own choices, and never a result.
IGNORED: Final[dict[str, object]] = {
    "jax_captured_constants_report_frames": 0,
    "jax_compilation_cache_max_size": -1,
    "jax_cpu_enable_async_dispatch": True,
    "jax_dump_ir_to": "",
    "jax_include_full_tracebacks_in_locations": True,
    "jax_log_compiles": False,
    "jax_log_checkpoint_residuals": False,
    "jax_memory_fitting_effort": 0.0,
    "jax_optimization_level": "UNKNOWN",
    "jax_persistent_cache_enable_xla_caches": "xla_gpu_per_fusion_autotune_cache_dir",
    "jax_persistent_cache_min_compile_time_secs": 1.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_raise_persistent_cache_errors": False,
    "jax_traceback_filtering": "auto",
    "jax_transfer_guard": "allow",
    "jax_use_shardy_partitioner": True,
    "jax_xla_profile_version": 0,
}


def _fixed(name: str, value: object) -> None:
    if value not in FIXED[name]:
        if name == "jax_enable_x64":
            config.config.update(name, value)  # says what to do without the flag
        raise errors.ValueMismatchError(
            f"infini has one value for JAX's flag {name!r}",
            got=repr(value),
            expected=" or ".join(map(repr, FIXED[name])),
            fix="leave the flag as it is",
        )


class JaxConfig:
    """`jax.config`: `update` and `read`, and every flag as an attribute."""

    def __init__(self) -> None:
        self._ignored = dict(IGNORED)

    def update(self, name: str, value: Any) -> None:  # Any: flags have different types
        """Set a flag, as `jax.config.update`.

        Args:
            name: a flag of JAX, such as `jax_debug_nans`, or a knob of infini.
            value: its value.

        Raises:
            ValueMismatchError: there is no such flag, or infini cannot do what the value asks for.
        """
        if name in self._ignored:
            self._ignored[name] = value
            events.emit("jax-flag-ignored", f"JAX's flag {name!r} has no effect on infini", flag=name)
        elif name in FIXED:
            _fixed(name, value)
        else:
            config.config.update(name, value)

    def read(self, name: str) -> Any:  # Any: flags have different types
        """The value of a flag, as `jax.config.read`."""
        return getattr(self, name)

    def __getattr__(self, name: str) -> Any:  # Any: flags have different types
        if name in FIXED:
            return FIXED[name][0]
        if name in IGNORED:
            return self._ignored[name]
        knob = _READ.get(name)
        if knob is not None:
            return knob()
        raise AttributeError(f"infini does not have JAX's flag {name!r}")


_READ: Final[dict[str, Callable[[], Any]]] = {  # Any: flags have different types
    "jax_check_tracer_leaks": lambda: config.get("check_tracer_leaks"),
    "jax_compilation_cache_dir": lambda: config.get("cache_dir") or None,
    "jax_debug_infs": lambda: config.get("inf"),
    "jax_debug_nans": lambda: config.get("nan"),
    "jax_disable_jit": lambda: config.get("disable_jit"),
    "jax_enable_checks": lambda: bool(config.get("check")),
    "jax_enable_compilation_cache": lambda: not config.get("no_cache"),
    "jax_explain_cache_misses": lambda: config.get("explain"),
    "jax_logging_level": lambda: config.get("log").upper(),
    "jax_num_cpu_devices": lambda: config.get("cpu_devices"),
    "jax_platform_name": lambda: config.get("device"),
    "jax_platforms": lambda: config.get("device") or None,
}


def _block(name: str) -> Callable[[object], contextlib.AbstractContextManager[None]]:
    """The context manager of a flag with one value here: it checks the value and changes nothing."""

    def of(value: object) -> contextlib.AbstractContextManager[None]:
        _fixed(name, value)
        return contextlib.nullcontext()

    return of


enable_x64: Final = _block("jax_enable_x64")
numpy_dtype_promotion: Final = _block("jax_numpy_dtype_promotion")
numpy_rank_promotion: Final = _block("jax_numpy_rank_promotion")
default_matmul_precision: Final = _block("jax_default_matmul_precision")


def log_compiles(is_on: bool = True) -> contextlib.AbstractContextManager[None]:
    """`jax.log_compiles`: within a block, log why functions are traced again."""
    return config.config(explain=is_on, **({"log": "info"} if is_on else {}))


jax_config: Final = JaxConfig()
