"""A memory budget: cheap phases run again instead of keeping what they make; no result changes."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.compiler import memory, rematerialise
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.memory import Ends
from infini.compiler.steps import Alias, Block, Phase
from infini.core.ir import Var
from tests.compiler.programs import f32

KIB = f32(256)


def phase(name, reads, writes, cost_ns=10.0, **options):
    task = TaskFunction(name, "", frozenset(), 1, 0, cost_ns)
    return Phase(name, (task,), tuple(reads), tuple(writes), **options)


def needed_over_a_peak(cost_ns=10.0, **options):
    """`kept` is made from a parameter, and read on both sides of a phase that needs much memory."""
    x, kept, first, last = (Var(KIB) for _ in range(4))
    large, other, small = Var(f32(2048)), Var(f32(2048)), Var(f32(1))
    found = [
        phase("keep", [x], [kept], cost_ns, **options),
        phase("first", [kept], [first]),
        phase("large", [x], [large], 1e9),
        phase("other", [large], [other], 1e9),
        phase("small", [other], [small], 1e9),
        phase("last", [kept, small], [last]),
    ]
    return Block((x,), (), tuple(found), (first, last)), kept


def names(block):
    return [getattr(step, "name", "alias") for step in block.steps]


def test_what_is_cheap_is_made_again_after_the_peak():
    block, _ = needed_over_a_peak()
    found = rematerialise.within(block, Ends(), 1)
    assert names(found) == ["keep", "first", "large", "other", "small", "keep", "last"]
    assert memory.plan(block).nbytes - memory.plan(found).nbytes == 1024


def test_what_fits_the_budget_is_left_alone():
    block, _ = needed_over_a_peak()
    assert rematerialise.within(block, Ends(), 1 << 20) is block


def test_what_is_dear_is_kept():
    block, _ = needed_over_a_peak(cost_ns=1e6)
    assert rematerialise.within(block, Ends(), 1) is block


def test_what_is_made_from_memory_that_is_gone_is_kept():
    block, _ = needed_over_a_peak()
    gone = Var(KIB)
    made = (phase("make", block.params, [gone], 1e9), phase("keep", [gone], block.steps[0].writes))
    block = Block(block.params, (), (*made, *block.steps[1:]), block.results)
    assert rematerialise.within(block, Ends(), 1) is block


def test_what_is_made_from_a_donated_parameter_that_dies_is_kept():
    block, _ = needed_over_a_peak()
    ends = Ends(writable=frozenset({0}), is_free=True)
    assert rematerialise.within(block, ends, 1) is block
    assert rematerialise.within(block, Ends(), 1) is not block


def test_updates_are_not_repeated():
    block, _ = needed_over_a_peak(must_share=((0, 0),))
    assert rematerialise.within(block, Ends(), 1) is block


def test_readers_under_another_name_read_what_is_made_again():
    block, kept = needed_over_a_peak()
    other = Var(f32(16, 16))
    *before, last = block.steps
    steps = (before[0], Alias(kept, other), *before[1:], phase("last", [other, last.reads[1]], last.writes))
    found = rematerialise.within(Block(block.params, (), steps, block.results), Ends(), 1)
    *_, again, alias, last = found.steps
    assert alias.read in again.writes and last.reads[0] is alias.write and alias.write is not other


# --- whole programs -----------------------------------------------------------------------------


def network(weights, x):
    for w in weights:
        x = inp.tanh(x @ w)
        x = x * inp.exp(-x * x) + 1
    return (x * x).sum()


@pytest.fixture(scope="module")
def arguments():
    rng = np.random.default_rng(0)
    weights = [inp.asarray(rng.standard_normal((32, 32)).astype(np.float32) * 0.2) for _ in range(6)]
    return weights, inp.asarray(rng.standard_normal((512, 32)).astype(np.float32))


def temporaries(f, arguments):
    return f.lower(*arguments).compile().memory_analysis()["temp bytes"]


def test_a_budget_halves_what_a_gradient_keeps(arguments):
    f = infini.jit(infini.grad(network))
    without, expected = temporaries(f, arguments), f(*arguments)
    with infini.config(memory_budget=1):
        assert temporaries(f, arguments) <= without // 2
        for a, b in zip(expected, f(*arguments), strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_more_is_repeated_than_the_budget_asks_for(arguments):
    f = infini.jit(infini.grad(network))
    least = f.lower(*arguments).compile()
    with infini.config(memory_budget=1_000_000):
        some = f.lower(*arguments).compile()
    with infini.config(memory_budget=1):
        most = f.lower(*arguments).compile()
    bytes_of = [c.memory_analysis()["temp bytes"] for c in (least, some, most)]
    assert bytes_of[0] > 1_000_000 >= bytes_of[1] > bytes_of[2]
