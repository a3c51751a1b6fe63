"""What users say of a pipeline, checked: its schedule, and placements of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from infini.core import errors, mesh as mesh_, tree
from infini.core.mesh import P, PartitionSpec
from infini.core.sharding import Mesh
from infini.core.value import Value
from infini.lax import placement
from infini.parallel import microbatches, schedules
from infini.parallel.schedules import Schedule

Specs: TypeAlias = Any  # Any: a P, or a pytree of P


def per_stage(given: Sequence[Specs] | PartitionSpec | None, num_stages: int) -> tuple[Specs, ...]:
    """Placements of the parameters of each stage, from one for all or one for each.

    Args:
        given: a `P` for all, or one entry per stage; None for none.
        num_stages: number of stages.

    Raises:
        ValueMismatchError: their number is not that of the stages.
    """
    if given is None or isinstance(given, PartitionSpec):
        return (given,) * num_stages
    if len(given) != num_stages:
        raise errors.ValueMismatchError(
            "pipeline: param_specs has one entry per stage", got=f"{len(given)}", expected=f"{num_stages}"
        )
    return tuple(given)


def schedule(
    given: str | Schedule, num_stages: int, num_ranks: int, num_microbatches: int | None, axis: str
) -> Schedule:
    """The schedule that was asked for.

    Args:
        given: its name, or the schedule.
        num_stages: number of stages.
        num_ranks: places along the axis.
        num_microbatches: number of microbatches; None for that of the schedule.
        axis: name of the axis, for messages.

    Raises:
        ValueMismatchError: it does not fit the stages and the mesh.
    """
    num_virtual, rest = divmod(num_stages, num_ranks)
    if rest or not num_virtual:
        raise errors.ValueMismatchError(
            "pipeline: every rank has the same number of stages",
            got=f"{num_stages} stages, {num_ranks} places along {axis!r}",
            expected=f"a multiple of {num_ranks} stages",
        )
    if isinstance(given, str):
        if num_microbatches is None:
            raise errors.ValueMismatchError(
                "pipeline: num_microbatches is missing",
                fix=f"pass num_microbatches={4 * num_ranks}, for example: many keep ranks from waiting",
            )
        return schedules.named(given, num_ranks, num_microbatches, num_virtual)
    found = (given.num_stages, given.num_virtual)
    if found != (num_ranks, num_virtual) or num_microbatches not in (None, given.num_microbatches):
        raise errors.ValueMismatchError(
            "pipeline: the schedule is for something else",
            got=repr(given),
            expected=f"num_stages={num_ranks}, num_virtual={num_virtual}"
            + ("" if num_microbatches is None else f", num_microbatches={num_microbatches}"),
        )
    return given


def specs_of(asked: Specs, part: Any, values: Sequence[Value], mesh: Mesh) -> tuple[PartitionSpec, ...]:
    """How the parameters of a stage are split: as was asked for, else as they are.

    Args:
        asked: a `P`, a tree of them, or None.
        part: the parameters.
        values: their leaves.
        mesh: devices of the stage.

    Raises:
        ValueMismatchError: the tree is another one, or a `P` does not fit.
    """
    if asked is None:
        wanted: list[Any] = [None] * len(values)
    else:
        specs, treedef = tree.flatten(asked, lambda x: x is None or isinstance(x, PartitionSpec))
        try:
            parts = treedef.flatten_up_to(part)
        except ValueError as error:
            raise errors.ValueMismatchError(
                "pipeline: an entry of param_specs does not match the parameters of its stage",
                got=str(asked),
                expected=f"a P, or a prefix of {tree.structure(part)}",
            ) from error
        wanted = [spec for spec, inner in zip(specs, parts, strict=True) for _ in tree.leaves(inner)]
    found = []
    for x, spec in zip(values, wanted, strict=True):
        chosen = spec if spec is not None else microbatches.spec_on(x, mesh) or P()
        placement.check_spec(x.type, mesh.abstract, chosen)
        found.append(P(*mesh_.trim(chosen)))
    return tuple(found)
