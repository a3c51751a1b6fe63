"""What automatic checks look at: which places an operation indexes, and which operations can make a NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from infini import lax
from infini.core import dtypes
from infini.core.ir import ArrayType, Equation
from infini.core.value import Value
from infini.lax import families


def _slice_places(equation: Equation, args: Sequence[Value]) -> tuple[Value, np.ndarray, Sequence[int]]:
    operand, starts = args[0], args[1:]
    sizes = equation.attrs["slice_sizes"]
    return _stacked(starts), np.subtract(operand.shape, sizes), range(operand.ndim)


def _update_places(equation: Equation, args: Sequence[Value]) -> tuple[Value, np.ndarray, Sequence[int]]:
    operand, update, starts = args[0], args[1], args[2:]
    return _stacked(starts), np.subtract(operand.shape, update.shape), range(operand.ndim)


def _stacked(starts: Sequence[Value]) -> Value:
    if not starts:
        return families.zeros(ArrayType((0,), dtypes.int32))
    wide = [lax.reshape(lax.convert_element_type(s, "int32"), (1,)) for s in starts]
    return lax.concatenate(wide, 0)


def _gather_places(equation: Equation, args: Sequence[Value]) -> tuple[Value, np.ndarray, Sequence[int]]:
    operand, indices = args
    axes = equation.attrs["dimension_numbers"].start_index_map
    sizes = equation.attrs["slice_sizes"]
    return indices, np.asarray([operand.shape[a] - sizes[a] for a in axes], np.int64), axes


def _scatter_places(equation: Equation, args: Sequence[Value]) -> tuple[Value, np.ndarray, Sequence[int]]:
    operand, indices, updates = args
    numbers = equation.attrs["dimension_numbers"]
    axes = numbers.scatter_dims_to_operand_dims
    single = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = iter(numbers.update_window_dims)
    sizes = [1 if a in single else updates.shape[next(windows)] for a in range(operand.ndim)]
    return indices, np.asarray([operand.shape[a] - sizes[a] for a in axes], np.int64), axes


PLACES: Final = {
    "dynamic_slice": _slice_places,
    "dynamic_update_slice": _update_places,
    "gather": _gather_places,
    **{f"scatter{kind}": _scatter_places for kind in ("", "_add", "_sub", "_mul", "_min", "_max")},
}

# Operations that hand numbers on: a NaN in their results was in their operands.
KEEPS_NUMBERS: Final = frozenset({
    "abs", "bitcast_convert_type", "broadcast_in_dim", "call", "ceil", "check", "clamp", "concatenate",
    "conj", "convert_element_type", "copy", "device_put", "dynamic_slice", "dynamic_update_slice",
    "expand_dims", "floor", "gather", "imag", "iota", "max", "min", "neg", "optimization_barrier",
    "real", "reduce_max", "reduce_min", "reshape", "rev", "round_away", "round_even", "select_n",
    "sharding_constraint", "sign", "slice", "sort", "squeeze", "stop_gradient", "top_k", "transpose",
    "unfold", "view_as_complex", "view_as_real",
})  # fmt: skip
