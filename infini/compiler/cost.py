"""Estimates of work: of scalar operations, used by the fuser, and of whole programs, shown by `cost_analysis`."""

from __future__ import annotations

from typing import Final

# Relative to an addition, per element on a vector unit.
_WEIGHTS: Final[dict[str, float]] = {
    "exp": 10.0, "log": 12.0, "log1p": 14.0, "expm1": 14.0, "tanh": 14.0, "logistic": 14.0, "erf": 16.0, "erf_inv": 30.0,
    "sin": 16.0, "cos": 16.0, "pow": 24.0, "div": 4.0, "rem": 8.0, "sqrt": 5.0, "rsqrt": 6.0,
    "convert_element_type": 0.5, "bitcast_convert_type": 0.0, "select_n": 1.0,
}  # fmt: skip


def op_weight(name: str) -> float:
    """Work of one element of an elementwise operation, an addition being 1."""
    return _WEIGHTS.get(name, 1.0)
