"""The linear part of a function at a point, run backwards: what every derivative transform starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import dtypes, errors, trace
from infini.core.ir import ArrayType, Program
from infini.core.value import Literal, Value
from infini.lax import families
from infini.lax.families import LinearInput
from infini.transforms import flat, linear

Flags = tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Pullback:
    """The transpose of a linear program between flat values: from residuals and cotangents.

    Args:
        program: from residuals and the tangents of inputs that have one to the tangents of the results
            marked in `out_nonzero`.
        in_types: types of all inputs; integers among them have no tangent.
        out_types: types of all results.
        out_nonzero: results that depend on an input.
    """

    program: Program
    in_types: tuple[ArrayType, ...]
    out_types: tuple[ArrayType, ...]
    out_nonzero: Flags

    def __call__(self, residuals: Sequence[Value], cotangents: Sequence[Value | None]) -> list[Value | None]:
        """Cotangents of the inputs; None for integers, and where nothing depends on an input."""
        types = [t for t in self.in_types if dtypes.is_inexact(t.dtype)]
        args: list[Value | LinearInput] = [*residuals, *(LinearInput(t) for t in types)]
        cts = [ct for ct, flag in zip(cotangents, self.out_nonzero, strict=True) if flag]
        found = iter(linear.backward(self.program, args, cts)[len(residuals) :])
        return [next(found) if dtypes.is_inexact(t.dtype) else None for t in self.in_types]


def or_zeros(x: Value | None, type_: ArrayType) -> Value:
    """A tangent or cotangent as a value: zeros of this type where it is absent."""
    return families.zeros(type_) if x is None else x


def linearized(
    f: Callable[..., Sequence[Any]], operands: Sequence[Value]
) -> tuple[list[Value], Pullback, list[Value]]:
    """Results of a flat function at values, its linear part there, and the residuals that it needs."""
    moving = [dtypes.is_inexact(x.dtype) for x in operands]

    def of_moving(*moved: Value) -> Sequence[Any]:
        given = iter(moved)
        return f(*(next(given) if m else x for x, m in zip(operands, moving, strict=True)))

    of_moving.__name__ = getattr(f, "__name__", "f")
    primals = [x for x, m in zip(operands, moving, strict=True) if m]
    results, program, residuals, nonzero = linear.linearize_values(of_moving, primals)
    types = tuple(x.type for x in operands)
    return results, Pullback(program, types, tuple(r.type for r in results), nonzero), residuals


def tangent(t: Any, type_: ArrayType, what: str) -> Value | None:  # Any: a leaf
    """The tangent of a primal as a value; None for float0.

    Raises:
        TypeMismatchError: it has another dtype.
        ValueMismatchError: it has another shape.
    """
    value: Any = t if flat.is_float0(t) else flat.values([t], f"tangents of {what}")[0]
    expected = flat.tangent_dtype(type_.dtype)
    if value.dtype != expected:
        raise errors.TypeMismatchError(
            f"primal and tangent given to {what} must have one dtype",
            got=f"a primal of type {type_} and a tangent of dtype {value.dtype.name}",
            expected=f"a tangent of dtype {'float0' if expected == dtypes.float0 else expected.name}",
            fix="pass np.zeros(shape, infini.float0) as tangent of integers and booleans"
            if expected == dtypes.float0
            else "convert it with .astype(...)",
        )
    if value.shape != type_.shape:
        raise errors.ValueMismatchError(
            f"primal and tangent given to {what} must have one shape",
            got=f"a primal of type {type_} and a tangent of shape {value.shape}",
        )
    return None if expected == dtypes.float0 else value


def result_tangent(
    t: Value | None, type_: ArrayType, weak: bool = False
) -> Any:  # Any: a value or a float0 array
    """The tangent of a result for the user: zeros where it is constant, float0 for integers."""
    if not dtypes.is_inexact(type_.dtype):
        return flat.float0_zeros(type_.shape)
    return families.zeros(type_).with_weak(weak) if t is None else t


def primal_of(x: Any) -> Any:  # Any: a leaf
    """What stands behind a leaf of an auxiliary output once its derivative has been taken."""
    if isinstance(x, linear.LinearizeTracer) and x.owner.is_closed:
        x = x.primal
    return trace.to_array(x) if isinstance(x, Literal) and trace.is_eager() else x


def no_reduce_axes(axes: Sequence[Any]) -> None:
    """Refuse the option that JAX has given up.

    Raises:
        MissingRuleError: it is used.
    """
    if axes:
        raise errors.MissingRuleError(
            "reduce_axes is not supported", got=repr(axes), fix="sum the gradient with lax.psum"
        )
