"""The CUDA backend on a stand-in for CuPy: whole programs against the oracle, packing, donation, graphs,
refusals.

Nothing here has touched a GPU; `bench/gpu.sh` does.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
from infini import lax, quantization
from infini.backends import cuda
from infini.backends.accelerator import executable, gemm, recording, walk as walk_
from infini.backends.cuda import driver
from infini.backends.reference import interpreter
from infini.compiler.triton import streaming
from infini.compiler.triton.source import pack
from infini.compiler.triton.target import GENERIC, nvidia
from infini.core import (
    backend as backend_,
    dtypes,
    errors,
    host,
    primitive,
    trace,
)
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType
from tests.backends.fake_cupy import Machine
from tests.tile import kernels

DEVICE = Device("cuda", 0)
Function = Callable[..., Any]


@pytest.fixture
def machine(monkeypatch: Any) -> Machine:
    return Machine().install(monkeypatch)


@pytest.fixture
def backend(machine: Machine) -> cuda.CudaBackend:
    return cuda.CudaBackend()


def compiled(backend: Any, function: Function, arrays: Sequence[np.ndarray], **options: Any) -> Any:
    """The executable of a function, and its program."""

    def flat(*xs: Any) -> list[Any]:
        found = function(*xs)
        return list(found) if isinstance(found, (tuple, list)) else [found]

    staged = trace.stage(flat, [ArrayType(a.shape, a.dtype) for a in arrays])
    return backend.compile(staged.program, CompileOptions(**options))


def run(backend: Any, found: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Results of an executable on copies of host arrays."""
    buffers = found([backend.put(a, DEVICE) for a in arrays])
    return [backend.get(b, t) for b, t in zip(buffers, found.program.out_types, strict=True)]


def check(
    backend: Any, function: Function, *arrays: np.ndarray, tolerance: float = 1e-5, times: int = 1
) -> Any:
    """The device gives what the oracle gives, every time."""
    found = compiled(backend, function, arrays)
    wanted = interpreter.evaluate(found.program, arrays)
    for _ in range(times):
        for got, want in zip(run(backend, found, arrays), wanted, strict=True):
            np.testing.assert_allclose(
                got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance
            )
    return found


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# --- programs --------------------------------------------------------------------------------


def test_fused_chain(backend: Any, machine: Machine, rng: Any) -> None:
    check(backend, lambda x, y: lax.mul(lax.tanh(lax.add(x, y)), 2.0), normal(rng, 6, 50), normal(rng, 6, 50))
    assert machine.count("launch") == 1


def test_sorting_and_running_sums(backend: Any, rng: Any) -> None:
    def ordered(x: Any) -> Any:
        return (*lax.sort((x, lax.neg(x))), *lax.top_k(x, 3), lax.cumsum(x, 1), lax.cummax(x, 0))

    check(backend, ordered, normal(rng, 3, 20))
    check(backend, lambda x: (lax.sort(x), lax.cumlogsumexp(x, reverse=True)), normal(rng, 600))


def test_reductions_of_every_kind(backend: Any, rng: Any) -> None:
    def reduced(x: Any) -> Any:
        bits = lax.convert_element_type(lax.mul(x, 9.0), "int32")
        flags = lax.gt(x, 0.0)
        return (
            lax.reduce_sum(x, (0, 2)), lax.reduce_prod(x, (1,)), lax.argmin(x, 2, "int32"),
            lax.reduce_xor(bits, (0, 1, 2)), lax.reduce_and(bits, (2,)), lax.reduce_or(flags, (0,)),
        )  # fmt: skip

    check(backend, reduced, normal(rng, 3, 4, 5))


def test_softmax_of_rows(backend: Any, rng: Any) -> None:
    def softmax(x: Any) -> Any:
        e = lax.exp(lax.sub(x, lax.broadcast_in_dim(lax.reduce_max(x, (1,)), x.shape, (0,))))
        return lax.div(e, lax.broadcast_in_dim(lax.reduce_sum(e, (1,)), x.shape, (0,)))

    check(backend, softmax, normal(rng, 7, 33))


