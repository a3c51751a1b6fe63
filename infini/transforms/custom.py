"""Custom derivative rules as users write them: `custom_jvp` and `custom_vjp`, as in JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import families
from infini.lax.calls import Flags, MaybeValues, Values
from infini.transforms import flat
from infini.transforms.custom_arguments import (
    Arguments,
    CustomVJPPrimal,
    SymbolicZero,
    arguments_of,
    check_nondiff_names,
    cotangents_by_leaf,
    name_of,
)
from infini.transforms.custom_calls import CustomCall

# --- custom_jvp -----------------------------------------------------------------------------------


class custom_jvp:  # noqa: N801  # JAX's name
    """Give a function its own JVP.

    Args:
        fun: function of arrays and pytrees.
        nondiff_argnums: positions of arguments that are not differentiated; they come first in the rule.
        nondiff_argnames: the same by name.

    Use `defjvp(rule)` where `rule(*nondiff, primals, tangents)` returns `(output, output_tangent)`, or
    `defjvps(*rules)`.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> @inf.custom_jvp
        ... def f(x):
        ...     return inp.sin(x)
        >>> f.defjvps(lambda tangent, output, x: 10 * tangent)
        >>> inf.grad(f)(0.0)
        Array(10., dtype=float32, weak_type=True)
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        nondiff_argnums: Sequence[int] = (),
        nondiff_argnames: Sequence[str] = (),
    ) -> None:
        functools.update_wrapper(self, fun)
        check_nondiff_names(fun, nondiff_argnames)
        self.fun = fun
        self.nondiff_argnums = tuple(nondiff_argnums)
        self.nondiff_argnames = tuple(nondiff_argnames)
        self.jvp: Callable[..., Any] | None = None
        self.symbolic_zeros = False

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def defjvp(self, jvp: Callable[..., Any], symbolic_zeros: bool = False) -> Callable[..., Any]:
        """Set the rule and return it.

        Args:
            jvp: `jvp(*nondiff, primals, tangents)`, which returns `(output, output_tangent)`.
            symbolic_zeros: give tangents that are known to be zero as `SymbolicZero`, not as zeros.
        """
        self.jvp, self.symbolic_zeros = jvp, symbolic_zeros
        return jvp

    def defjvps(self, *jvps: Callable[..., Any] | None) -> None:
        """Set one rule per argument, `rule(tangent, output, *primals)`; None means no contribution."""
        if self.nondiff_argnums or self.nondiff_argnames:
            raise errors.TypeMismatchError("defjvps cannot be used with nondiff_argnums; use defjvp")

        def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
            out = self(*primals)
            total = None
            for one, tangent in zip(jvps, tangents, strict=True):
                if one is not None:
                    term = one(tangent, out, *primals)
                    total = term if total is None else tree.map(_add, total, term)
            return out, tree.map(lambda x: families.zeros(x.type), out) if total is None else total

        self.defjvp(rule)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.jvp is None:
            raise errors.MissingDerivativeError(
                f"no JVP is defined for {name_of(self.fun)}, which is a custom_jvp function",
                fix="call defjvp(rule) first",
            )
        values, given = arguments_of(self.fun, self.nondiff_argnums, self.nondiff_argnames, args, kwargs)
        flattened = _JVPRule(self, self.jvp, given)
        call = CustomCall(
            name_of(self.fun), flattened.function, rule=flattened.rule, key=(self, self.jvp, *given.key)
        )
        results = call(values)
        assert flattened.out_tree is not None
        return tree.unflatten(flattened.out_tree, flat.finished(results))


def _add(a: Any, b: Any) -> Value:  # Any: arrays and numbers
    return trace.bind1(primitive.by_name("add"), a, b)


