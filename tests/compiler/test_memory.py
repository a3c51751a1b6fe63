"""The memory plan: nothing overlaps while it is alive, dead memory is used again, updates happen in place."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.backends.cpu import CpuBackend, compiling
from infini.compiler import memory, steps
from infini.compiler.llvm import target
from infini.compiler.steps import Alias, Block, Parameter, Phase, Result, Temporary
from infini.core import errors, events
from infini.core.backend import CompileOptions
from infini.core.ir import Var
from tests.compiler.programs import adam, f32, i32, program_of

KIB = f32(256)  # 1 KiB


def chain(length, *, in_place=False, extra=()):
    """Steps x0 -> x1 -> ... over arrays of one KiB, and their variables; `extra` are more reads by step."""
    variables = [Var(KIB) for _ in range(length + 1)]
    found = []
    for i in range(length):
        reads = (variables[i], *(variables[j] for at, j in extra if at == i))
        pairs = ((0, 0),) if in_place else ()
        found.append(Phase(f"s{i}", (), reads, (variables[i + 1],), pairs))
    return found, variables


def planned(found, params, results, **ends):
    return memory.plan(Block(tuple(params), (), tuple(found), tuple(results)), memory.Ends(**ends))


def test_a_chain_needs_two_temporaries():
    found, v = chain(6)
    plan = planned(found, [v[0]], [v[6]])
    assert plan.nbytes == 2 * 1024
    assert plan.places[v[6]] == Result(0)


def test_a_chain_in_place_is_computed_where_the_result_goes():
    found, v = chain(6, in_place=True)
    plan = planned(found, [v[0]], [v[6]])
    assert plan.nbytes == 0
    assert {plan.places[x] for x in v[1:]} == {Result(0)}


def test_a_parameter_that_is_not_donated_is_never_overwritten():
    found, v = chain(1, in_place=True)
    assert planned(found, [v[0]], [v[1]]).places[v[1]] == Result(0)


def test_a_donated_parameter_becomes_the_result():
    found, v = chain(1, in_place=True)
    plan = planned(found, [v[0]], [v[1]], writable=frozenset({0}), is_free=True)
    assert plan.results == (Parameter(0),) and plan.donated == {0}


def test_a_donated_parameter_is_used_once_it_is_dead():
    found, v = chain(3)
    plan = planned(found, [v[0]], [v[3]], writable=frozenset({0}), is_free=True)
    assert plan.results == (Parameter(0),)


def test_a_donated_parameter_that_is_read_later_is_kept():
    found, v = chain(3, extra=[(2, 0)])
    plan = planned(found, [v[0]], [v[3]], writable=frozenset({0}), is_free=True)
    assert plan.results == (Result(0),)


def test_an_operand_that_is_used_again_is_not_overwritten():
    found, v = chain(3, in_place=True, extra=[(2, 1)])
    plan = planned(found, [v[0]], [v[3]])
    assert plan.places[v[1]] != plan.places[v[2]]


def test_aliases_share_memory_and_lifetime():
    a, b, c, d = (Var(KIB) for _ in range(4))
    found = [
        Phase("p", (), (a,), (b,)),
        Alias(b, c),
        Phase("q", (), (a,), (d,)),
        Phase("r", (), (c, d), (Var(KIB),)),
    ]
    plan = planned(found, [a], [])
    assert plan.places[b] == plan.places[c] != plan.places[d]


def test_a_parameter_that_is_a_result_is_copied():
    x = Var(KIB)
    (copy,) = planned([], [x], [x]).copies
    assert (copy.source, copy.target) == (Parameter(0), Result(0))


def test_results_that_change_places_go_through_a_temporary():
    x, y = Var(KIB), Var(KIB)
    plan = planned([], [x, y], [y, x], required={0: 0, 1: 1}, writable=frozenset({0, 1}))
    assert plan.nbytes == 2 * 1024 and len(plan.copies) == 4


@pytest.mark.parametrize("seed", range(20))
def test_no_two_living_arrays_overlap(seed):
    rng = np.random.default_rng(seed)
    alive = [Var(KIB)]
    params = list(alive)
    found, last = [], {}
    for number in range(40):
        reads = tuple(alive[i] for i in set(rng.integers(0, len(alive), 2).tolist()))
        output = Var(f32(int(rng.integers(1, 600))))
        found.append(Phase(f"s{number}", (), reads, (output,), scratch_bytes=int(rng.integers(0, 2)) * 512))
        last.update((v, number) for v in reads)
        alive = [*alive, output][-8:]
    results = alive[-2:]
    plan = planned(found, params, results)
    last.update((v, 40) for v in results)
    spans = []
    for number, step in enumerate(found):
        (v,) = step.writes
        if isinstance(plan.places[v], Temporary):
            spans.append((number, last.get(v, number), plan.places[v].offset, v.type.nbytes))
        if number in plan.scratch:
            spans.append((number, number, plan.scratch[number].offset, step.scratch_bytes))
    for i, (first, end, offset, nbytes) in enumerate(spans):
        assert offset % 64 == 0 and offset + nbytes <= plan.nbytes
        for other_first, other_end, other_offset, other_nbytes in spans[:i]:
            together = first <= other_end and other_first <= end
            apart = offset + nbytes <= other_offset or other_offset + other_nbytes <= offset
            assert apart or not together


# --- whole programs --------------------------------------------------------------------------


def built(f, *types, donated=(), **options):
    return compiling.build(
        program_of(f, *types), CompileOptions(donated=donated, **options), target.host_target()
    )


def copied(f, *types, donated=()):
    """Bytes copied because memory could not be shared, and bytes of temporaries."""
    executable = CpuBackend().compile(program_of(f, *types), CompileOptions(donated=donated))
    return executable.cost_analysis()["copied bytes"], executable.memory_analysis()["temp bytes"]


def test_a_step_of_adam_updates_its_state_in_place():
    _, _, plan = built(adam, *[f32(64, 64)] * 4, f32(), donated=(0, 1, 2))
    assert plan.nbytes == 0 and plan.donated == {0, 1, 2}


def test_a_carried_cache_is_updated_in_place():
    def f(cache, update):
        return lax.fori_loop(0, 4, lambda i, c: lax.dynamic_update_slice(c, update * 2.0, (i, 0)), cache)

    assert copied(f, f32(512, 16), f32(1, 16), donated=(0,))[0] < 1024


def test_a_scattered_cache_is_updated_in_place():
    moved, temporary = copied(lambda c, i, u: c.at[i].add(u), f32(512, 16), i32(4), f32(4, 16), donated=(0,))
    assert moved == 0 and temporary < 1024


def test_a_cache_that_is_not_donated_is_copied_once():
    moved, _ = copied(lambda c, u: lax.dynamic_update_slice(c, u, (3, 0)), f32(512, 16), f32(1, 16))
    assert moved == 512 * 16 * 4


def test_slices_of_a_scan_overwrite_the_dead_ones_they_replace():
    def f(xs):
        return lax.scan(lambda c, x: (c + x.sum(), x * 2.0), inp.float32(0), xs)[1]

    _, _, plan = built(f, f32(32, 64), donated=(0,))
    assert plan.results == (Parameter(0),)


def test_a_branch_that_changes_nothing_copies_nothing():
    def f(p, cache, u):
        return lax.cond(p > 0, lambda c: lax.dynamic_update_slice(c, u, (0, 0)), lambda c: c, cache)

    assert copied(f, i32(), f32(512, 16), f32(1, 16), donated=(1,))[0] == 0


def test_unused_donation_warns_with_the_reason():
    with events.record() as found, pytest.warns(errors.InfiniWarning, match="no result has 256 bytes"):
        built(lambda x: x.sum(), f32(64), donated=(0,))
    assert [e.code for e in found] == ["donation-unused"]


def test_required_donation_names_the_step_that_blocks_it():
    def f(x):
        return x @ x, x.sum()

    with pytest.raises(errors.DonationError, match="still read by"):
        built(f, f32(8, 8), donated=(0,), donation="require")


def test_peak_bytes_count_shared_memory_once():
    executable = CpuBackend().compile(program_of(lambda x: x * 2.0, f32(1024)), CompileOptions(donated=(0,)))
    found = executable.memory_analysis()
    assert found == {
        "argument bytes": 4096, "output bytes": 4096, "alias bytes": 4096, "temp bytes": 0,
        "peak bytes": 4096,
    }  # fmt: skip


def test_checkpoint_lowers_the_arena():
    def network(wrap):
        def loss(ws, x):
            for i in range(4):
                x = wrap(lambda w, x: inp.tanh(inp.sin(x @ w) * x))(ws[i], x)
            return x.sum()

        return built(infini.grad(loss), f32(4, 64, 64), f32(64, 64))[2].nbytes

    assert network(infini.checkpoint) < network(lambda f: f)


def test_alignment_rounds_up():
    assert [steps.align(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