@pytest.mark.parametrize("has_cublas", [True, False])
def test_products_by_the_library_and_by_a_kernel(
    has_cublas: bool, backend: Any, machine: Machine, rng: Any, monkeypatch: Any
) -> None:
    if not has_cublas:
        monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.cublas", None)
    check(backend, lambda x, y: lax.dot(x, y), normal(rng, 20, 30), normal(rng, 30, 10), tolerance=1e-4)
    assert (machine.count("gemm"), machine.count("launch")) == ((1, 0) if has_cublas else (0, 1))


def test_a_kernel_by_hand(backend: Any, rng: Any) -> None:
    check(backend, lambda x, w: kernels.rms_norm(x, w), normal(rng, 4, 24), normal(rng, 24))


@pytest.mark.parametrize("scheme", ["Q5_1", "int8"])
def test_a_product_with_a_quantized_matrix(scheme: str, backend: Any, machine: Machine, rng: Any) -> None:
    with inf.config(device="reference"):
        w = inf.tree.map(np.asarray, quantization.quantize(normal(rng, 10, 64), scheme))

    def function(x: Any, *planes: Any) -> Any:
        return lax.quantized_matmul(x, inf.tree.unflatten(inf.tree.structure(w), planes))

    check(backend, function, normal(rng, 4, 64), *w.planes, tolerance=1e-4)
    assert (machine.count("gemm"), machine.count("launch")) == (1, 1)


def test_views_constants_and_several_results(backend: Any, rng: Any) -> None:
    def function(x: Any) -> Any:
        table = np.arange(5, dtype=np.float32)
        moved = lax.pad(lax.rev(lax.transpose(x, (1, 0)), (0,)), np.float32(1), ((1, 0, 0), (0, 2, 1)))
        return moved, lax.reshape(x, (10,)), lax.add(x, lax.broadcast_in_dim(table, x.shape, (1,))), x

    check(backend, function, normal(rng, 2, 5))


def test_indexed_reads_and_writes(backend: Any, rng: Any) -> None:
    def function(x: Any, update: Any, i: Any, rows: Any) -> Any:
        part = lax.dynamic_slice(x, (i, 0), (2, 5))
        written = lax.dynamic_update_slice(x, update, (i, 1))
        return part, written, inf.numpy.take(x, rows, axis=0), x

    i, rows = np.asarray(3, np.int32), np.array([1, 0, 6], np.int32)
    check(backend, function, normal(rng, 7, 5), normal(rng, 2, 3), i, rows)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16], ids=str)
def test_gradient_of_an_embedding_adds_up(dtype: np.dtype, backend: Any, rng: Any) -> None:
    table, tokens = normal(rng, 9, 4).astype(dtype), np.array([[1, 1, 2], [8, 1, 0]], np.int32)
    loss = lambda t, i: lax.reduce_sum(lax.convert_element_type(lax.mul(t[i], t[i]), "float32"), (0, 1, 2))  # noqa: E731
    check(backend, inf.grad(loss), table, tokens, tolerance=1e-5 if dtype == dtypes.float32 else 2e-2)


