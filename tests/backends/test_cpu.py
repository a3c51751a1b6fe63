"""The CPU backend gives what the reference interpreter gives, whatever the shape, dtype, thread count or
donation.
"""

import threading
import warnings

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.core import backend, dtypes, errors, primitive, trace
from infini.core.backend import CompileOptions
from tests.compiler import programs
from tests.compiler.programs import evaluate, f32, i32, inputs_for, program_of, random_function

CPU = backend.get("cpu")
DEVICE = backend.Device("cpu")


def run(program, inputs, **options):
    """Results of a compiled program as NumPy arrays."""
    executable = CPU.compile(program, CompileOptions(**options))
    found = executable([CPU.put(x, DEVICE) for x in inputs])
    return [CPU.get(b, v.type).copy() for b, v in zip(found, program.results, strict=True)]


def check(f, *types, inputs=None, tolerance=2e-5, **options):
    """Compile, run and compare with the reference."""
    program = program_of(f, *types)
    inputs = inputs_for(program.in_types) if inputs is None else inputs
    for a, b in zip(run(program, inputs, **options), evaluate(program, inputs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance)


PROGRAMS = {
    "softmax": (programs.softmax, [f32(5, 37)]),
    "layer_norm": (programs.layer_norm, [f32(2, 3, 100), f32(100), f32(100)]),
    "cross_entropy": (programs.cross_entropy, [f32(12, 41), i32(12)]),
    "rope": (programs.rope, [f32(2, 6, 3, 8), f32(6, 4), f32(6, 4)]),
    "gradient": (
        infini.value_and_grad(lambda w, x: (inp.tanh(x @ w) ** 2).sum()), [f32(6, 7), f32(5, 6)],
    ),
    "attention": (
        lambda q, k, v: inp.einsum(
            "bhqk,bkhd->bqhd", programs.softmax(inp.einsum("bqhd,bkhd->bhqk", q, k)), v
        ),
        [f32(2, 9, 3, 4)] * 3,
    ),
    "while": (
        lambda x: lax.while_loop(lambda c: c[0] < 7, lambda c: (c[0] + 1, inp.sin(c[1])), (inp.int32(0), x)),
        [f32(9)],
    ),
    "while_with_constants": (
        lambda x, n: lax.while_loop(lambda c: c.sum() < n, lambda c: c + inp.abs(x) + 1.0, x),
        [f32(3), f32()],
    ),
    "scan": (lambda x, xs: lax.scan(lambda c, r: (c * 0.5 + r, inp.tanh(c)), x, xs), [f32(5), f32(7, 5)]),
    "scan_reversed": (
        lambda x, xs: lax.scan(lambda c, r: (c * 0.5 + r, inp.tanh(c)), x, xs, reverse=True),
        [f32(5), f32(7, 5)],
    ),
    "scan_of_nothing": (lambda x, xs: lax.scan(lambda c, r: (c + r, c), x, xs), [f32(5), f32(0, 5)]),
    "nested_loops": (
        lambda x: lax.fori_loop(0, 3, lambda i, c: lax.fori_loop(0, i, lambda j, d: d * 1.5 + j, c), x),
        [f32(4)],
    ),
    "swapping_carries": (lambda x, y: lax.fori_loop(0, 3, lambda i, c: (c[1], c[0]), (x, y)), [f32(4)] * 2),
    "branches": (
        lambda i, x: lax.switch(i, [lambda x: x + 1, inp.exp, lambda x: x], x), [i32(), f32(5)],
    ),
    "gather": (lambda x, i: x[i], [f32(6, 5), i32(2, 3)]),
    "take_along_axis": (lambda x, i: inp.take_along_axis(x, i[:, None], axis=-1), [f32(6, 5), i32(6)]),
    "scatter_add": (lambda x, i, u: x.at[i].add(u), [f32(6, 5), i32(7), f32(7, 5)]),
    "scatter_add_of_numbers": (lambda x, i, u: x.at[i].add(u), [f32(6), i32(7), f32(7)]),
    "scatter": (lambda x, i: x.at[i].set(3.0), [f32(6, 5), i32(1)]),
    "embedding_gradient": (infini.grad(lambda e, i: (e[i] ** 2).sum()), [f32(6, 40), i32(3, 4)]),
    "dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i, i), (2, 3)), [f32(4, 6), i32()]),
    "dynamic_update_slice": (
        lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 0)), [f32(4, 6), f32(2, 6), i32()],
    ),
    "sort": (lambda x: inp.sort(x, axis=-1), [f32(5, 33)]),
    "sort_columns": (lambda x: inp.sort(x, axis=0), [f32(33, 3)]),
    "argsort": (lambda x: inp.argsort(x, axis=-1), [i32(5, 17)]),
    "concatenate_many": (lambda *xs: inp.concatenate(xs, axis=1), [f32(3, n) for n in (1, 4, 2, 5, 3)]),
    "stack": (lambda *xs: inp.stack(xs), [f32(3, 4)] * 5),
    "interior_pad": (lambda x: lax.pad(x, 1.5, [(1, 2, 1), (-1, 3, 2)]), [f32(3, 4)]),
    "argmax": (lambda x: (inp.argmax(x, axis=0), inp.argmax(x, axis=1)), [f32(7, 33)]),
    "all_reductions": (
        lambda x: (x.sum(axis=0), x.max(axis=(0, 2)), x.min(axis=1), x.sum(), x.mean(axis=2)),
        [f32(3, 40, 50)],
    ),
    "identity_and_constant": (lambda x: (x, x, inp.full((3,), 2.0)), [f32(3)]),
    "nothing": (lambda x: (inp.exp(x), x.sum(axis=0), x.T), [f32(0, 3)]),
    "random_bits": (lambda: infini.random.normal(infini.random.key(1), (64,)), []),
    "bools": (lambda x, y: (x > y) & ~(x == y), [f32(5, 7), f32(5, 7)]),
    "integers": (lambda x, y: (x // (y + 1), x % (y + 1), x << 2, -x), [i32(50), i32(50)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_equals_the_reference(name):
    f, types = PROGRAMS[name]
    check(f, *types)


@pytest.mark.parametrize("name", ["softmax", "layer_norm", "gradient", "scan", "rope"])
def test_equals_the_reference_without_fusion(name):
    f, types = PROGRAMS[name]
    with infini.config(no_fuse=True):
        check(f, *types)


@pytest.mark.parametrize("seed", range(40, 64))
def test_random_programs_equal_the_reference(seed):
    donated = tuple(np.flatnonzero(np.random.default_rng(seed).integers(0, 2, 3)).tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.InfiniWarning)  # most of these donations have no use
        check(random_function(seed), f32(4, 6), f32(6), f32(2, 4, 6), tolerance=3e-4, donated=donated)


@pytest.mark.parametrize(
    "dtype", [dtypes.float16, dtypes.bfloat16, dtypes.float64, dtypes.int8, dtypes.uint16, dtypes.int64]
)
def test_dtypes(dtype):
    t = f32(6, 40).update(dtype=dtype)
    tolerance = {dtypes.float16: 2e-3, dtypes.bfloat16: 2e-2}.get(dtype, 1e-12)
    check(
        lambda x, i: (
            x * x + x, x.sum(axis=1, dtype=dtype), x.max(axis=0), x.T, x[i], x.at[i].add(x[:2]), inp.sort(x),
        ),
        t, i32(2), tolerance=tolerance,
    )  # fmt: skip


@pytest.mark.parametrize("donated", [(), (0,), (0, 1)])
def test_donation_changes_no_result(donated):
    f, types = PROGRAMS["scan"]
    check(f, *types, donated=donated)


def test_thread_count_changes_no_bit():
    def f(x, w):
        return programs.softmax(x @ w).sum(axis=0), (x * x).sum(), infini.grad(lambda x: (x @ w).sum())(x)

    program = program_of(f, f32(300, 200), f32(200, 300))
    inputs = inputs_for(program.in_types)
    found = []
    for count in (1, 2, 3):
        with infini.config(num_threads=count):
            found.append(run(program, inputs))
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))


