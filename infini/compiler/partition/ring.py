"""Ring attention: every device keeps its queries while keys and values go round, a block at a time
(H. Liu et al., arXiv:2310.01889).

The softmax is carried along. Backwards the gradients of the keys and values go round as well, one block
behind: a device keeps what its own keys get from its own queries, and adds it when the rest comes home. So
all four make one step less than there are devices. What a band hides from every device is left out, with the
steps that nobody needs; what it hides from some is left out by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini.compiler.partition.placement import Axes
from infini.compiler.partition.reshard import Mover
from infini.core import dtypes, primitive, trace
from infini.core.ir import Attrs
from infini.core.value import Literal, Value
from infini.lax import calls, elementwise as e, families
from infini.lax.composites import attention as attention_, attention_blocks as blocks
from infini.lax.composites.attention_blocks import Seen, Turn
from infini.lax.composites.attention_letters import Letters
from infini.lax.cond import cond_p
from infini.lax.families import bind_scalars

Carry: TypeAlias = Sequence[Value]
# One block: operands with the keys of one device, what was carried so far, and the band.
Step: TypeAlias = Callable[[Sequence[Value], Carry, Any], Carry]


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring of devices.

    Args:
        letters: of the operands.
        axes: mesh axes that the ring is over.
        count: devices in it.
        size: keys of each.
        turns: the blocks that are computed, a device's own first.
    """

    letters: Letters
    axes: Axes
    count: int
    size: int
    turns: tuple[Turn, ...]

    def shifted(self, mover: Mover, x: Value, distance: int, reason: str) -> Value:
        """What the device so far before has."""
        pairs = [(i, (i + distance) % self.count) for i in range(self.count)]
        return mover.permute(x, self.axes, pairs, reason)

    def extras(self, mover: Mover, operands: Sequence[Value], distance: int) -> list[Value]:
        """Bias and mask for the keys of the device so far before."""
        if not any("s" in own for own in self.letters.extras):
            return list(operands)
        number = mover.axis_index(self.axes)
        if distance:
            number = bind_scalars(e.sub_p, number, distance)
            is_after = bind_scalars(e.lt_p, number, 0)
            number = trace.bind1(e.select_n_p, is_after, number, bind_scalars(e.add_p, number, self.count))
        start = bind_scalars(e.mul_p, number, self.size)
        found = []
        for own, x in zip(self.letters.extras, operands, strict=True):
            if "s" not in own:
                found.append(x)
                continue
            place = x.ndim - len(own) + own.index("s")
            starts: list[Value] = [Literal(np.zeros((), np.int32), weak=False)] * x.ndim
            starts[place] = start
            sizes = (*x.shape[:place], self.size, *x.shape[place + 1 :])
            op = primitive.by_name("dynamic_slice")
            found.append(trace.bind1(op, x, *starts, slice_sizes=sizes))
        return found

    def run(self, mover: Mover, turn: Turn, step: Step, operands: Sequence[Value], carry: Carry) -> Carry:
        """What is carried after a turn, in which devices may see different bands, or nothing."""
        if turn.before == turn.after:
            return _stepped(step, turn.before, operands, carry)
        types = [x.type for x in (*operands, *carry)]

        def branch(seen: Seen) -> Any:  # Any: a Program
            def run(*values: Value) -> Sequence[Value]:
                return _stepped(step, seen, values[: len(operands)], values[len(operands) :])

            return trace.stage(run, types, name="block").program

        is_before = bind_scalars(e.ge_p, mover.axis_index(self.axes), turn.distance)
        number = e.convert_element_type(is_before, dtypes.int32)
        programs = (branch(turn.after), branch(turn.before))
        return trace.bind(cond_p, number, *operands, *carry, branches=programs)


def _stepped(step: Step, seen: Seen, operands: Sequence[Value], carry: Carry) -> Carry:
    return list(carry) if seen is None else step(operands, carry, seen)