def test_scan_stacks_and_carries(backend: Any, rng: Any) -> None:
    def function(start: Any, xs: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            return lax.add(lax.mul(carry, 0.5), x), lax.mul(carry, x)

        return lax.scan(step, start, xs, reverse=True)

    check(backend, lambda c, xs: list(function(c, xs)), normal(rng, 4), normal(rng, 5, 4))


def test_while_loop_reads_its_condition(backend: Any) -> None:
    def function(x: Any) -> Any:
        return lax.while_loop(
            lambda s: lax.lt(s[0], 5), lambda s: (lax.add(s[0], 1), lax.mul(s[1], 2.0)), (0, x)
        )

    check(backend, function, np.arange(4, dtype=np.float32))


@pytest.mark.parametrize("flag", [True, False])
def test_cond_reads_its_index(flag: bool, backend: Any, rng: Any) -> None:
    function = lambda p, x: lax.cond(p, lambda x: lax.exp(x), lambda x: lax.neg(x), x)  # noqa: E731
    check(backend, function, np.asarray(flag), normal(rng, 6))


def test_a_training_step_of_an_mlp(backend: Any, rng: Any) -> None:
    w1, w2, x, y = normal(rng, 8, 16), normal(rng, 16, 4), normal(rng, 12, 8), normal(rng, 12, 4)

    def step(w1: Any, w2: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            error = lax.sub(lax.dot(lax.tanh(lax.dot(x, params[0])), params[1]), y)
            return lax.reduce_sum(lax.mul(error, error), (0, 1))

        value, grads = inf.value_and_grad(loss)((w1, w2))
        return value, lax.sub(w1, lax.mul(grads[0], 0.01)), lax.sub(w2, lax.mul(grads[1], 0.01))

    check(backend, step, w1, w2, x, y, tolerance=1e-4, times=3)


def test_random_bits_are_those_of_the_oracle(backend: Any) -> None:
    check(backend, lambda key: inf.random.bits(key, (7,)), np.array([1, 2], np.uint32))


def test_results_without_elements(backend: Any, machine: Machine) -> None:
    check(backend, lambda x: lax.add(x, x), np.zeros((0, 3), np.float32))
    assert machine.count("launch") == 0


def test_a_callback_gets_the_values(backend: Any) -> None:
    seen = []
    reference = host.register(lambda x: seen.append(np.array(x)), key="cuda callback")
    debug = inf.core.primitive.by_name("debug_callback")

    def function(x: Any) -> Any:
        y = lax.mul(x, 2.0)
        trace.bind(debug, y, callback=reference, ordered=False)
        return y

    x = np.arange(3, dtype=np.float32)
    run(backend, compiled(backend, function, [x]), [x])
    np.testing.assert_array_equal(seen, [x * 2])


def test_results_of_a_callback_reach_the_device(backend: Any) -> None:
    def host_function(x: Any) -> Any:
        return np.asarray(x) * 2, np.asarray(x) > 1

    def function(x: Any) -> Any:
        types = (inf.ShapeDtypeStruct((3,), "float32"), inf.ShapeDtypeStruct((3,), bool))
        doubled, is_large = inf.pure_callback(host_function, types, lax.add(x, 1.0))
        total, _ = lax.scan(lambda c, y: (inf.pure_callback(np.add, c, c, y), None), np.float32(0.0), doubled)
        return lax.mul(doubled, 3.0), is_large, total

    check(backend, function, np.arange(3, dtype=np.float32), times=2)


# --- donation --------------------------------------------------------------------------------


def test_a_donated_parameter_is_updated_in_place(backend: Any, rng: Any) -> None:
    x = normal(rng, 40)
    found = compiled(backend, lambda x: lax.add(x, 1.0), [x], donated=(0,))
    buffer = backend.put(x, DEVICE)
    (result,) = found([buffer])
    assert result is buffer and found.memory_analysis()["alias bytes"] == x.nbytes
    np.testing.assert_array_equal(backend.get(result, found.program.out_types[0]), x + 1)


def test_a_donated_parameter_in_the_memory_of_another_array_is_copied(backend: Any, rng: Any) -> None:
    x = normal(rng, 40)
    found = compiled(backend, lambda x: lax.add(x, 1.0), [x], donated=(0,))
    buffer = backend.put(x, DEVICE)
    other = buffer.alias()
    (result,) = found([buffer])
    type_ = found.program.out_types[0]
    np.testing.assert_array_equal(backend.get(other, type_), x)
    np.testing.assert_array_equal(backend.get(result, type_), x + 1)
    del buffer
    assert not other.has_aliases
    (result,) = found([other])
    assert result is other
    np.testing.assert_array_equal(backend.get(result, type_), x + 1)


def test_a_result_does_not_overwrite_what_a_later_pass_reads(
    backend: Any, rng: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(streaming, "MAX_TILE", 64)
    monkeypatch.setattr(streaming, "CHUNK", 32)
    x = normal(rng, 2, 100)

    def function(x: Any) -> Any:
        mean = lax.broadcast_in_dim(lax.reduce_sum(x, (1,)), x.shape, (0,))
        return lax.mul(x, 2.0), lax.sub(x, mean)

    found = compiled(backend, function, [x], donated=(0,))
    wanted = interpreter.evaluate(found.program, [x])
    for got, want in zip(run(backend, found, [x]), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_cache_is_written_without_a_copy(backend: Any, machine: Machine, rng: Any) -> None:
    cache, row = normal(rng, 64, 8), normal(rng, 1, 8)
    function = lambda c, r, i: lax.dynamic_update_slice(c, r, (i, 0))  # noqa: E731
    found = compiled(backend, function, [cache, row, np.asarray(3, np.int32)], donated=(0,))
    buffers = [backend.put(a, DEVICE) for a in (cache, row, np.asarray(3, np.int32))]
    machine.events.clear()
    found(buffers)
    assert ("copy", 3, cache.nbytes) not in machine.events
    assert machine.events[-1][:2] == ("launch", "dynamic_update_slice")


def test_required_donation_that_cannot_be_is_an_error(backend: Any) -> None:
    x = np.zeros(8, np.float32)
    with pytest.raises(errors.DonationError, match=r"\[0\]"):
        compiled(backend, lambda x: lax.reduce_sum(x, (0,)), [x], donated=(0,), donation="require")


# --- graphs ----------------------------------------------------------------------------------


def several(x: Any, w: Any) -> Any:
    """A chain of products, which makes enough tasks for a graph."""
    for _ in range(executable.MIN_TASKS):
        x = lax.tanh(lax.dot(x, w))
    return x


def test_the_second_call_captures_and_later_ones_replay(backend: Any, machine: Machine, rng: Any) -> None:
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w])
    (want,) = interpreter.evaluate(found.program, [x, w])
    standing = [backend.put(a, DEVICE) for a in (x, w)]  # of inputs that move, there may be a second capture
    for _ in range(4):
        (got,) = found(standing)
        np.testing.assert_allclose(backend.get(got, found.program.out_types[0]), want, rtol=1e-4, atol=1e-4)
    assert (machine.count("capture"), machine.count("replay")) == (1, 3)
    assert found.cost_analysis()["graphs captured"] == 1


def test_a_graph_takes_new_small_inputs(backend: Any, rng: Any) -> None:
    w = normal(rng, 16, 16)
    found = compiled(backend, several, [normal(rng, 4, 16), w])
    for _ in range(3):
        x = normal(rng, 4, 16)
        (got,) = run(backend, found, [x, w])
        (want,) = interpreter.evaluate(found.program, [x, w])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_results_of_two_replays_are_different_memory(backend: Any, rng: Any) -> None:
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w])
    buffers = [backend.put(a, DEVICE) for a in (x, w)]
    results = [found(buffers)[0] for _ in range(3)]
    assert len({result.address for result in results}) == 3


