"""Attention of which queries and keys are split over the same axes: the forms that a long sequence over
devices takes.

    gather       every device gets all keys and values
    ring         keys and values go round; each device sees them block by block, see `ring`
    all_to_all   an exchange splits heads in place of the sequence, and another one goes back
                 (S. A. Jacobs et al., arXiv:2309.14509)

Attention that is written out is recognised first where that is so: see `recognised`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from infini.compiler.partition import costs, placement as p, prepare, ring
from infini.compiler.partition.local import Block, Local
from infini.compiler.partition.placement import Axes, Dims, Placement, Split
from infini.compiler.partition.propagate import Plan
from infini.compiler.partition.strategies import Family, Form, family
from infini.compiler.passes import attention, contractions, decompose, inline, simplify
from infini.core.ir import Equation, Program
from infini.core.value import Value
from infini.lax import contraction
from infini.lax.composites import attention_blocks as blocks, attention_letters as letters_
from infini.lax.composites.attention_letters import Letters

OPS: Final = ("attention", "attention_sums", "attention_gradient")
_SHARED: Final = (1, 2)  # keys and values, which are cut along `s`


@dataclass(frozen=True, slots=True)
class Sequence:
    """What is split of a sequence.

    Args:
        letters: of the operands.
        axes: the axes over which queries are split.
        of_keys: those over which the keys are, and those over which the values are.
        num_queries: in all.
        num_keys: in all.
    """

    letters: Letters
    axes: Axes
    of_keys: tuple[Axes, Axes]
    num_queries: int
    num_keys: int


def sequence(block: Block, equation: Equation, split: Split) -> Sequence:
    """The sequence of an equation under a split of its factors."""
    letters = letters_.parse_spec(equation.attrs["spec"])
    sizes = block.plan.factors(equation).sizes
    first, second = (
        block.env[equation.inputs[i]].placement.dims[_place_of_keys(letters, equation, i)] for i in _SHARED
    )
    return Sequence(letters, split.get("t", ()), (first, second), sizes["t"], sizes["s"])


def _place_of_keys(letters: Letters, equation: Equation, operand: int) -> int:
    own = (letters.query, letters.key, letters.value)[operand]
    return equation.inputs[operand].type.ndim - len(own) + own.index("s")


def is_met(block: Block, equation: Equation, split: Split) -> bool:
    """Whether queries and keys are both split along the sequence."""
    found = sequence(block, equation, split)
    mesh = block.mover.mesh
    return p.size_of(found.axes, mesh) > 1 and any(p.size_of(axes, mesh) > 1 for axes in found.of_keys)


def _why_neither(block: Block, found: Sequence) -> str | None:
    if any(axes != found.axes for axes in found.of_keys):
        keys, values = (", ".join(axes) or "nothing" for axes in found.of_keys)
        return f"queries are split over {', '.join(found.axes)}, keys over {keys}, values over {values}"
    count = p.size_of(found.axes, block.mover.mesh)
    if found.num_queries % count or found.num_keys % count:
        return f"{found.num_queries} queries and {found.num_keys} keys are not {count} equal parts"
    return None


# --- all keys -----------------------------------------------------------------------------------------


def _gather_seconds(block: Block, equation: Equation, split: Split) -> float:
    return block.seconds(equation, block.plan.factors(equation), split)


def _emit_gather(block: Block, equation: Equation, split: Split) -> None:
    """As factors say. Backwards the keys are gathered when there is something to do with them, unless those
    of all layers have room: then they are kept from the forward pass, see `share`.
    """
    if equation.op.name != "attention_gradient":
        return
    names = block.plan.factors(equation).inputs
    nbytes = sum(
        p.local_type(equation.inputs[i].type, p.expand(split, names[i]), block.mover.mesh).nbytes
        for i in _SHARED
    )
    count = sum(other.op.name == equation.op.name for other in block.program.equations)
    if count * nbytes <= block.mover.window_bytes:
        return
    variables = (*(equation.inputs[i] for i in _SHARED), equation.inputs[-1])
    locals_ = [block.env[v] for v in variables]
    *keys, rows = (local.value for local in locals_)
    for var, local, value in zip(variables, locals_, ring.together(keys, rows), strict=True):
        block.env[var] = dataclasses.replace(local, value=value)


# --- the ring -----------------------------------------------------------------------------------------


def _why_no_ring(block: Block, equation: Equation, split: Split) -> str | None:
    found = sequence(block, equation, split)
    reason = _why_neither(block, found)
    if reason is None and found.num_queries != found.num_keys and equation.attrs["band"] != (None, None):
        return f"{found.num_queries} queries see a band of {found.num_keys} keys"
    return reason


def _ring_of(block: Block, equation: Equation, split: Split) -> ring.Ring:
    found = sequence(block, equation, split)
    count, attrs = p.size_of(found.axes, block.mover.mesh), equation.attrs
    size = found.num_keys // count
    skips = blocks.may_skip(
        attrs["band"], found.num_queries, found.num_keys, attrs["fill"],
        num_extras=attrs["has_bias"] + attrs["has_mask"],
    )  # fmt: skip
    turns = blocks.turns(count, size, attrs["band"], may_skip=skips)
    return ring.Ring(found.letters, found.axes, count, size, tuple(turns))


def _ring_dims(block: Block, equation: Equation, split: Split) -> tuple[list[Dims], list[Placement]]:
    """Where operands and results of a ring are: as the split says, keys, values and what they get along the
    sequence as well.
    """
    found, axes = block.plan.factors(equation), split["t"]
    letters = letters_.parse_spec(equation.attrs["spec"])

    def cut(dims: Dims, own: str) -> Dims:
        place = len(dims) - len(own) + own.index("s")
        return (*dims[:place], axes, *dims[place + 1 :])

    given = [p.expand(split, names) for names in found.inputs]
    owns = {1: letters.key, 2: letters.value}
    given[1:3] = [cut(given[i], owns[i]) for i in _SHARED]
    results = []
    for number, names in enumerate(found.outputs):
        dims = p.expand(split, names)
        waiting = tuple(
            axis for name in p.lacking(found, names) if name != "t" for axis in split.get(name, ())
        )
        if equation.op.name == "attention_gradient" and number in owns:
            dims = cut(dims, owns[number])
        results.append(Placement(dims, waiting))
    return given, results


def _ring_seconds(block: Block, equation: Equation, split: Split) -> float:
    """Keys travel beside what is computed, so the longer of the two counts; then the results are joined."""
    mover, made = block.mover, _ring_of(block, equation, split)
    given, results = _ring_dims(block, equation, split)
    total = sum(
        mover.price(v.type, Placement(block.env[v].placement.dims), dims)
        for v, dims in zip(equation.inputs, given, strict=True)
    )
    total += sum(
        mover.price(v.type, place, block.plan[v]) for v, place in zip(equation.outputs, results, strict=True)
    )
    parts = p.size_of((axis for axes in split.values() for axis in axes), mover.mesh)
    step = costs.compute_seconds(equation, parts, mover.machine) / made.count
    sent = 0.0
    for i in _SHARED:
        var = equation.inputs[i]
        nbytes = p.local_type(var.type, given[i], mover.mesh).nbytes
        travels = [nbytes]
        if equation.op.name == "attention_gradient":
            travels.append(nbytes * max(1, 4 // var.type.dtype.itemsize))
        sent += sum(costs.seconds("ppermute", made.axes, each, mover.mesh, mover.machine) for each in travels)
    written = sum(
        p.local_type(v.type, place.dims, mover.mesh).nbytes
        for v, place in zip(equation.outputs, results, strict=True)
    )
    joining = 3 * written / mover.machine.memory_bytes_per_s
    return total + step + (len(made.turns) - 1) * (max(step, sent) + joining)


def _emit_ring(block: Block, equation: Equation, split: Split) -> list[Local]:
    given, placements = _ring_dims(block, equation, split)
    operands = [
        block.operand(v, dims, (), f"{equation.op.name}, operand {number}")
        for number, (v, dims) in enumerate(zip(equation.inputs, given, strict=True))
    ]
    made = _ring_of(block, equation, split)
    write = ring.gradient if equation.op.name == "attention_gradient" else ring.attention
    results = write(made, block.mover, equation.attrs, operands)
    kept = results[: len(equation.outputs)]
    return [
        Local(x, place, v.type.shape) for x, place, v in zip(kept, placements, equation.outputs, strict=True)
    ]


# --- exchanges ----------------------------------------------------------------------------------------


def _head(block: Block, equation: Equation, split: Split) -> str | None:
    """The last dimension that queries and keys share and that the axes of the sequence divide."""
    found, sizes = sequence(block, equation, split), block.plan.factors(equation).sizes
    count = p.size_of(found.axes, block.mover.mesh)
    return next(
        (
            letter
            for letter in reversed(found.letters.rows)
            if letter in found.letters.key
            and sizes[letter] % (count * p.size_of(split.get(letter, ()), block.mover.mesh)) == 0
        ),
        None,
    )


def _why_no_exchange(block: Block, equation: Equation, split: Split) -> str | None:
    found = sequence(block, equation, split)
    reason = _why_neither(block, found)
    if reason is not None or _head(block, equation, split) is not None:
        return reason
    sizes, mesh = block.plan.factors(equation).sizes, block.mover.mesh
    shared = [c for c in found.letters.rows if c in found.letters.key]
    local = [sizes[c] // p.size_of(split.get(c, ()), mesh) for c in shared]
    count = p.size_of(found.axes, mesh)
    sizes_ = ", ".join(map(str, local)) or "there is none"
    return f"{count} divides no dimension that queries share with keys, such as heads: {sizes_}"


def _exchanged(block: Block, equation: Equation, split: Split) -> Split:
    """The split by heads in place of the sequence."""
    head = _head(block, equation, split)
    assert head is not None
    changed = {name: axes for name, axes in split.items() if name != "t"}
    changed[head] = (*split.get(head, ()), *split["t"])
    return changed


def _exchange_seconds(block: Block, equation: Equation, split: Split) -> float:
    found, changed = block.plan.factors(equation), _exchanged(block, equation, split)
    total = block.seconds(equation, found, changed)
    for var, names in list(zip(equation.inputs, found.inputs, strict=True))[:3]:
        dims = p.expand(changed, names)
        if (var, dims) in block.kept:
            total -= block.mover.price(var.type, Placement(block.env[var].placement.dims), dims)
    # All keys are numbered from 0, so a band saves what lies outside of it.
    seen = sequence(block, equation, split)
    left = blocks.share(equation.attrs["band"], seen.num_queries, seen.num_keys)
    parts = p.size_of((axis for axes in changed.values() for axis in axes), block.mover.mesh)
    return total - (1.0 - left) * costs.compute_seconds(equation, parts, block.mover.machine)


def _emit_exchange(block: Block, equation: Equation, split: Split) -> list[Local]:
    """As factors say, under the changed split. Queries, keys and values stay where they were brought for the
    gradient, which so exchanges no more than the attention did.
    """
    found, changed = block.plan.factors(equation), _exchanged(block, equation, split)
    operands: list[Value] = []
    for number, (var, names) in enumerate(zip(equation.inputs, found.inputs, strict=True)):
        dims, reason = p.expand(changed, names), f"{equation.op.name}, operand {number}"
        known = block.kept.get((var, dims))
        operands.append(block.operand(var, dims, (), reason) if known is None else known)
        if number <= max(_SHARED):
            block.kept[var, dims] = operands[-1]
    results = block._compute(equation, found, changed, (), operands)
    back = (0, *_SHARED) if equation.op.name == "attention_gradient" else (0,)
    _, placements = _ring_dims(block, equation, split)
    for number in back:
        local, dims = results[number], placements[number].dims
        given = dataclasses.replace(local, placement=Placement(local.placement.dims))
        value = block.moved(given, Placement(dims), f"{equation.op.name}, result {number}")
        results[number] = dataclasses.replace(
            local, value=value, placement=Placement(dims, local.placement.partial)
        )
    return results


family(
    OPS,
    Family(
        "attention",
        (
            Form("gather", lambda *_: None, _gather_seconds, _emit_gather),
            Form("all_to_all", _why_no_exchange, _exchange_seconds, _emit_exchange),
            Form("ring", _why_no_ring, _ring_seconds, _emit_ring),
        ),
        is_met,
    ),
)


# --- attention that is written out --------------------------------------------------------------------


def recognised(program: Program, plan: Plan) -> Program | None:
    """The program with attention in place of what computes it, where a plan splits queries and keys over the
    same axes; None where it does not. The products of that have no good split: one side is gathered.
    """
    if not any(_meets(equation, plan) for equation in _all(program) if equation.op.name == "dot"):
        return None
    # The pattern reads programs in canonical form.
    clean = inline.inline_calls(simplify.simplify(program))
    plain = decompose.decompose(clean, lambda e: e.op.name != "stop_gradient", backend="partitioner")
    found = attention.find(contractions.canonical_contractions(plain), lambda e: True)
    return prepare.prepare(found) if any(e.op.name in OPS for e in _all(found)) else None


def is_sequence_split(program: Program, plan: Plan) -> bool:
    """Whether a plan splits queries and keys of some attention along the sequence over the same axes."""
    for equation in _all(program):
        if equation.op.name in OPS:
            letters = letters_.parse_spec(equation.attrs["spec"])
            query, key = equation.inputs[:2]
            rows = plan[query][query.type.ndim - len(letters.query) + letters.query.index("t")]
            if set(rows) & set(plan[key][_place_of_keys(letters, equation, 1)]):
                return True
    return False


def _meets(equation: Equation, plan: Plan) -> bool:
    """Whether a product of arrays that share dimensions is wanted with two of the others over one axis."""
    a, b, out = contraction.parse_spec(equation.attrs["spec"])
    if not set(a) & set(b) & set(out):
        return False
    axes = []
    for own, var in zip((a, b), equation.inputs, strict=True):
        dims = plan[var][var.type.ndim - len(own) :]
        free = [each for letter, each in zip(own, dims, strict=True) if letter not in (b if own is a else a)]
        axes.append({axis for each in free for axis in each})
    return bool(axes[0] & axes[1]) and math.prod(equation.output.type.shape) > 1


def _all(program: Program) -> Iterator[Equation]:
    for equation in program.equations:
        yield equation
        for body in equation.programs:
            yield from _all(body)
