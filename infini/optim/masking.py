"""Transformations of a part of the parameters: `masked`, and `partition`, which treats parts differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from infini import tree
from infini.core import errors
from infini.optim.base import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    Label,
    Labels,
    Mask,
    Params,
    State,
    Updates,
    run,
)


class MaskedNode(NamedTuple):
    """Stands where a part is left out; a pytree without leaves."""


class MaskedState(NamedTuple):
    """The state of a transformation of a part."""

    inner_state: State


def masked(
    inner: GradientTransformation, mask: Mask, *, mask_compatible_extra_args: bool = False
) -> GradientTransformationExtraArgs:
    """Apply a transformation where a mask is true; other updates stay as they are.

    Args:
        inner: transformation.
        mask: pytree of bools that is a prefix of the parameters, or a function of the parameters to one.
        mask_compatible_extra_args: extra arguments with the structure of the updates are masked too.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import optim
        >>> halve = optim.masked(optim.scale(0.5), {"w": True, "b": False})
        >>> updates = {"w": inp.asarray(4.0), "b": inp.asarray(4.0)}
        >>> found, _ = halve.update(updates, halve.init(updates))
        >>> float(found["w"]), float(found["b"])
        (2.0, 4.0)
    """

    def init(params: Params) -> MaskedState:
        return MaskedState(inner.init(_hidden(params, _mask(mask, params))))

    def update(
        updates: Updates, state: MaskedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MaskedState]:  # Any: arguments of update
        chosen = _mask(mask, updates)
        if mask_compatible_extra_args:
            own = tree.structure(updates)
            extra = {k: _hidden(v, chosen) if tree.structure(v) == own else v for k, v in extra.items()}
        hidden_params = None if params is None else _hidden(params, chosen)
        found, after = run(inner, _hidden(updates, chosen), state.inner_state, hidden_params, extra)
        merged = tree.map(lambda m, new, old: new if m else old, chosen, found, updates)
        return merged, MaskedState(after)

    return GradientTransformationExtraArgs(init, update)


def _mask(mask: Mask, params: Params) -> Any:  # Any: a pytree of bools
    return mask(params) if callable(mask) else mask


def _hidden(values: Params, chosen: Any) -> Params:  # Any: a pytree of bools
    return tree.map(lambda m, part: part if m else MaskedNode(), chosen, values)


class PartitionState(NamedTuple):
    """The states of the transformations by label."""

    inner_states: Mapping[Label, State]


def partition(
    transforms: Mapping[Label, GradientTransformation],
    param_labels: Labels,
    *,
    mask_compatible_extra_args: bool = False,
) -> GradientTransformationExtraArgs:
    """Apply one transformation to the parameters of each label.

    Args:
        transforms: transformations by label.
        param_labels: pytree of labels that is a prefix of the parameters, or a function of the parameters
            to one.
        mask_compatible_extra_args: extra arguments with the structure of the updates are masked too.

    Raises:
        ValueMismatchError: a label has no transformation.

    Example:
        >>> from infini import optim
        >>> optimizer = optim.partition(
        ...     {"matrix": optim.adamw(1e-3), "vector": optim.sgd(1e-2)},
        ...     lambda params: {name: "matrix" if x.ndim == 2 else "vector" for name, x in params.items()},
        ... )
    """

    def parts(params: Params) -> dict[Label, GradientTransformationExtraArgs]:
        labels = param_labels(params) if callable(param_labels) else param_labels
        unknown = {label for label in tree.leaves(labels) if label not in transforms}
        if unknown:
            raise errors.ValueMismatchError(
                "optim.partition: some labels have no transformation",
                got=", ".join(sorted(map(repr, unknown))),
                expected=", ".join(sorted(map(repr, transforms))),
            )
        return {
            group: masked(
                transformation,
                tree.map(lambda label, group=group: label == group, labels),
                mask_compatible_extra_args=mask_compatible_extra_args,
            )
            for group, transformation in transforms.items()
        }

    def init(params: Params) -> PartitionState:
        return PartitionState({group: part.init(params) for group, part in parts(params).items()})

    def update(
        updates: Updates, state: PartitionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PartitionState]:  # Any: arguments of update
        after = {}
        for group, part in parts(updates).items():
            updates, after[group] = run(part, updates, state.inner_states[group], params, extra)
        return updates, PartitionState(after)

    return GradientTransformationExtraArgs(init, update)


multi_transform = partition