def test_large_inputs_are_captured_by_address_at_most_four_times(
    backend: Any, machine: Machine, rng: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(executable, "MAX_COPIED_BYTES", 512)
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w])
    weights, same = [backend.put(w, DEVICE) for _ in range(6)], backend.put(x, DEVICE)
    for buffer in (weights[0], *weights, *weights[:2]):
        (got,) = found([same, buffer])
        (want,) = interpreter.evaluate(found.program, [x, w])
        np.testing.assert_allclose(backend.get(got, found.program.out_types[0]), want, rtol=1e-4, atol=1e-4)
    assert (machine.count("capture"), machine.count("replay")) == (executable.MAX_GRAPHS, 6)


def test_work_of_other_threads_is_no_part_of_a_capture(
    backend: Any, machine: Machine, rng: Any, monkeypatch: Any
) -> None:
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w])
    run(backend, found, [x, w])
    other, start = backend.put(x, DEVICE), walk_.start
    copies: list[Any] = []

    def interrupted(*args: Any) -> None:
        if machine.recordings and not copies:
            thread = threading.Thread(target=lambda: copies.append(backend.driver(0).duplicate(other)))
            thread.start()
            thread.join()
        start(*args)

    monkeypatch.setattr(walk_, "start", interrupted)
    (got,) = run(backend, found, [x, w])
    np.testing.assert_array_equal(backend.get(copies[0], ArrayType(x.shape, x.dtype)), x)
    (want,) = interpreter.evaluate(found.program, [x, w])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    (num_recorded,) = (event[1] for event in machine.events if event[0] == "capture")
    assert num_recorded == found.num_tasks


