"""The shape of an optimizer: a pair of pure functions `init(params)` and `update(updates, state, params)`.

`chain` applies several in turn; `apply_updates` adds the result to the parameters. A learning rate is a
number, an array (also a traced one), or a schedule of the step number. States are named tuples, so they are
pytrees. Names, arguments and results are optax's, https://github.com/google-deepmind/optax.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import infini.numpy as inp
from infini import Array, eval_shape, tree
from infini.core import errors

Params: TypeAlias = Any  # Any: a pytree of arrays
Updates: TypeAlias = Any  # Any: a pytree of arrays of the structure of the parameters
State: TypeAlias = Any  # Any: a pytree of arrays, of a structure only its transformation knows
Schedule: TypeAlias = Callable[[Any], Any]  # Any: from a step number to a number or a scalar array
Rate: TypeAlias = float | Array | Schedule
Mask: TypeAlias = Any  # Any: a pytree of bools that is a prefix of the parameters, or a function to one
DType: TypeAlias = Any  # Any: a dtype or its name


class GradientTransformation(NamedTuple):
    """A step of an optimizer.

    Args:
        init: state for these parameters.
        update: `(updates, state, params) -> (updates, state)`; the parameters may be left out where a
            transformation does not need them.
    """

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State]]


class GradientTransformationExtraArgs(GradientTransformation):
    """A transformation whose `update` also takes keyword arguments, such as the value of the loss."""


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


def init_empty_state(params: Params) -> EmptyState:
    """The state of a transformation that remembers nothing."""
    return EmptyState()


def run(
    transformation: GradientTransformation,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: dict[str, Any],
) -> tuple[Updates, State]:  # Any: arguments of update
    """One update; extra arguments go to the transformations that take any."""
    if isinstance(transformation, GradientTransformationExtraArgs):
        return transformation.update(updates, state, params, **extra)
    return transformation.update(updates, state, params)


def as_before(found: tuple[Updates, State], before: State) -> tuple[Updates, State]:
    """An update whose state has the dtypes that it had."""
    updates, after = found
    return updates, tree.map(lambda new, old: inp.asarray(new, dtype=old.dtype), after, before)


def zeros_of(
    opt: GradientTransformation, updates: Updates, state: State, params: Params | None, extra: dict[str, Any]
) -> Updates:  # Any: arguments of update
    """Zeros of the types of the optimizer's updates."""
    types = eval_shape(lambda u, s: run(opt, u, s, params, extra)[0], updates, state)
    return tree.map(lambda t: inp.zeros(t.shape, t.dtype), types)


def with_extra_args_support(tx: GradientTransformation) -> GradientTransformationExtraArgs:
    """A transformation that accepts extra arguments and, when `tx` takes none, ignores them."""
    if isinstance(tx, GradientTransformationExtraArgs):
        return tx

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:  # Any: ignored
        return tx.update(updates, state, params)

    return GradientTransformationExtraArgs(tx.init, update)


def needed(name: str, params: Params | None) -> Params:
    """The parameters of a transformation that needs them.

    Raises:
        TypeMismatchError: they were left out.
    """
    if params is None:
        raise errors.TypeMismatchError(
            f"optim.{name} needs the parameters", fix="call update(updates, state, params)"
        )
    return params


def stateless(f: Callable[[Updates, Params | None], Updates]) -> GradientTransformation:
    """A transformation from a function of updates and parameters."""

    def update(updates: Updates, state: State, params: Params | None = None) -> tuple[Updates, State]:
        return f(updates, params), state

    return GradientTransformation(init_empty_state, update)


def stateless_with_tree_map(f: Callable[[Array, Array | None], Array]) -> GradientTransformation:
    """A transformation from a function of one update and its parameter."""

    def of_all(updates: Updates, params: Params | None) -> Updates:
        if params is None:
            return tree.map(lambda u: f(u, None), updates)
        return tree.map(f, updates, params)

    return stateless(of_all)


def identity() -> GradientTransformation:
    """Leave updates as they are."""
    return stateless(lambda updates, params: updates)


def set_to_zero() -> GradientTransformation:
    """Zeros, so that parameters stay."""
    return stateless(lambda updates, params: tree.map(inp.zeros_like, updates))


def chain(*args: GradientTransformation) -> GradientTransformationExtraArgs:
    """Apply transformations one after the other; the state is the tuple of theirs.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import optim
        >>> optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1))
        >>> params = {"w": inp.ones(2)}
        >>> updates, state = optimizer.update({"w": inp.asarray([3.0, 4.0])}, optimizer.init(params), params)
        >>> optim.apply_updates(params, updates)["w"].tolist()
        [0.9399999976158142, 0.9200000166893005]
    """

    def init(params: Params) -> State:
        return tuple(transformation.init(params) for transformation in args)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:  # Any: arguments of update
        if len(state) != len(args):
            raise errors.ValueMismatchError(
                "optim.chain was given the state of another optimizer",
                got=f"a state of {len(state)} parts",
                expected=f"{len(args)} parts, as init(params) makes them",
            )
        after = []
        for transformation, before in zip(args, state, strict=True):
            updates, part = run(transformation, updates, before, params, extra)
            after.append(part)
        return updates, tuple(after)

    return GradientTransformationExtraArgs(init, update)


def named_chain(*args: tuple[str, GradientTransformation]) -> GradientTransformationExtraArgs:
    """As `chain`, of pairs of name and transformation; the state is a dictionary."""
    names = [name for name, _ in args]
    if len(set(names)) != len(names):
        raise errors.ValueMismatchError("optim.named_chain: a name occurs twice", got=", ".join(names))

    def init(params: Params) -> State:
        return {name: transformation.init(params) for name, transformation in args}

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:  # Any: arguments of update
        after = {}
        for name, transformation in args:
            updates, after[name] = run(transformation, updates, state[name], params, extra)
        return updates, after

    return GradientTransformationExtraArgs(init, update)


def apply_updates(params: Params, updates: Updates) -> Params:
    """Parameters plus updates, in the parameters' dtypes."""
    return tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)


def incremental_update(new_tensors: Params, old_tensors: Params, step_size: float | Array) -> Params:
    """A share of the new parameters and the rest of the old ones, such as Polyak averaging needs."""
    return tree.map(lambda new, old: step_size * new + (1.0 - step_size) * old, new_tensors, old_tensors)


def periodic_update(
    new_tensors: Params, old_tensors: Params, steps: int | Array, update_period: int | Array
) -> Params:
    """The new parameters at every `update_period`-th step, else the old ones."""
    is_due = inp.asarray(steps) % update_period == 0
    return tree.map(lambda new, old: inp.where(is_due, new, old), new_tensors, old_tensors)


Labels: TypeAlias = Any  # Any: a pytree of hashable labels that is a prefix of the parameters, or a function
Label: TypeAlias = Hashable
