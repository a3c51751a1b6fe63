"""Estimates of work: of scalar operations, used by the fuser, and of whole programs, shown by
`cost_analysis`.
"""

from __future__ import annotations

from typing import Final

from infini.core.ir import Equation, Program
from infini.lax import contraction

# Relative to an addition, per element on a vector unit.
_WEIGHTS: Final[dict[str, float]] = {
    "exp": 10.0, "log": 12.0, "log1p": 14.0, "expm1": 14.0, "tanh": 14.0, "logistic": 14.0, "erf": 16.0,
    "erf_inv": 30.0, "sin": 16.0, "cos": 16.0, "pow": 40.0, "div": 4.0, "rem": 8.0, "sqrt": 5.0, "rsqrt": 6.0,
    "convert_element_type": 0.5, "bitcast_convert_type": 0.0, "select_n": 1.0,
    "exp2": 10.0, "tan": 20.0, "asin": 14.0, "acos": 14.0, "atan": 14.0, "atan2": 20.0, "sinh": 20.0,
    "cosh": 20.0, "asinh": 30.0, "acosh": 30.0, "atanh": 20.0, "cbrt": 26.0, "erfc": 24.0, "lgamma": 70.0,
    "digamma": 80.0, "bessel_i0e": 36.0, "bessel_i1e": 36.0, "clamp": 2.0, "integer_pow": 2.0,
}  # fmt: skip


def op_weight(name: str) -> float:
    """Work of one element of an elementwise operation, an addition being 1."""
    return _WEIGHTS.get(name, 1.0)


# Other names for the same memory.
_FREE: Final = frozenset({"optimization_barrier", "reshape", "view_as_complex", "view_as_real"})


def analyse(source: Program, fused: Program) -> dict[str, float]:
    """Counts of a program: `flops`, `bytes accessed` by its phases, `kernels`, `equations`. Loops count once
    per turn.
    """
    counts = {"flops": 0.0, "bytes accessed": 0.0, "kernels": 0.0, "equations": float(len(source.equations))}
    _count(fused, counts, 1.0)
    return counts


def _count(program: Program, counts: dict[str, float], times: float) -> None:
    for equation in program.equations:
        if equation.op.name in _FREE:
            continue
        if equation.op.name in ("scan", "while", "cond"):
            turns = float(equation.attrs.get("length", 1))
            for inner in equation.programs:
                _count(inner, counts, times * turns)
            continue
        counts["bytes accessed"] += times * sum(v.type.nbytes for v in (*equation.inputs, *equation.outputs))
        counts["kernels"] += times
        counts["flops"] += times * _flops(equation)


def _flops(equation: Equation) -> float:
    if equation.op.name == "dot":
        return contraction.cost([v.type for v in equation.inputs], spec=equation.attrs["spec"])
    if equation.op.name == "kernel":
        kernel = equation.attrs["kernel"]
        return float(
            kernel.num_programs
            * sum(e.inputs[0].type.size if e.op.name.startswith("reduce_") else e.outputs[0].type.size
                  for e in kernel.body.equations if e.op.name not in ("broadcast_in_dim", "reshape", "iota"))
        )  # fmt: skip
    return 0.0
