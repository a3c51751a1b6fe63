"""The programs of a pipeline: each chunk of a model as a forward and a backward program over global arrays.

A chunk is traced once, on types, and split by linearization: its forward program gives the activations for
the next chunk and what the backward program needs (see `residuals`), which is kept per microbatch. The
backward program adds to the gradients that it is given.

Every process makes the programs of all chunks, so all know the types of every message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini import random
from infini.core import dtypes, errors, mesh as mesh_, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.mesh import P, PartitionSpec
from infini.core.sharding import Mesh
from infini.core.value import Literal, Value
from infini.lax import elementwise, families, placement
from infini.parallel import residuals
from infini.transforms import flat, linear, transposition

Flags: TypeAlias = tuple[bool, ...]
# Of an operand: its type, and whether its dtype yields to others.
Operand: TypeAlias = tuple[ArrayType, bool]


@dataclass(frozen=True, slots=True)
class Message:
    """Arrays that go from one chunk to the next, or back.

    Args:
        types: their global types.
        specs: how each is split over the devices of a rank.
    """

    types: tuple[ArrayType, ...] = ()
    specs: tuple[PartitionSpec, ...] = ()

    def only(self, flags: Sequence[bool]) -> Message:
        """The part that is marked."""
        return Message(
            tuple(t for t, flag in zip(self.types, flags, strict=True) if flag),
            tuple(s for s, flag in zip(self.specs, flags, strict=True) if flag),
        )


@dataclass(frozen=True, slots=True)
class Parameters:
    """Types of the parameters of a chunk.

    Args:
        leaves: its leaves.
        tree: their structure.
        specs: how each is split.
    """

    leaves: tuple[Operand, ...]
    tree: tree.PyTreeDef
    specs: tuple[PartitionSpec, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The programs of one chunk.

    Operands of `whole` and `forward` are the values the functions close over, the leaves of the parameters,
    those of the input and, if there are any, those of the target, the words of the key, and the number of
    the microbatch.

    Args:
        captures: values that the functions close over.
        whole: from the operands to the results.
        forward: from the operands to the results, then the residuals that are kept and are no operands.
        known: for each residual that is kept the operand it equals, or None.
        backward: from `recomputed`, the residuals, the cotangents marked by `received`, and the sums of
            gradients to the new sums and the cotangents of the inputs marked by `returned`.
        recomputed: operands that the backward program reads to compute residuals again.
        input: what it takes from the chunk before; of chunk 0, from the batch.
        output: what it gives to the chunk after; of the last one, the loss.
        received: results that have a cotangent.
        returned: inputs whose cotangent it gives.
        sums: types of the sums of gradients; parameters that are no floats have none.
        sum_specs: how they are split. Along axes of the batch that do not split a parameter, its sum is
            left untaken: one sum per step is enough.
        specs: how gradients are split: as the parameters that have one.
    """

    captures: tuple[Value, ...]
    whole: Program
    forward: Program
    known: tuple[int | None, ...]
    backward: Program
    recomputed: tuple[int, ...]
    input: Message
    output: Message
    received: Flags
    returned: Flags
    sums: tuple[ArrayType, ...]
    sum_specs: tuple[PartitionSpec, ...]
    specs: tuple[PartitionSpec, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """What a pipeline computes.

    Args:
        stages: functions of the chunks, in order: `(params, x)`, or `(params, x, key)`, to the next `x`.
        loss: function `(output, target)` to a scalar.
        scale: what the loss of a microbatch counts in the loss of the step.
        num_rows: examples of a microbatch: what has that many rows is split as the batch is.
        rows: how rows of activations are split over the devices of a rank.
        batch_axes: axes that split the batch.
    """

    stages: tuple[Callable[..., Any], ...]
    loss: Callable[..., Any]
    scale: float
    num_rows: int
    rows: PartitionSpec
    batch_axes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Batch:
    """Types of what a step is given besides parameters.

    Args:
        inputs: leaves of the inputs of a microbatch.
        input_tree: their structure.
        targets: leaves of the targets of a microbatch.
        target_tree: their structure.
        key: leaves of the key, none without one.
        key_tree: their structure.
        input_specs: how inputs are split.
    """

    inputs: tuple[Operand, ...]
    input_tree: tree.PyTreeDef
    targets: tuple[Operand, ...]
    target_tree: tree.PyTreeDef
    key: tuple[Operand, ...]
    key_tree: tree.PyTreeDef | None
    input_specs: tuple[PartitionSpec, ...]


def build(
    model: Model,
    batch: Batch,
    params: Sequence[Parameters],
    meshes: Sequence[Mesh],
) -> list[Chunk]:
    """The programs of all chunks.

    Args:
        model: functions of the chunks.
        batch: types of a microbatch.
        params: types of the parameters of each chunk.
        meshes: for each chunk the devices it runs on.

    Raises:
        TypeMismatchError: the loss is no real scalar, or a stage returns no arrays.
    """
    traced = _trace(model, batch, params, meshes)
    chunks: list[Chunk] = []
    following: Flags = (True,)
    for one in reversed(traced):
        chunk = _finished(one, following, model.scale if one.is_last else None)
        chunks.append(chunk)
        nonzero = iter(chunk.returned)
        following = tuple(flag and next(nonzero) for flag in one.in_nonzero)
    return chunks[::-1]


# --- forwards: tracing and linearization ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Traced:
    """A chunk after the first sweep; operands are counted from the first captured value."""

    program: Program
    parts: linear.LinearizedProgram
    captures: tuple[Value, ...]
    mesh: Mesh
    first_input: int
    after_inputs: int
    has_tangent: Flags  # of the parameters
    in_nonzero: Flags  # of the inputs
    input: Message
    output: Message
    param_specs: tuple[PartitionSpec, ...]
    batch_axes: frozenset[str]
    is_last: bool


def _trace(
    model: Model,
    batch: Batch,
    params: Sequence[Parameters],
    meshes: Sequence[Mesh],
) -> list[_Traced]:
    found: list[_Traced] = []
    given, given_tree, specs = batch.inputs, batch.input_tree, batch.input_specs
    in_nonzero: Flags = (False,) * len(given)
    for number, part in enumerate(params):
        leaves, is_last = part.leaves, number == len(params) - 1
        operands = [*leaves, *given, *(batch.targets if is_last else ()), *batch.key]
        if batch.key:
            operands.append((ArrayType((), np.dtype(np.int32)), False))
        f = _Function(model, number, batch, part, (given_tree, len(given)))
        mesh = meshes[number]
        with mesh:
            staged = trace.stage(
                f, [t for t, _ in operands], weak=[w for _, w in operands], name=f"chunk_{number}",
                transform="pipeline",
            )  # fmt: skip
        count = len(staged.captures)
        has_tangent = tuple(dtypes.is_inexact(t.dtype) for t, _ in leaves)
        others = len(operands) - len(leaves) - len(given)
        nonzero = ((False,) * count, has_tangent, in_nonzero, (False,) * others)
        parts = linear.linearize_program(staged.program, tuple(flag for part in nonzero for flag in part))
        types = staged.program.out_types
        out_specs = tuple(activation_spec(t, model, mesh) for t in types)
        found.append(
            _Traced(
                staged.program,
                parts,
                staged.captures,
                mesh,
                count + len(leaves),
                count + len(leaves) + len(given),
                has_tangent,
                in_nonzero,
                Message(tuple(t for t, _ in given), specs),
                Message(types, out_specs),
                part.specs,
                model.batch_axes,
                is_last,
            )
        )
        assert f.out_tree is not None
        given, given_tree, specs = tuple(zip(types, staged.weak, strict=True)), f.out_tree, out_specs
        in_nonzero = parts.out_nonzero
    return found


class _Function:
    """A chunk as a function of flat values."""

    def __init__(
        self, model: Model, number: int, batch: Batch, params: Parameters, given: tuple[tree.PyTreeDef, int]
    ) -> None:
        self.model, self.number, self.batch = model, number, batch
        self.is_last = number == len(model.stages) - 1
        self.params_tree, self.num_params = params.tree, len(params.leaves)
        self.in_tree, self.num_inputs = given
        self.out_tree: tree.PyTreeDef | None = None

    def __call__(self, *leaves: Value) -> list[Value]:
        split = self.num_params + self.num_inputs
        params = tree.unflatten(self.params_tree, leaves[: self.num_params])
        x = tree.unflatten(self.in_tree, leaves[self.num_params : split])
        rest = list(leaves[split:])
        stage = self.model.stages[self.number]
        if self.batch.key_tree is None:
            result = stage(params, x)
        else:
            number = rest.pop()
            words = [rest.pop() for _ in self.batch.key][::-1]
            key = tree.unflatten(self.batch.key_tree, words)
            result = stage(params, x, random.fold_in(random.fold_in(key, number), self.number))
        if self.is_last:
            result = self.model.loss(result, tree.unflatten(self.batch.target_tree, rest))
        out, self.out_tree = tree.flatten(result)
        name = "the loss" if self.is_last else f"stage {self.number}"
        values = flat.values(out, f"results of {name}")
        if self.is_last:
            _check_loss(values, self.out_tree)
        return values


def _check_loss(values: Sequence[Value], out_tree: tree.PyTreeDef) -> None:
    is_scalar = len(values) == 1 and out_tree == tree.structure(0) and values[0].shape == ()
    if not is_scalar or not dtypes.is_float(values[0].dtype):
        raise errors.TypeMismatchError(
            "the loss of a pipeline is one real scalar",
            got=", ".join(str(v.type) for v in values) or str(out_tree),
            expected="f32[], for example",
            fix="reduce it over the examples with .mean()",
        )


def activation_spec(type_: ArrayType, model: Model, mesh: Mesh) -> PartitionSpec:
    """How an array at the border of two chunks is split: as the batch if it has a row per example, else it
    is whole. Entries that do not divide their dimension are left out.
    """
    if not type_.ndim or type_.shape[0] != model.num_rows:
        return P()
    return P(
        *(
            entry if size % mesh.abstract.size_of(entry) == 0 else None
            for size, entry in zip(type_.shape, model.rows, strict=False)
        )
    )


# --- backwards: transposition ------------------------------------------------------------------------


def sum_type(type_: ArrayType) -> ArrayType:
    """Type in which gradients are added: at least float32."""
    is_small = type_.dtype in dtypes.FLOATS and type_.dtype.itemsize <= 2
    return type_.update(dtype=np.dtype(np.float32)) if is_small else type_


def _finished(one: _Traced, following: Flags, scale: float | None) -> Chunk:
    """The chunk, given which of its results the next one sends a cotangent of."""
    parts = one.parts
    received = tuple(flag and given for flag, given in zip(parts.out_nonzero, following, strict=True))
    num_sums, num_moving = sum(one.has_tangent), sum(one.in_nonzero)
    transposed, flags = transposition.transpose_program(
        parts.linear,
        (False,) * len(parts.known) + (True,) * (num_sums + num_moving),
        tuple(r for r, flag in zip(received, parts.out_nonzero, strict=True) if flag),
        (True,) * num_sums + (False,) * num_moving,
    )
    kept = residuals.split(parts, len(one.program.results), one.first_input)
    returned = flags[num_sums:]
    sums = _sums(one)
    arriving = one.output.only(received) if scale is None else Message()
    leaving = one.input.only(one.in_nonzero).only(returned)
    return Chunk(
        captures=one.captures,
        whole=_split(one.program, one.output.specs, one.mesh),
        forward=_split(kept.forward, one.output.specs, one.mesh),
        known=kept.known,
        backward=_backward(transposed, kept, (arriving, sums, leaving), one.mesh, scale),
        recomputed=kept.operands,
        input=one.input,
        output=one.output,
        received=received,
        returned=returned,
        sums=sums.types,
        sum_specs=sums.specs,
        specs=tuple(s for s, flag in zip(one.param_specs, one.has_tangent, strict=True) if flag),
    )


def _sums(one: _Traced) -> Message:
    """What holds the sums of gradients."""
    types = one.program.in_types[len(one.captures) : one.first_input]
    specs = []
    for spec in one.param_specs:
        used = {axis for entry in spec for axis in mesh_.entry_axes(entry)}
        specs.append(P(*spec, unreduced=one.batch_axes - used))
    return Message(tuple(map(sum_type, types)), tuple(specs)).only(one.has_tangent)


def _split(program: Program, specs: Sequence[PartitionSpec], mesh: Mesh) -> Program:
    """The program with its first results split as `specs` says."""

    def run(*args: Value) -> list[Value]:
        results = trace.evaluate(program, args)
        first = [_constrained(x, s, mesh) for x, s in zip(results, specs, strict=False)]
        return [*first, *results[len(first) :]]

    return trace.stage(run, program.in_types, name=program.name).program


def _constrained(x: Value, spec: PartitionSpec, mesh: Mesh) -> Value:
    return placement.constrain(x, mesh.abstract, mesh_.trim(spec))


def _backward(
    transposed: Program,
    kept: residuals.Residuals,
    messages: tuple[Message, Message, Message],
    mesh: Mesh,
    scale: float | None,
) -> Program:
    """The backward program: the transposed one between what is kept and the sums of gradients.

    Args:
        transposed: from residuals and cotangents to cotangents of parameters and inputs.
        kept: where residuals come from.
        messages: cotangents that arrive, sums, and cotangents that leave.
        mesh: devices of the chunk.
        scale: the cotangent of the loss; None for other chunks.
    """
    arriving, sums, leaving = messages
    num_operands, num_kept = len(kept.operands), len(kept.types)
    types = (*kept.again.in_types, *arriving.types, *sums.types)
    first_sum = len(types) - len(sums.types)

    def run(*args: Value) -> list[Value]:
        known = kept.values(args[:num_operands], args[num_operands : num_operands + num_kept])
        arrived = list(args[num_operands + num_kept : first_sum])
        # A loss that depends on no parameter has no cotangent.
        if scale is not None and len(transposed.params) > len(known):
            seed = np.asarray(scale).astype(transposed.params[-1].type.dtype)
            arrived = [Literal(seed, weak=False)]
        found = trace.evaluate(transposed, [*known, *arrived])
        added = [
            _constrained(_plus(total, gradient), spec, mesh)
            for total, gradient, spec in zip(args[first_sum:], found, sums.specs, strict=False)
        ]
        moved = zip(found[len(added) :], leaving.specs, strict=True)
        return [*added, *(_constrained(x, spec, mesh) for x, spec in moved)]

    return trace.stage(run, types, name=transposed.name).program


def _plus(total: Value, gradient: Value) -> Value:
    wide = elementwise.convert_element_type(gradient, total.dtype)
    return trace.bind1(primitive.by_name("add"), total, wide)


# --- around a step ---------------------------------------------------------------------------------------


def zeros(sums: Message, mesh: Mesh) -> Program:
    """The program that makes sums of gradients before the first microbatch."""

    def run() -> list[Value]:
        pairs = zip(sums.types, sums.specs, strict=True)
        return [_constrained(families.zeros(type_), spec, mesh) for type_, spec in pairs]

    return trace.stage(run, [], name="zeros").program


def gradients(sums: Message, wanted: Message, mesh: Mesh) -> Program:
    """The program from sums of gradients to gradients with the types and placements of the parameters."""

    def run(*given: Value) -> list[Value]:
        return [
            _constrained(elementwise.convert_element_type(x, type_.dtype), spec, mesh)
            for x, type_, spec in zip(given, wanted.types, wanted.specs, strict=True)
        ]

    return trace.stage(run, sums.types, name="gradients").program
