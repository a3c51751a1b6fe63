"""The memory plan: where every variable of a block lives.

Variables that share memory (aliases, updates in place) are one `Storage` with a lifetime. Storages of
parameters and constants are where the caller put them, those of results where the caller wants them, the rest
share one arena by best fit. A donated parameter, or the carry of a loop, is memory that a result may take
when the parameter is dead.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from infini.compiler import steps as steps_
from infini.compiler.steps import (
    Alias,
    Block,
    Branch,
    Const,
    Copy,
    Group,
    Loop,
    Parameter,
    Phase,
    Place,
    Plan,
    Result,
    Temporary,
    align,
)
from infini.core.ir import Var


@dataclass(eq=False, slots=True)
class Storage:
    """Memory shared by some variables, alive from step `first` to step `last`."""

    nbytes: int
    first: int
    last: int
    place: Place | None = None
    results: list[int] = field(default_factory=list)

    @property
    def parameter(self) -> int | None:
        """The parameter whose memory it is."""
        return self.place.number if isinstance(self.place, Parameter) else None


@dataclass(frozen=True, slots=True)
class Ends:
    """Where results may and must be.

    Args:
        required: parameter in whose memory a result must be when the block ends: the carry of a loop.
        optional: parameters whose memory a result may take instead of what the caller gives, by result.
        writable: parameters that may be overwritten once they are dead.
        is_free: whether any result may take any writable parameter: donation.
    """

    required: Mapping[int, int] = field(default_factory=dict)
    optional: Mapping[int, int] = field(default_factory=dict)
    writable: frozenset[int] = frozenset()
    is_free: bool = False

    def allows(self, result: int, parameter: int) -> bool:
        """Whether a result may be left in the memory of a parameter."""
        if parameter not in self.writable:
            return False
        if result in self.required:
            return self.required[result] == parameter
        return self.is_free or self.optional.get(result) == parameter


def plan(block: Block, ends: Ends | None = None) -> Plan:
    """Plan the memory of a block and of the blocks inside it.

    Args:
        block: steps to plan for.
        ends: where results may and must be; in memory the caller gives when absent.
    """
    return _Planner(block, ends or Ends()).run()


class _Planner:
    def __init__(self, block: Block, ends: Ends) -> None:
        self.block, self.ends = block, ends
        self.end = len(block.steps)
        self.storage: dict[Var, Storage] = {}
        self.variables: dict[Storage, list[Var]] = {}  # what is in a storage
        self.inner: dict[int, tuple[Plan, ...]] = {}
        self.shared: dict[int, frozenset[tuple[int, int]]] = {}
        self.scratch_storage: dict[int, Storage] = {}
        self.taken: dict[int, list[Storage]] = {}  # storages in the memory of a writable parameter
        self.copies: list[Copy] = []

    def run(self) -> Plan:
        self._lifetimes()
        for number, step in enumerate(self.block.steps):
            self._step(number, step)
        self._place_results()
        arena = _Arena()
        arena.place([s for s in self._storages() if s.place is None])
        results = self._finish_results(arena)
        return Plan(
            {var: _placed(s) for var, s in self.storage.items()},
            {number: _temporary(s) for number, s in self.scratch_storage.items()},
            self.inner,
            self.shared,
            tuple(self.copies),
            results,
            arena.nbytes,
            frozenset(
                p.number
                for k, p in enumerate(results)
                if isinstance(p, Parameter) and k not in self.ends.required
            ),
        )

    def _storages(self) -> list[Storage]:
        return list(dict.fromkeys([*self.storage.values(), *self.scratch_storage.values()]))

    # --- lifetimes ------------------------------------------------------------------------------

    def _lifetimes(self) -> None:
        for i, param in enumerate(self.block.params):
            self.storage[param] = Storage(param.type.nbytes, -1, -1, Parameter(i))
            if i in self.ends.writable:
                self.taken[i] = [self.storage[param]]
        for i, (var, _) in enumerate(self.block.consts):
            self.storage[var] = Storage(var.type.nbytes, -1, self.end, Const(i))
        for number, step in enumerate(self.block.steps):
            for var in steps_.reads_of(step):
                self.storage[var].last = max(self.storage[var].last, number)
            if isinstance(step, Alias):
                self.storage[step.write] = self.storage[step.read]
                continue
            for var in steps_.writes_of(step):
                self.storage[var] = Storage(var.type.nbytes, number, number)
        for k, var in enumerate(self.block.results):
            self.storage[var].results.append(k)
            self.storage[var].last = self.end
        for var, storage in self.storage.items():
            self.variables.setdefault(storage, []).append(var)

    # --- sharing ---------------------------------------------------------------------------------

    def _step(self, number: int, step: steps_.Step) -> None:
        if isinstance(step, (Phase, Group)):
            must = step.must_share if isinstance(step, Phase) else ()
            self._share(number, step, [*must, *step.in_place])
            if step.scratch_bytes:
                self.scratch_storage[number] = Storage(step.scratch_bytes, number, number)
        elif isinstance(step, Loop):
            self._loop(number, step)
        elif isinstance(step, Branch):
            self._branch(number, step)

    def _share(
        self, number: int, step: steps_.Step, pairs: Iterable[tuple[int, int]]
    ) -> frozenset[tuple[int, int]]:
        """Let outputs take the memory of operands that die here, donated memory first."""
        reads, writes = steps_.reads_of(step), steps_.writes_of(step)
        must = (
            set(step.must_share)
            if isinstance(step, Phase)
            else set(pairs)
            if isinstance(step, Loop)
            else set()
        )
        found: set[tuple[int, int]] = set()
        done: set[int] = set()
        taken: set[Storage] = set()
        allowed = set(pairs)
        places: dict[Storage, list[int]] = {}
        for i, var in enumerate(reads):
            places.setdefault(self.storage[var], []).append(i)

        def order(pair: tuple[int, int]) -> tuple[bool, bool]:
            return pair not in must, self.storage[reads[pair[0]]].parameter is None

        for operand, output in sorted(pairs, key=order):
            source, target = self.storage[reads[operand]], self.storage[writes[output]]
            is_taken = output in done or source in taken
            if is_taken or not all((i, output) in allowed for i in places[source]):
                continue
            if not self._may_take(number, source, target, (operand, output) in must):
                continue
            self._unite(source, target)
            done.add(output)
            taken.add(source)
            found.add((operand, output))
        self.shared[number] = self.shared.get(number, frozenset()) | frozenset(found)
        return frozenset(found)

    def _may_take(
        self,
        number: int,
        source: Storage,
        target: Storage,
        is_update: bool,
    ) -> bool:
        """Whether what a step makes may be in memory that it reads last."""
        if source is target or source.last != number or source.nbytes != target.nbytes or source.results:
            return False
        if isinstance(source.place, Const):
            return False
        parameter = source.parameter
        if parameter is None:
            return True
        if parameter not in self.ends.writable:
            return False
        # A temporary in the memory of a parameter would keep out the result that belongs there; an update is
        # worth it.
        return is_update or any(self.ends.allows(k, parameter) for k in target.results)

    def _is_read_once(self, step: steps_.Step, var: Var) -> bool:
        return sum(self.storage[v] is self.storage[var] for v in steps_.reads_of(step)) == 1

    def _unite(self, source: Storage, target: Storage) -> None:
        if source is target:
            return
        source.last = max(source.last, target.last)
        source.results += target.results
        moved = self.variables.pop(target)
        self.storage.update(dict.fromkeys(moved, source))
        self.variables[source] += moved

    # --- loops and branches ----------------------------------------------------------------------

    def _loop(self, number: int, step: Loop) -> None:
        first_carry = step.num_condition_consts + step.num_consts
        first_x = first_carry + step.num_carry
        pairs = [(first_carry + i, i) for i in range(step.num_carry)]
        carry = {i: step.num_consts + i for i in range(step.num_carry)}
        slices = self._slices(number, step, first_x)
        writable = frozenset([*carry.values(), *slices.values()])
        body = plan(step.body, Ends(carry, slices, writable))
        shared = self._share(number, step, pairs)
        for k, parameter in slices.items():
            x = step.reads[first_x + parameter - step.num_consts - step.num_carry]
            if body.results[k] == Parameter(parameter):
                self._unite(self.storage[x], self.storage[step.writes[k]])
        plans = (body,) if step.condition is None else (plan(step.condition), body)
        self.inner[number] = plans
        self.shared[number] = shared
        self._inner_arena(number, plans)

    def _slices(self, number: int, step: Loop, first_x: int) -> dict[int, int]:
        """Results filled slice by slice that may overwrite an operand taken slice by slice: result -> body
        parameter.
        """
        found: dict[int, int] = {}
        used: set[int] = set()
        for k in range(step.num_carry, len(step.writes)):
            for i, x in enumerate(step.reads[first_x:]):
                target = self.storage[step.writes[k]]
                if (
                    i not in used
                    and self._is_read_once(step, x)
                    and self._may_take(number, self.storage[x], target, False)
                ):
                    found[k] = step.num_consts + step.num_carry + i
                    used.add(i)
                    break
        return found

    def _branch(self, number: int, step: Branch) -> None:
        optional: dict[int, int] = {}
        for k, out in enumerate(step.writes):
            for i, x in enumerate(step.reads[1:]):
                if (
                    i not in optional.values()
                    and self._is_read_once(step, x)
                    and self._may_take(number, self.storage[x], self.storage[out], True)
                ):
                    optional[k] = i
                    break
        while True:
            ends = Ends({}, optional, frozenset(optional.values()))
            plans = tuple(plan(block, ends) for block in step.blocks)
            refused = {k for k, i in optional.items() if any(p.results[k] != Parameter(i) for p in plans)}
            if not refused:
                break
            optional = {k: i for k, i in optional.items() if k not in refused}
        for k, i in optional.items():
            self._unite(self.storage[step.reads[i + 1]], self.storage[step.writes[k]])
        self.inner[number] = plans
        self._inner_arena(number, plans)

    def _inner_arena(self, number: int, plans: Sequence[Plan]) -> None:
        nbytes = max((p.nbytes for p in plans), default=0)
        if nbytes:
            self.scratch_storage[number] = Storage(nbytes, number, number)

    # --- results ---------------------------------------------------------------------------------

    def _place_results(self) -> None:
        """Put storages of results into memory of dead parameters, or where the caller wants them."""
        waiting = [s for s in self._storages() if s.place is None and s.results]
        for parameter, storage in self._matched(waiting).items():
            storage.place = Parameter(parameter)
            self.taken[parameter].append(storage)
        given: set[int] = set()
        for storage in waiting:
            if storage.place is not None:
                continue
            for k in storage.results:
                if k not in self.ends.required and k not in given:
                    storage.place = Result(k)
                    given.add(k)
                    break

    def _matched(self, waiting: Sequence[Storage]) -> dict[int, Storage]:
        """As many storages of results as possible, each with a parameter of its own to take the memory of."""
        found: dict[int, Storage] = {}

        def place(storage: Storage, tried: set[int]) -> bool:
            for parameter in self._free_parameters(storage):
                if parameter in tried:
                    continue
                tried.add(parameter)
                if parameter not in found or place(found[parameter], tried):
                    found[parameter] = storage
                    return True
            return False

        for storage in waiting:
            place(storage, set())
        return found

    def _free_parameters(self, storage: Storage) -> list[int]:
        """Writable parameters that a result may be left in and whose memory is free while it is alive."""
        return [
            parameter
            for parameter, others in self.taken.items()
            if any(self.ends.allows(k, parameter) for k in storage.results)
            and self.block.params[parameter].type.nbytes == storage.nbytes
            and all(other.last < storage.first for other in others)
        ]

    def _finish_results(self, arena: _Arena) -> tuple[Place, ...]:
        """Final places of results, with the copies that bring them there."""
        final: list[Place] = []
        moves: list[Copy] = []
        for k, var in enumerate(self.block.results):
            here = _placed(self.storage[var])
            stays = isinstance(here, Parameter) and self._stays(k, here.number, final)
            target: Place = (
                here if stays else Parameter(self.ends.required[k]) if k in self.ends.required else Result(k)
            )
            final.append(target)
            if target != here:
                moves.append(Copy(here, target, var.type.nbytes))
        overwritten = {move.target for move in moves}
        staged = []
        for move in moves:
            if move.source in overwritten:
                # Several results change places: read all before any is written.
                between = Temporary(arena.extend(move.nbytes))
                self.copies.append(Copy(move.source, between, move.nbytes))
                move = Copy(between, move.target, move.nbytes)
            staged.append(move)
        self.copies += staged
        return tuple(final)

    def _stays(self, k: int, parameter: int, final: Sequence[Place]) -> bool:
        return self.ends.allows(k, parameter) and Parameter(parameter) not in final


def _placed(storage: Storage) -> Place:
    assert storage.place is not None, "every storage has been placed"
    return storage.place


def _temporary(storage: Storage) -> Temporary:
    place = _placed(storage)
    assert isinstance(place, Temporary)
    return place


class _Arena:
    """Best-fit placement of storages with known lifetimes, in the order in which they come alive."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._free: list[tuple[int, int]] = []  # (offset, size), in order of offset

    def place(self, storages: Sequence[Storage]) -> None:
        """Give every storage an offset."""
        ends: dict[int, list[tuple[int, int]]] = {}
        alive_until: list[int] = []
        for storage in sorted(storages, key=lambda s: (s.first, -s.nbytes)):
            while alive_until and alive_until[0] < storage.first:
                for offset, size in ends.pop(alive_until.pop(0)):
                    self._release(offset, size)
            size = align(storage.nbytes)
            offset = self._take(size)
            storage.place = Temporary(offset)
            if storage.last not in ends:
                bisect.insort(alive_until, storage.last)
            ends.setdefault(storage.last, []).append((offset, size))

    def extend(self, nbytes: int) -> int:
        """Fresh bytes at the end."""
        offset = self.nbytes
        self.nbytes += align(nbytes)
        return offset

    def _take(self, size: int) -> int:
        best = min(
            (i for i, (_, n) in enumerate(self._free) if n >= size),
            key=lambda i: self._free[i][1],
            default=None,
        )
        if best is not None:
            offset, n = self._free.pop(best)
            if n > size:
                self._free.insert(best, (offset + size, n - size))
            return offset
        if self._free and sum(self._free[-1]) == self.nbytes:
            offset, n = self._free.pop()
            self.nbytes = offset + size
            return offset
        return self.extend(size)

    def _release(self, offset: int, size: int) -> None:
        at = bisect.bisect(self._free, (offset, size))
        if at < len(self._free) and offset + size == self._free[at][0]:
            size += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == offset:
            previous = self._free.pop(at - 1)
            offset, size, at = previous[0], previous[1] + size, at - 1
        self._free.insert(at, (offset, size))