class _JVPRule:
    """A function and its rule on flat values; remembers the structure of the results."""

    def __init__(self, owner: custom_jvp, jvp: Callable[..., Any], given: Arguments) -> None:
        self.owner, self.jvp, self.given = owner, jvp, given
        self.out_tree: tree.PyTreeDef | None = None

    def function(self, *leaves: Value) -> list[Value]:
        found, self.out_tree = tree.flatten(self.owner.fun(*self.given.merged(leaves)))
        return flat.values(found, f"results of {name_of(self.owner.fun)}")

    def rule(self, primals: Values, tangents: MaybeValues) -> tuple[Values, MaybeValues]:
        zeros = [SymbolicZero.like(p.type) for p in primals]
        moved = [
            (zero if self.owner.symbolic_zeros else zero.instantiate()) if t is None else t
            for t, zero in zip(tangents, zeros, strict=True)
        ]
        in_tree = self.given.in_tree
        pair = self.jvp(*self.given.static, tree.unflatten(in_tree, primals), tree.unflatten(in_tree, moved))
        name = name_of(self.owner.fun)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise errors.TypeMismatchError(
                f"the JVP rule of {name} must return (output, output_tangent)", got=type(pair).__name__
            )
        outs, self.out_tree = tree.flatten(pair[0])
        out_tangents, moved_tree = tree.flatten(pair[1])
        if moved_tree != self.out_tree:
            raise errors.TypeMismatchError(
                f"the JVP rule of {name} must return an output and a tangent of one structure",
                got=f"{self.out_tree} and {moved_tree}",
            )
        results = flat.values(outs, f"outputs of the JVP rule of {name}")
        return results, [_tangent(t, r.type, name) for t, r in zip(out_tangents, results, strict=True)]


def _tangent(t: Any, type_: ArrayType, name: str) -> Value | None:  # Any: a leaf that a user's rule returned
    expected = flat.tangent_dtype(type_.dtype)
    if isinstance(t, SymbolicZero):
        return None
    value: Any = t if flat.is_float0(t) else trace.as_value(t)
    if value.shape != type_.shape or value.dtype != expected:
        raise errors.TypeMismatchError(
            f"the JVP rule of {name} must return a tangent of the shape and dtype of its output",
            got=f"a tangent of dtype {value.dtype.name} and shape {value.shape}",
            expected=f"{expected.name} and {type_.shape}, as the output is {type_}",
        )
    return None if expected == dtypes.float0 else value


# --- custom_vjp -----------------------------------------------------------------------------------