def test_two_threads_replay_one_after_the_other(backend: Any, rng: Any, monkeypatch: Any) -> None:
    x, y, w = normal(rng, 4, 16), normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w])
    run(backend, found, [x, w])
    replay, others = driver.Driver.replay, []

    def interrupted(self: Any, graph: Any) -> None:
        if not others:  # another call comes when the inputs have been copied
            others.append(threading.Thread(target=run, args=(backend, found, [y, w])))
            others[0].start()
            others[0].join(0.2)
        replay(self, graph)

    monkeypatch.setattr(driver.Driver, "replay", interrupted)
    (got,) = run(backend, found, [x, w])
    others[0].join()
    (want,) = interpreter.evaluate(found.program, [x, w])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_memory_of_recorded_kernels_lives_as_long_as_the_graph(
    backend: Any, machine: Machine, rng: Any
) -> None:
    machine.scratch_bytes = 64
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = check(backend, several, x, w, times=2, tolerance=1e-4)
    (recorded,) = found._recordings.values()
    num_launches = sum(event[0] == "launch" for event in machine.events) // 2
    (graph,) = recorded.parts
    assert len(graph.memory) == num_launches > 0


def test_a_donated_state_advances_through_replays(backend: Any, rng: Any) -> None:
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w], donated=(0,))
    (buffer, weights), want = [backend.put(a, DEVICE) for a in (x, w)], x
    for _ in range(4):
        (buffer,) = found([buffer, weights])
        (want,) = interpreter.evaluate(found.program, [want, w])
    np.testing.assert_allclose(backend.get(buffer, found.program.out_types[0]), want, rtol=1e-3, atol=1e-4)


def test_inputs_that_stay_are_not_copied(backend: Any, machine: Machine, rng: Any) -> None:
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w])
    weights, kept = backend.put(w, DEVICE), []
    for _ in range(4):
        kept.append(backend.put(x, DEVICE))
        machine.events.clear()
        found([kept[-1], weights])
    assert ("copy", 3, x.nbytes) in machine.events and ("copy", 3, w.nbytes) not in machine.events


def test_all_small_inputs_are_copied_when_they_keep_surprising(backend: Any, machine: Machine) -> None:
    arrays = [np.full(8, i, np.float32) for i in range(6)]
    found = compiled(backend, lambda *xs: [lax.dot(x, lax.tanh(x)) for x in xs], arrays)
    buffers, kept = [backend.put(a, DEVICE) for a in arrays], []
    for i in range(6):
        found(buffers)
        kept.append(buffers[i])
        buffers[i] = backend.put(arrays[i], DEVICE)
    before = machine.count("capture")
    for _ in range(3):
        buffers = [backend.put(a, DEVICE) for a in arrays]
        kept += buffers
        got = [backend.get(r, ArrayType((), np.dtype(np.float32))) for r in found(buffers)]
        np.testing.assert_allclose(got, [a @ np.tanh(a) for a in arrays], rtol=1e-5)
    assert machine.count("capture") == before


