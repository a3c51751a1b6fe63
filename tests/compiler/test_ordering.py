"""The order of steps: readers before what overwrites their operand; independent phases become one."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax, optim, tree
from infini.backends.cpu import CpuBackend, compiling
from infini.compiler import memory, ordering
from infini.compiler.llvm import target, together
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Alias, Block, Group, HostCall, Parameter, Phase
from infini.core import ir
from infini.core.backend import CompileOptions
from infini.core.ir import Var
from tests.compiler.programs import f32, i32, program_of

KIB = f32(256)
LONG = TaskFunction("long", "", frozenset(), 8, 0, 1e6)


def phase(name, reads, writes, *in_place, must_share=(), scratch_bytes=0):
    return Phase(name, (LONG,), tuple(reads), tuple(writes), in_place, must_share, scratch_bytes)


def variables(count, type_=KIB):
    return [Var(type_) for _ in range(count)]


def names(block):
    return [getattr(step, "name", "alias") for step in block.steps]


def ordered(found, params, results, **ends):
    return ordering.ordered(Block(tuple(params), (), tuple(found), tuple(results)), memory.Ends(**ends))


def grouped(found, params, results, writable=()):
    return together.grouped(Block(tuple(params), (), tuple(found), tuple(results)), writable)


DONATED = {"writable": frozenset({0}), "is_free": True}


# --- order ------------------------------------------------------------------------------------


def test_program_order_is_kept_where_nothing_is_gained():
    a, b, c, d = variables(4)
    found = [phase("p", [a], [b]), phase("q", [a], [c]), phase("r", [b, c], [d])]
    assert names(ordered(found, [a], [d])) == ["p", "q", "r"]


def test_a_reader_comes_before_the_step_that_overwrites_a_donated_parameter():
    p, q, r = variables(3)
    found = [phase("update", [p], [q], (0, 0)), phase("read", [p], [r])]
    block = ordered(found, [p], [q, r], **DONATED)
    assert names(block) == ["read", "update"]
    assert memory.plan(block, memory.Ends(**DONATED)).results[0] == Parameter(0)


def test_a_reader_comes_before_the_maker_of_a_result_that_can_take_the_memory():
    p, x, q = variables(3)
    r = Var(f32(1))
    found = [phase("make", [x], [q]), phase("read", [p], [r])]
    block = ordered(found, [p, x], [q, r], **DONATED)
    assert names(block) == ["read", "make"]
    assert memory.plan(block, memory.Ends(**DONATED)).donated == {0}


def test_a_result_replaces_the_parameter_that_it_updates_before_any_other():
    # The result of p could take the memory of q: then p finds none.
    p, q, a, b, r, s = variables(6)
    between = Var(f32(1))
    found = [
        phase("update q", [q], [b, between], (0, 0)),
        phase("read q", [q], [r]),
        phase("update p", [p, between], [a], (0, 0)),
        phase("read p", [p], [s]),
    ]
    ends = memory.Ends(writable=frozenset({0, 1}), is_free=True)
    block = ordered(found, [p, q], [a, b, r, s], writable=frozenset({0, 1}), is_free=True)
    assert names(block) == ["read q", "update q", "read p", "update p"]
    assert memory.plan(block, ends).results[:2] == (Parameter(0), Parameter(1))


def test_a_reader_that_needs_the_update_stays_behind_it():
    p, q, r = variables(3)
    found = [phase("update", [p], [q], (0, 0)), phase("read", [p, q], [r])]
    assert names(ordered(found, [p], [q, r], **DONATED)) == ["update", "read"]


def test_a_parameter_that_is_not_donated_moves_nothing():
    p, q, r = variables(3)
    found = [phase("update", [p], [q], (0, 0)), phase("read", [p], [r])]
    assert names(ordered(found, [p], [q, r])) == ["update", "read"]


def test_readers_come_before_an_update_that_would_copy():
    x, t, u, r = variables(4)
    found = [
        phase("make", [x], [t]),
        phase("scatter", [t], [u], must_share=((0, 0),)),
        phase("read", [t], [r]),
    ]
    assert names(ordered(found, [x], [u, r])) == ["make", "read", "scatter"]


def test_what_frees_memory_runs_as_soon_as_it_can():
    x = Var(KIB)
    gradients, params, updated = variables(4), variables(4), variables(4)
    found = [phase(f"gradient{i}", [x], [g]) for i, g in enumerate(gradients)]
    found += [phase(f"update{i}", [g, params[i]], [updated[i]], (1, 0)) for i, g in enumerate(gradients)]
    ends = memory.Ends(writable=frozenset(range(1, 5)), is_free=True)
    block = Block((x, *params), (), tuple(found), tuple(updated))
    assert memory.plan(block, ends).nbytes == 4 * 1024
    assert memory.plan(ordering.ordered(block, ends), ends).nbytes == 1024


def test_host_calls_keep_their_order():
    x, y = variables(2)
    calls = [HostCall(ir.HostFunction("print", i), (x,)) for i in range(3)]
    found = [calls[0], phase("make", [x], [y]), *calls[1:]]
    block = ordered(found, [x], [y], **DONATED)
    assert [step for step in block.steps if isinstance(step, HostCall)] == calls


def test_an_alias_of_a_donated_parameter_is_the_parameter():
    p, q, other, r = variables(4)
    found = [Alias(p, other), phase("update", [p], [q], (0, 0)), phase("read", [other], [r])]
    assert names(ordered(found, [p], [q, r], **DONATED)) == ["alias", "read", "update"]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_makes_everything_before_its_use(seed):
    rng = np.random.default_rng(seed)
    params = variables(3)
    alive, found = list(params), []
    for number in range(30):
        reads = [alive[i] for i in rng.integers(0, len(alive), 2)]
        output = Var(KIB)
        pairs = ((0, 0),) if rng.random() < 0.5 else ()
        found.append(phase(f"s{number}", reads, [output], *pairs))
        alive = [*alive, output][-9:]
    block = ordered(found, params, alive[-3:], writable=frozenset({0, 1}), is_free=True)
    known = set(params)
    assert sorted(names(block)) == sorted(step.name for step in found)
    for step in block.steps:
        assert known.issuperset(step.reads)
        known.update(step.writes)


def test_as_many_results_as_possible_take_the_memory_of_parameters():
    # The first result fits either parameter, the second only the one that is dead before it is made.
    p, q, a, b = variables(4)
    found = [
        phase("read p", [p], [Var(f32(1))]),
        phase("b", [q], [b]),
        phase("read q", [q], [Var(f32(1))]),
        phase("a", [b], [a]),
    ]
    block = Block((p, q), (), tuple(found), (a, b))
    plan = memory.plan(block, memory.Ends(writable=frozenset({0, 1}), is_free=True))
    assert plan.results == (Parameter(1), Parameter(0))


# --- groups -----------------------------------------------------------------------------------


def test_independent_phases_become_one():
    x, *ys = variables(5)
    block = grouped([phase("p", [x], [y]) for y in ys], [x], ys)
    (only,) = block.steps
    assert isinstance(only, Group) and only.name == "4 x p" and only.writes == tuple(ys)


def test_phases_that_depend_on_each_other_stay_apart():
    x, y, z = variables(3)
    assert names(grouped([phase("p", [x], [y]), phase("q", [y], [z])], [x], [z])) == ["p", "q"]


def test_a_dependence_through_an_alias_keeps_phases_apart():
    x, y, y_alias, z = variables(4)
    found = [phase("p", [x], [y]), Alias(y, y_alias), phase("q", [y_alias], [z])]
    assert names(grouped(found, [x], [z])) == ["p", "alias", "q"]


def test_what_a_phase_overwrites_no_other_of_its_group_reads():
    p, q, r = variables(3)
    found = [phase("read", [p], [r]), phase("update", [p], [q], (0, 0))]
    assert names(grouped(found, [p], [q, r], writable={0})) == ["read", "update"]
    assert names(grouped(found, [p], [q, r])) == ["2 x read"]


def test_groups_that_would_need_much_more_memory_are_not_made():
    large = f32(1 << 20)
    x, a, b, c, d = variables(5, large)
    found = [phase("make", [x], [a]), phase("make", [x], [b]), phase("p", [a], [c]), phase("q", [b], [d])]
    # As one, neither c nor d could be where a was.
    last = phase("last", [c, d], [Var(f32(1))])
    assert names(grouped([*found, last], [x], [])) == ["2 x make", "p", "q", "last"]


def test_the_members_of_a_group_have_scratch_of_their_own():
    x, y, z = variables(3)
    found = [phase("p", [x], [y], scratch_bytes=100), phase("q", [x], [z], scratch_bytes=100)]
    plan = memory.plan(grouped(found, [x], [y, z]))
    assert plan.nbytes == 256


def test_a_small_phase_joins_an_earlier_group():
    x, t, a, b, c, d = variables(6)
    last = phase("last", [b, c], [d])
    found = [phase("norm", [x], [a]), phase("dot", [a], [b]), phase("cos", [t], [c]), last]
    assert names(grouped(found, [x, t], [d])) == ["2 x norm", "dot", "last"]


def test_a_phase_joins_no_group_before_what_it_reads():
    x, a, b, c, d = variables(5)
    found = [phase("norm", [x], [a]), phase("dot", [a], [b]), phase("sin", [b], [c]), phase("p", [c], [d])]
    assert names(grouped(found, [x], [d])) == ["norm", "dot", "sin", "p"]


def test_what_is_large_is_not_made_earlier():
    large = f32(1 << 20)
    x, t, a, b, c, d = variables(6, large)
    last = phase("last", [b, c], [d])
    found = [phase("norm", [x], [a]), phase("dot", [a], [b]), phase("cos", [t], [c]), last]
    assert names(grouped(found, [x, t], [d])) == ["norm", "dot", "cos", "last"]


def test_a_result_is_not_made_earlier():
    """It may be in the memory of a parameter that is read until then."""
    x, t, a, b, c = variables(5)
    found = [phase("norm", [x], [a]), phase("dot", [a], [b]), phase("cos", [t], [c])]
    assert names(grouped(found, [x, t], [b, c])) == ["norm", "2 x dot"]


def test_phases_of_several_tasks_are_one():
    x, *ys = variables(4)
    two = [Phase("dot", (LONG, LONG), (x,), (y,), scratch_bytes=100) for y in ys[:2]]
    (only,) = grouped([*two, phase("p", [x], ys[2:])], [x], ys).steps
    assert isinstance(only, Group) and only.name == "3 x dot"


def test_phases_that_need_much_scratch_memory_stay_apart():
    x, y, z = variables(3)
    found = [phase("p", [x], [y], scratch_bytes=1 << 21), phase("q", [x], [z], scratch_bytes=1 << 21)]
    assert names(grouped(found, [x], [y, z])) == ["p", "q"]


# --- whole programs -----------------------------------------------------------------------------


def adamw(num_leaves):
    """The update of a tree, and its arguments."""
    rng = np.random.default_rng(0)
    shapes = [(64 * (i % 3 + 1), 128) if i % 2 else (96 * (i + 1),) for i in range(num_leaves)]
    params = [inp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    optimizer = optim.adamw(1e-2)

    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optim.apply_updates(params, updates), state

    return update, (params, optimizer.init(params), [p * 0.5 for p in params])


def test_the_update_of_a_tree_is_one_phase_in_place():
    update, arguments = adamw(12)
    compiled = infini.jit(update, donate_argnums=(0, 1), donation="require").lower(*arguments).compile()
    assert compiled.cost_analysis()["phases"] == 1
    assert compiled.memory_analysis()["temp bytes"] < 1024


def test_the_update_of_a_tree_is_what_it_is_leaf_by_leaf():
    update, arguments = adamw(7)
    expected = tree.leaves(update(*arguments))
    found = tree.leaves(infini.jit(update, donate_argnums=(0, 1))(*arguments))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_a_normalised_layer_is_trained_in_place():
    """The kernel that reads a scale for the gradients of rows replaces it, too."""

    def step(scale, w, x):
        def loss(scale, w):
            h = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale
            return ((h @ w) ** 2).mean()

        value, (gs, gw) = infini.value_and_grad(loss, argnums=(0, 1))(scale, w)
        return scale - 0.1 * gs, w - 0.1 * gw, value

    types = [f32(16), f32(16, 8), f32(32, 16)]
    options = CompileOptions(donated=(0, 1), donation="require")
    _, _, plan = compiling.build(program_of(step, *types), options, target.host_target())
    assert plan.donated == {0, 1}


def test_a_cache_read_after_its_update_in_the_text_is_updated_in_place():
    def f(cache, i, x):
        after = lax.dynamic_update_slice(cache, x, (i, inp.int32(0)))
        return after, (cache * cache).sum()

    executable = CpuBackend().compile(
        program_of(f, f32(512, 16), i32(), f32(1, 16)), CompileOptions(donated=(0,), donation="require")
    )
    assert executable.cost_analysis()["copied bytes"] == 0
    cache, x = np.arange(512 * 16, dtype=np.float32).reshape(512, 16), np.ones((1, 16), np.float32)
    after, total = infini.jit(f, donate_argnums=0)(inp.asarray(cache), inp.int32(3), x)
    np.testing.assert_allclose(total, (cache * cache).sum(), rtol=1e-6)
    assert (np.asarray(after)[3] == 1).all()


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(
    "f",
    [lambda x: x * 2, lambda x: inp.conj(x) * (1 + 2j), lambda x: inp.exp(x) + x],
    ids=["double", "conjugate", "exp"],
)
def test_a_donated_complex_array_is_overwritten(f, dtype):
    rng = np.random.default_rng(0)
    host = (rng.standard_normal((37, 16)) + 1j * rng.standard_normal((37, 16))).astype(dtype)
    x = inp.asarray(host, dtype=dtype)
    address = x.buffers[0].address
    found = infini.jit(f, donate_argnums=0, donation="require")(x)
    assert found.buffers[0].address == address
    np.testing.assert_allclose(found, f(inp.asarray(host, dtype=dtype)), rtol=1e-6)


def test_a_donated_complex_array_needs_no_temporary():
    compiled = infini.jit(lambda x: x * (1 + 2j), donate_argnums=0).lower(inp.ones(64, "complex64")).compile()
    assert compiled.memory_analysis()["temp bytes"] == 0


def test_a_program_is_compiled_to_the_same_text_every_time():
    update, arguments = adamw(4)

    def step(params, state, x):
        return update(params, state, [p * x.sum() for p in params])

    texts = {
        infini.jit(lambda *args: step(*args)).lower(*arguments[:2], inp.ones(8)).compile().as_text("kernels")
        for _ in range(3)
    }
    assert len(texts) == 1