class custom_vjp:  # noqa: N801  # JAX's name
    """Give a function its own VJP.

    Args:
        fun: function of arrays and pytrees.
        nondiff_argnums: positions of arguments that are not differentiated; they come first in `bwd`.
        nondiff_argnames: the same by name.

    Use `defvjp(fwd, bwd)`: `fwd(*args)` returns `(output, residuals)`; `bwd(*nondiff, residuals, ct)` returns
    one cotangent per remaining argument, None for zero. Forward mode of such a function is an error.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> @inf.custom_vjp
        ... def clip_gradient(x):
        ...     return x
        >>> clip_gradient.defvjp(lambda x: (x, None), lambda _, ct: (inp.clip(ct, -1.0, 1.0),))
        >>> inf.grad(lambda x: 5 * clip_gradient(x))(0.0)
        Array(1., dtype=float32, weak_type=True)
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        nondiff_argnums: Sequence[int] = (),
        nondiff_argnames: Sequence[str] = (),
    ) -> None:
        functools.update_wrapper(self, fun)
        check_nondiff_names(fun, nondiff_argnames)
        self.fun = fun
        self.nondiff_argnums = tuple(nondiff_argnums)
        self.nondiff_argnames = tuple(nondiff_argnames)
        self.fwd: Callable[..., Any] | None = None
        self.bwd: Callable[..., Any] | None = None
        self.symbolic_zeros = False

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def defvjp(
        self,
        fwd: Callable[..., Any],
        bwd: Callable[..., Any],
        symbolic_zeros: bool = False,
        optimize_remat: bool = False,
    ) -> None:
        """Set the forward and the backward rule.

        Args:
            fwd: `fwd(*args)`, which returns `(output, residuals)`.
            bwd: `bwd(*nondiff, residuals, ct)`, which returns one cotangent per remaining argument.
            symbolic_zeros: give `fwd` arrays as `CustomVJPPrimal`, and `bwd` cotangents that are known to be
                zero as `SymbolicZero`.
            optimize_remat: accepted for JAX's sake; what nothing uses is dropped in any case.
        """
        self.fwd, self.bwd, self.symbolic_zeros = fwd, bwd, symbolic_zeros

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.fwd is None or self.bwd is None:
            raise errors.MissingDerivativeError(
                f"no VJP is defined for {name_of(self.fun)}, which is a custom_vjp function",
                fix="call defvjp(fwd, bwd) first",
            )
        values, given = arguments_of(self.fun, self.nondiff_argnums, self.nondiff_argnames, args, kwargs)
        flattened = _VJPRule(self, self.fwd, self.bwd, given)
        call = CustomCall(
            name_of(self.fun),
            flattened.function,
            forward=flattened.forward,
            key=(self, self.fwd, self.bwd, *given.key),
        )
        results = call(values)
        assert flattened.out_tree is not None
        return tree.unflatten(flattened.out_tree, flat.finished(results))


class _VJPRule:
    """A function and its rules on flat values; remembers the structure of the results."""

    def __init__(
        self, owner: custom_vjp, fwd: Callable[..., Any], bwd: Callable[..., Any], given: Arguments
    ) -> None:
        self.owner, self.fwd, self.bwd, self.given = owner, fwd, bwd, given
        self.out_tree: tree.PyTreeDef | None = None

    def function(self, *leaves: Value) -> list[Value]:
        found, self.out_tree = tree.flatten(self.owner.fun(*self.given.merged(leaves)))
        return flat.values(found, f"results of {name_of(self.owner.fun)}")

    def forward(self, primals: Values, perturbed: Flags) -> tuple[Values, Values, Any]:
        leaves: Sequence[Any] = primals
        if self.owner.symbolic_zeros:
            leaves = [CustomVJPPrimal(p, flag) for p, flag in zip(primals, perturbed, strict=True)]
        name, expected = name_of(self.owner.fun), self.out_tree
        pair = self.fwd(*self.given.merged(leaves))
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise errors.TypeMismatchError(
                f"the forward rule of {name} must return (output, residuals)", got=type(pair).__name__
            )
        outs, out_tree = tree.flatten(pair[0])
        if expected is not None and out_tree != expected:
            raise errors.TypeMismatchError(
                f"the forward rule of {name} must return the structure of the function",
                got=str(out_tree),
                expected=str(expected),
            )
        self.out_tree = out_tree
        residuals, residual_tree = tree.flatten(pair[1])
        results = flat.values(outs, f"outputs of the forward rule of {name}")
        pull = _Backward(
            self.bwd,
            self.owner.symbolic_zeros,
            name,
            self.given,
            out_tree,
            residual_tree,
            tuple(p.type for p in primals),
            tuple(r.type for r in results),
        )
        return results, flat.values(residuals, f"residuals of the forward rule of {name}"), pull


@dataclass(frozen=True, slots=True)
class _Backward:
    """A user's backward rule on flat values, for one run of the forward rule."""

    bwd: Callable[..., Any]
    symbolic_zeros: bool
    name: str
    given: Arguments
    out_tree: tree.PyTreeDef
    residual_tree: tree.PyTreeDef
    in_types: tuple[ArrayType, ...]
    out_types: tuple[ArrayType, ...]

    def __call__(self, residuals: Values, cts: MaybeValues) -> MaybeValues:
        zeros = [SymbolicZero.like(t) for t in self.out_types]
        filled = [
            (zero if self.symbolic_zeros else zero.instantiate()) if ct is None else ct
            for ct, zero in zip(cts, zeros, strict=True)
        ]
        saved = tree.unflatten(self.residual_tree, residuals)
        found = self.bwd(*self.given.static, saved, tree.unflatten(self.out_tree, filled))
        leaves = cotangents_by_leaf(found, self.given.in_tree, self.name)
        return [self._checked(ct, t) for ct, t in zip(leaves, self.in_types, strict=True)]

    def _checked(self, ct: Any, type_: ArrayType) -> Value | None:
        is_zero = ct is None or isinstance(ct, SymbolicZero) or flat.is_float0(ct)
        if is_zero or not dtypes.is_inexact(type_.dtype):
            return None
        value = trace.as_value(ct)
        if value.shape != type_.shape:
            raise errors.ValueMismatchError(
                f"the backward rule of {self.name} returned a cotangent of another shape than the argument",
                got=str(value.type),
                expected=str(type_),
            )
        if value.dtype == type_.dtype:
            return value
        return trace.bind1(primitive.by_name("convert_element_type"), value, new_dtype=type_.dtype)