def test_a_large_result_is_lent_and_kept_while_it_is_held(
    backend: Any, machine: Machine, rng: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(executable, "MAX_COPIED_BYTES", 64)
    x, w = normal(rng, 4, 16), normal(rng, 16, 16) / 8
    found = compiled(backend, several, [x, w])
    weights = backend.put(w, DEVICE)
    state, type_ = backend.put(x, DEVICE), found.program.out_types[0]
    want, states = x, []
    for turn in range(8):
        if turn == 5:
            machine.events.clear()
        (state,) = found([state, weights])
        (want,) = interpreter.evaluate(found.program, [want, w])
        states = [*states[-1:], (state, want)]
        for held, value in states:
            np.testing.assert_allclose(backend.get(held, type_), value, rtol=1e-3, atol=1e-4)
    counts = [machine.count(kind) for kind in ("capture", "replay")]
    assert counts == [0, 3] and ("copy", 3, x.nbytes) not in machine.events


def test_when_all_memory_is_lent_the_program_is_launched(
    backend: Any, machine: Machine, rng: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(executable, "MAX_COPIED_BYTES", 64)
    x, w = normal(rng, 4, 16), normal(rng, 16, 16)
    found = compiled(backend, several, [x, w])
    buffers = [backend.put(a, DEVICE) for a in (x, w)]
    held = [found(buffers)[0] for _ in range(executable.MAX_GRAPHS + 3)]
    assert len({buffer.address for buffer in held}) == len(held)
    (want,) = interpreter.evaluate(found.program, [x, w])
    for buffer in held:
        got = backend.get(buffer, found.program.out_types[0])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert machine.count("replay") == executable.MAX_GRAPHS


# Programs that ask the host, with work before, inside and behind, and how many graphs they are.
def _while(x: Any, w: Any) -> Any:
    body = lambda s: (lax.add(s[0], 1), several(s[1], w))  # noqa: E731
    count, x = lax.while_loop(lambda s: lax.lt(s[0], 2), body, (0, several(x, w)))
    return count, lax.tanh(x)


def _branch(x: Any, w: Any) -> Any:
    which = lax.gt(lax.reduce_sum(x, (0, 1)), 0.0)
    x = lax.cond(which, lambda x: several(x, w), lambda x: lax.neg(several(x, w)), x)
    return lax.dot(x, w)


def _callback(x: Any, w: Any) -> Any:
    x = several(x, w)
    x = inf.pure_callback(lambda x: np.asarray(x) * 2, inf.ShapeDtypeStruct(x.shape, x.dtype), x)
    return several(x, w)


def _turns(x: Any, w: Any) -> Any:
    body = lambda c, _: (lax.cond(lax.gt(c[0, 0], 0.0), lax.neg, lax.sin, several(c, w)), c[0])  # noqa: E731
    return lax.scan(body, x, None, length=recording.MAX_TURNS + 1)


@pytest.mark.parametrize(("function", "num_graphs"), [(_while, 4), (_branch, 4), (_callback, 2), (_turns, 1)])
def test_what_asks_the_host_is_cut_into_graphs(
    function: Any, num_graphs: int, backend: Any, machine: Machine, rng: Any
) -> None:
    x, w = normal(rng, 4, 16), normal(rng, 16, 16) / 8
    found = compiled(backend, function, [x, w])
    kept = []
    for sign in (1, 1, -1, 1):
        kept += [[backend.put(a, DEVICE) for a in (sign * x, w)]]
        wanted = interpreter.evaluate(found.program, [sign * x, w])
        for got, want, type_ in zip(found(kept[-1]), wanted, found.program.out_types, strict=True):
            np.testing.assert_allclose(backend.get(got, type_), want, rtol=1e-3, atol=1e-4)
    assert found.cost_analysis()["graphs captured"] == num_graphs
    assert found.num_replays == 3


def test_a_callback_may_call_the_program_it_is_in(backend: Any, rng: Any) -> None:
    x, w = normal(rng, 4, 16), normal(rng, 16, 16) / 8
    calls: list[None] = []
    inner: list[Any] = []

    def host(x: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:  # while a recording is replayed
            inner.append(run(backend, found, [y, w])[0])
        return np.asarray(x)

    def function(x: Any, w: Any) -> Any:
        x = inf.pure_callback(host, inf.ShapeDtypeStruct(x.shape, x.dtype), several(x, w))
        return several(x, w)

    y, found = 2 * x, compiled(backend, function, [x, w])
    results = [run(backend, found, [x, w])[0] for _ in range(2)]
    plain = compiled(backend, lambda x, w: several(several(x, w), w), [x, w])
    for array, got in ((x, results[0]), (x, results[1]), (y, inner[0])):
        (want,) = interpreter.evaluate(plain.program, [array, w])
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


# --- launches --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "nbytes"),
    [
        ("*fp32", 1 << 40, 8),
        ("i32", 3, 4),
        ("i64", 3, 8),
        ("fp32", 0.1, 4),
        ("bf16", 0.1, 2),
        ("fp64", 0.1, 8),
        ("i1", 1, 4),
    ],
)
def test_parameters_are_packed_in_the_bytes_of_their_type(kind: str, value: float, nbytes: int) -> None:
    packed = pack(kind, value)
    assert packed.nbytes == nbytes
    assert float(np.asarray(packed).astype(np.float64).reshape(())) == pytest.approx(value, rel=1e-2)


def test_more_shared_memory_is_asked_for(backend: Any, machine: Machine, rng: Any) -> None:
    machine.shared_bytes = 96 << 10
    check(backend, lambda x: lax.exp(x), normal(rng, 8))
    assert list(machine.shared_limits.values()) == [96 << 10]


def test_scratch_memory_is_allocated_and_aligned(backend: Any, machine: Machine, rng: Any) -> None:
    machine.scratch_bytes = 256
    check(backend, lambda x: lax.exp(x), normal(rng, 8))


# --- devices and refusals --------------------------------------------------------------------


def test_memory_that_is_short_is_our_error_with_the_bytes(backend: Any, machine: Machine) -> None:
    machine.limit_bytes = 1 << 20
    kept = backend.put(np.zeros(1 << 17, np.float32), DEVICE)
    with pytest.raises(
        errors.OutOfMemoryError, match=r"(?s)cuda:0 has less memory.*got: +1048576 bytes wanted"
    ):
        backend.put(np.zeros(1 << 18, np.float32), DEVICE)
    del kept
    backend.put(np.zeros(1 << 18, np.float32), DEVICE)


def test_a_program_that_ran_out_of_memory_runs_when_there_is_some(
    backend: Any, machine: Machine, rng: Any
) -> None:
    x = normal(rng, 1 << 10)
    found = compiled(backend, lambda x: lax.sort(lax.exp(x)), [x])
    machine.limit_bytes = 6 << 10
    with pytest.raises(errors.OutOfMemoryError):
        run(backend, found, [x])
    machine.limit_bytes = 1 << 20
    np.testing.assert_allclose(run(backend, found, [x])[0], np.sort(np.exp(x)), rtol=1e-6)
    assert machine.bytes_in_use < 1 << 16


def test_kernels_are_for_the_devices_that_are_there(backend: Any, machine: Machine, rng: Any) -> None:
    check(backend, lambda x: lax.exp(x), normal(rng, 8))
    assert backend.target == dataclasses.replace(nvidia(90), shared_bytes=227 << 10)
    assert [target.name for target in machine.targets] == ["sm_90"]


def test_kernels_of_unlike_devices_use_what_all_of_them_have(machine: Machine) -> None:
    machine.capabilities, machine.shared_limit_bytes = ("90", "86"), 99 << 10
    backend = cuda.CudaBackend()
    assert (backend.target.name, backend.target.shared_bytes) == ("sm_86", 99 << 10)
    assert backend.target.capabilities == nvidia(86).capabilities
    x = np.ones(8, np.float32)
    compiled(backend, lambda x: lax.exp(x), [x])([backend.put(x, Device("cuda", 1))])
    assert [target.name for target in machine.targets] == ["sm_86"]


def test_a_card_that_nothing_is_compiled_for_lowers_no_other(backend: Any, machine: Machine) -> None:
    machine.capabilities = ("61", "90")
    assert backend.target == dataclasses.replace(nvidia(90), shared_bytes=227 << 10)


def test_without_a_device_kernels_are_for_any(monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    assert cuda.CudaBackend().target is GENERIC


def test_devices_are_those_of_the_driver(backend: Any) -> None:
    assert backend.why_unavailable() is None
    assert [str(d) for d in backend.devices()] == ["cuda:0", "cuda:1"]
    assert backend.memory_stats(DEVICE) == {
        "bytes_in_use": 256, "bytes_kept": 768, "bytes_free": 4096 + 768, "bytes_limit": 8192,
    }  # fmt: skip


def test_copies_between_devices(backend: Any, rng: Any) -> None:
    x = normal(rng, 5)
    type_ = ArrayType(x.shape, x.dtype)
    moved = backend.copy(backend.put(x, DEVICE), type_, Device("cuda", 1))
    assert moved.device == 1
    np.testing.assert_array_equal(backend.get(moved, type_), x)


def test_without_a_gpu_the_reason_is_given(machine: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["cupy"].cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "driverGetVersion", lambda: 0)
    found = cuda.CudaBackend()
    assert found.devices() == () and "no NVIDIA driver" in str(found.why_unavailable())
    with pytest.raises(errors.DeviceError, match="cuda:0"):
        found.driver(0)


def test_without_cupy_the_installation_is_named(monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    assert "infini[cuda12]" in str(cuda.CudaBackend().why_unavailable())


def test_an_operation_without_a_route_is_refused_when_compiled(backend: Any) -> None:
    op = primitive.Primitive("unknown", primitive.parse_signature("()->()"), {primitive.TYPE: lambda x: (x,)})
    with pytest.raises(errors.LoweringError, match="unknown"):
        compiled(backend, lambda x: trace.bind1(op, x), [np.zeros(8, np.float32)])


def test_text_of_every_stage(backend: Any) -> None:
    found = compiled(backend, lambda x: lax.exp(x), [np.zeros(8, np.float32)])
    assert "exp" in found.text("program") and "kernel" in found.text("kernels")
    assert "@triton.jit" in found.text("triton")
    with pytest.raises(errors.ValueMismatchError, match="no stage"):
        found.text("llvm")


# --- cuBLAS plans ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "x_shape", "y_shape", "fits"),
    [
        ("mk,kn->mn", (3, 4), (4, 5), True),
        ("km,nk->nm", (4, 3), (5, 4), True),
        ("mk,kn->nm", (3, 4), (4, 5), True),
        ("bmk,bkn->bmn", (2, 3, 4), (2, 4, 5), True),
        ("bqhd,bkhd->bhqk", (1, 3, 2, 4), (1, 5, 2, 4), True),
        ("bshd,hde->bse", (2, 3, 4, 5), (4, 5, 6), True),
        ("mk,k->m", (3, 4), (4,), True),
        ("mkj,kn->mnj", (3, 4, 2), (4, 5), False),
        ("bqhd,bkhd->bhqk", (2, 3, 2, 4), (2, 5, 2, 4), False),
        ("m,n->mn", (3,), (4,), False),
    ],
)
def test_layouts_that_the_library_takes(
    spec: str, x_shape: Any, y_shape: Any, fits: bool, backend: Any, rng: Any
) -> None:
    x, y = normal(rng, *x_shape), normal(rng, *y_shape)
    plan = gemm.plan(ArrayType(x.shape, x.dtype), ArrayType(y.shape, y.dtype), spec, dtypes.float32)
    assert (plan is not None) == fits
    if plan is not None:
        buffers = [backend.put(a, DEVICE) for a in (x, y)]
        want = np.einsum(spec, x, y)
        out = backend.put(np.zeros(want.shape, np.float32), DEVICE)
        backend.driver(0).gemm(
            plan.numbers(buffers[0].address, buffers[1].address, out.address), plan.compute, plan.scalar
        )
        got = backend.get(out, ArrayType(want.shape, dtypes.float32))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float16, dtypes.float64], ids=str)
def test_dtypes_that_the_library_takes(dtype: np.dtype) -> None:
    x = ArrayType((4, 4), dtype)
    assert gemm.plan(x, x, "mk,kn->mn", dtype) is not None
    wide = gemm.plan(x, x, "mk,kn->mn", dtypes.float32)
    assert (wide is None) == (dtype == dtypes.float64)
    assert gemm.plan(x, x, "mk,kn->mn", dtypes.int32) is None


# --- through the public interface ------------------------------------------------------------


def test_jit_runs_on_the_device(backend: Any, machine: Machine, monkeypatch: Any, rng: Any) -> None:
    real = backend_.get
    monkeypatch.setattr(backend_, "get", lambda name: backend if name == "cuda" else real(name))
    backend_.forget_default_device()
    x = normal(rng, 3, 8)
    with inf.config(device="cuda"):
        found = inf.jit(lambda x: kernels.softmax(lax.mul(x, 2.0)))(x)
        assert str(found.device) == "cuda:0"
        p = np.exp(2 * x - 2 * x.max(1, keepdims=True))
        np.testing.assert_allclose(found, p / p.sum(1, keepdims=True), rtol=1e-5)
    backend_.forget_default_device()
    inf.clear_caches()