def test_the_portable_pool_gives_the_same_bits():
    program = program_of(lambda x: inp.exp(x).sum(axis=0), f32(500, 400))
    inputs = inputs_for(program.in_types)
    native = run(program, inputs)
    with infini.config(pool="portable"):
        assert run(program, inputs)[0].tobytes() == native[0].tobytes()


def test_one_executable_runs_in_several_threads():
    executable = CPU.compile(
        program_of(lambda x: (inp.exp(x) @ x).sum(axis=0), f32(64, 64)), CompileOptions()
    )
    inputs = [inputs_for([f32(64, 64)], seed)[0] for seed in range(8)]
    expected = [
        evaluate(program_of(lambda x: (inp.exp(x) @ x).sum(axis=0), f32(64, 64)), [x])[0] for x in inputs
    ]
    failures = []

    def work(x, y):
        for _ in range(20):
            (buffer,) = executable([CPU.put(x, DEVICE)])
            if not np.allclose(CPU.get(buffer, f32(64)), y, rtol=1e-3, atol=1e-3):
                failures.append(x)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_callbacks_run_in_program_order():
    seen = []

    def f(x):
        infini.debug.callback(lambda v: seen.append(float(v)), x[0], ordered=True)
        y = lax.fori_loop(
            0,
            2,
            lambda i, c: (infini.debug.callback(lambda v: seen.append(float(v)), c[0], ordered=True), c + 1)[
                1
            ],
            x,
        )
        infini.debug.callback(lambda v: seen.append(float(v)), y[0], ordered=True)
        return y

    infini.jit(f)(np.zeros(3, np.float32))
    assert seen == [0.0, 0.0, 1.0, 2.0]