def attention(ring: Ring, mover: Mover, attrs: Attrs, operands: Sequence[Value]) -> list[Value]:
    """Results of `attention_sums` for the queries of this device.

    Args:
        ring: the devices.
        mover: what sends.
        attrs: attributes of the equation.
        operands: queries, keys, values of this device, and bias and mask for them and all keys.
    """
    query, key, value, *extras = operands
    may_be_empty = attrs["has_bias"] or attrs["fill"] == -np.inf

    def partial(given: Sequence[Value], seen: Any) -> blocks.Rows:  # Any: a Band
        out, top, total = trace.bind(attention_.attention_sums_p, *given, **attrs.replace(band=seen))
        return blocks.wide(out), top, total

    def step(given: Sequence[Value], carry: Carry, seen: Any) -> Carry:  # Any: a Band
        out, top, total = carry
        found = partial(given, seen)
        return blocks.joined((out, top, total), found, ring.letters, may_be_empty=may_be_empty)

    first, *rest = ring.turns
    carry: Carry = partial([query, key, value, *ring.extras(mover, extras, 0)], first.before)
    reached = 0
    for turn in rest:
        key, value = (
            ring.shifted(mover, x, turn.distance - reached, f"the {what} of a ring")
            for x, what in ((key, "keys"), (value, "values"))
        )
        reached = turn.distance
        given = [query, key, value, *ring.extras(mover, extras, reached)]
        carry = ring.run(mover, turn, step, given, carry)
    out, top, total = carry
    return [e.convert_element_type(out, query.dtype), top, total]


def gradient(ring: Ring, mover: Mover, attrs: Attrs, operands: Sequence[Value]) -> list[Value]:
    """Results of `attention_gradient` for the queries and for the keys of this device; see `attention`. What
    is carried has at least 32 bits.
    """
    count = 3 + len(ring.letters.extras)
    query, key, value, *extras = operands[:count]
    rows, dtype = list(operands[count:]), query.dtype
    key, value, rows[-1] = together([key, value], rows[-1])

    def found(given: Sequence[Value], seen: Any) -> list[Value]:  # Any: a Band
        changed = attrs.replace(band=seen)
        return [blocks.wide(x) for x in trace.bind(attention_.attention_gradient_p, *given, **changed)]

    def step(given: Sequence[Value], carry: Carry, seen: Any) -> Carry:  # Any: a Band
        so_far, *others = found(given, seen)
        return [trace.bind1(e.add_p, carry[0], so_far), *others]

    first, *rest = ring.turns
    own = found([query, key, value, *ring.extras(mover, extras, 0), *rows], first.before)
    to_query, nothing, reached = own[0], [families.zeros(x.type) for x in own[1:]], 0
    travelling: list[Value] = []
    for turn in rest:
        distance = turn.distance - reached
        key, value = (
            ring.shifted(mover, x, distance, f"the {what} of a ring")
            for x, what in ((key, "keys"), (value, "values"))
        )
        reached = turn.distance
        given = [query, key, value, *ring.extras(mover, extras, reached), *rows]
        # What the keys got so far arrives while this is computed.
        arrived = _sent(ring, mover, travelling, distance)
        to_query, *here = ring.run(mover, turn, step, given, [to_query, *nothing])
        travelling = _sums(arrived, here) if arrived else here
    if reached:
        own[1:] = _sums(own[1:], _sent(ring, mover, travelling, ring.count - reached))
    return [e.convert_element_type(x, dtype) for x in (to_query, *own[1:])]


def together(keys: Sequence[Value], rows: Value) -> Sequence[Value]:
    """Keys and values that are there when something of the rows is, and this. Exchanges begin as soon as they
    can: without it all keys of a model would be sent for the backward pass during the forward pass, and kept.
    """
    return trace.bind(calls.optimization_barrier_p, *keys, rows)


def _sent(ring: Ring, mover: Mover, cotangents: Sequence[Value], distance: int) -> list[Value]:
    return [ring.shifted(mover, x, distance, "what the keys of a ring get") for x in cotangents]


def _sums(first: Sequence[Value], second: Sequence[Value]) -> list[Value]:
    return [trace.bind1(e.add_p, a, b) for a, b in zip(first, second, strict=True)]