def test_an_exception_of_a_callback_ends_the_program_and_is_raised():
    def fail(x):
        raise KeyError("from the callback")

    def f(x):
        infini.debug.callback(fail, x[0], ordered=True)
        return lax.fori_loop(0, 3, lambda i, c: c + 1, x)

    with pytest.raises(KeyError, match="from the callback"):
        infini.jit(f)(np.zeros(3, np.float32))
    np.testing.assert_array_equal(infini.jit(lambda x: x + 1)(np.zeros(3, np.float32)), 1.0)


def test_profile_times_every_phase():
    program = program_of(lambda x: programs.softmax(x @ x), f32(64, 64))
    executable = CPU.compile(program, CompileOptions())
    found = executable.profile([CPU.put(x, DEVICE) for x in inputs_for(program.in_types)])
    assert all(phase.ns >= 0 and phase.runs == 1 for phase in found.phases)
    assert 0 < sum(phase.ns for phase in found.phases) < found.wall_ns * 1.01
    names = [phase.name for phase in found.phases]
    assert any(name.startswith("dot") for name in names) and any("exp" in name for name in names)


def test_profile_counts_the_runs_of_phases_in_loops():
    program = program_of(lambda x: lax.fori_loop(0, 7, lambda i, c: programs.softmax(c @ c), x), f32(64, 64))
    executable = CPU.compile(program, CompileOptions())
    found = executable.profile([CPU.put(x, DEVICE) for x in inputs_for(program.in_types)], calls=3)
    assert {phase.runs for phase in found.phases if "dot" in phase.name} == {7}


def test_text_of_every_stage():
    executable = CPU.compile(program_of(programs.softmax, f32(4, 8)), CompileOptions())
    assert "reduce_max" in executable.text("program")
    assert "kernel(" in executable.text("kernels")
    assert "define void @program_" in executable.text("llvm")
    assert "exp" in executable.text("tasks")
    with pytest.raises(errors.ValueMismatchError, match="no stage"):
        executable.text("assembly of another machine")


def test_counts_of_a_product():
    cost = CPU.compile(
        program_of(lambda x, y: x @ y, f32(8, 16), f32(16, 4)), CompileOptions()
    ).cost_analysis()
    assert cost["flops"] == 2 * 8 * 16 * 4 and cost["kernels"] == 1


def test_an_unknown_operation_is_refused_when_compiled():
    nowhere = primitive.register(primitive.Primitive("nowhere", None, {primitive.TYPE: lambda x: (x,)}))
    try:
        with pytest.raises(errors.LoweringError, match="no route for 'nowhere'"):
            CPU.compile(program_of(lambda x: trace.bind1(nowhere, x), f32(3)), CompileOptions())
    finally:
        primitive.unregister(nowhere)


def test_null_compiles_and_counts_without_running():
    null = backend.get("null")
    program = program_of(programs.softmax, f32(4, 8))
    executable = null.compile(program, CompileOptions())
    (buffer,) = executable([null.put(np.ones((4, 8), np.float32), DEVICE)])
    assert executable.cost_analysis()["kernels"] == 1
    assert not null.get(buffer, f32(4, 8)).any()


def test_reference_refuses_what_it_cannot_interpret():
    reference = backend.get("reference")
    found = reference.compile(program_of(programs.softmax, f32(4, 8)), CompileOptions())
    assert found.cost_analysis()["equations"] > 3 and "reduce_max" in found.text("program")
