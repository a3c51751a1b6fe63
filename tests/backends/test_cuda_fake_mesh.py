"""Programs over several GPUs, on stand-ins for CuPy and NCCL that do nothing before somebody waits for it:
what a stream was not told to wait for is not there, and shows.

Nothing here has touched a GPU; `bench/gpu.sh` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
import infini.numpy as inp
from infini import lax
from infini.backends import cuda
from infini.backends.accelerator import executable
from infini.backends.cuda import driver as driver_
from infini.backends.cuda.nccl import Nccl
from infini.backends.spmd import devices as spmd_devices
from infini.compiler import partition
from infini.core import backend as backend_, comm as comm_, dtypes, errors, events, execute
from infini.core.backend import CompileOptions, Device
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import collectives as counting
from tests.backends import fake_nccl
from tests.backends.fake_cupy import Machine

NUM_DEVICES = 4
X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
W = np.cos(np.arange(64, dtype=np.float32)).reshape(8, 8)


class Gpus:
    """Four GPUs that are not there.

    Args:
        monkeypatch: pytest's.
        has_nccl: whether CuPy has NCCL.
    """

    def __init__(self, monkeypatch: Any, *, has_nccl: bool = True) -> None:
        self.machine = Machine()
        self.machine.capabilities = ("90",) * NUM_DEVICES
        self.machine.is_lazy = True
        self.nccl = fake_nccl.install(self.machine) if has_nccl else None
        self.machine.install(monkeypatch)
        self.backend = cuda.CudaBackend()
        real = backend_.get
        monkeypatch.setattr(backend_, "get", lambda name: self.backend if name == "cuda" else real(name))

    def calls(self, *names: str) -> list[tuple[Any, ...]]:
        """Calls of NCCL, those of some names only."""
        found = [event for event in self.machine.events if event[0] == "nccl"]
        return [event for event in found if not names or event[1] in names]


@pytest.fixture(autouse=True)
def on_gpus() -> Iterator[None]:
    execute.clear_caches()
    backend_.forget_default_device()
    with inf.config(device="cuda"):
        yield
    execute.clear_caches()


@pytest.fixture
def gpus(monkeypatch: Any) -> Iterator[Gpus]:
    found = Gpus(monkeypatch)
    yield found
    found.machine.drop()


def in_lockstep(function: Callable[[], Any]) -> Any:
    """What devices on the host give."""
    with inf.config(device="reference", cpu_devices=NUM_DEVICES):
        found = function()
        return [np.asarray(leaf) for leaf in inf.tree.leaves(found)]


def assert_as_in_lockstep(function: Callable[[], Any], *, exact: bool = False) -> None:
    wanted = in_lockstep(function)
    for got, want in zip(inf.tree.leaves(function()), wanted, strict=True):
        if exact:
            assert np.asarray(got).dtype == want.dtype
            np.testing.assert_array_equal(np.asarray(got), want)
        else:
            np.testing.assert_allclose(np.asarray(got), want, rtol=5e-5, atol=1e-5)


# --- whole programs --------------------------------------------------------------------------------


def scanned(x: Any, w: Any) -> Any:
    def step(carry: Any, row: Any) -> Any:
        carry = inp.tanh(carry @ w + row)
        return carry, carry * row

    return lax.scan(step, x[0], x[:3])


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "chain of dots": lambda x, w: inp.tanh(x @ w) @ w.T @ x,
    "softmax": lambda x, w: inp.exp(x - x.max(-1, keepdims=True)) / inp.exp(w).sum(0),
    "iota": lambda x, w: x + inp.arange(64, dtype=inp.float32).reshape(8, 8) @ w,
    "scan": scanned,
    "while": lambda x, w: lax.while_loop(
        lambda c: (c[0] < 2) & (c[1].sum() < 1e6), lambda c: (c[0] + 1, c[1] @ w), (0, x)
    ),
    "cond": lambda x, w: lax.cond(x.sum() > w.sum(), lambda a: a @ w, lambda a: inp.exp(a), x),
}
PLACES = [(P("a", "b"), P("b")), (P(None, ("a", "b")), P(("b", "a")))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sharded_equals_unsharded(name: str, gpus: Gpus) -> None:
    check_sharded(name)
    assert gpus.calls()


@pytest.mark.parametrize("name", ["chain of dots", "scan"])
def test_sharded_equals_unsharded_by_way_of_the_host(name: str, monkeypatch: Any) -> None:
    found = Gpus(monkeypatch, has_nccl=False)
    check_sharded(name)
    found.machine.drop()


def check_sharded(name: str) -> None:
    wanted = in_lockstep(lambda: inf.jit(FUNCTIONS[name])(X, W))
    mesh = make_mesh((2, 2), ("a", "b"))
    for x_spec, w_spec in PLACES:
        x, w = inf.device_put(X, NamedSharding(mesh, x_spec)), inf.device_put(W, NamedSharding(mesh, w_spec))
        found = inf.jit(FUNCTIONS[name])(x, w)
        for got, want in zip(inf.tree.leaves(found), wanted, strict=True):
            np.testing.assert_allclose(np.asarray(got), want, rtol=5e-5, atol=1e-5)


def test_programs_that_read_nothing_run_on_every_device(gpus: Gpus) -> None:
    mesh = make_mesh((NUM_DEVICES,), ("a",))
    made = inf.jit(lambda: inp.arange(8.0) * 2, out_shardings=NamedSharding(mesh, P("a")))()
    assert [shard.data.device for shard in made.addressable_shards] == list(mesh.flat_devices)
    assert made.tolist() == [2.0 * i for i in range(8)]


# --- each collective, every dtype ------------------------------------------------------------------

# Added up by NCCL (also as bytes, and as pairs), and in the order of the devices.
REDUCED = [dtypes.float32, dtypes.bfloat16, dtypes.int16, dtypes.int32, dtypes.bool_, dtypes.complex64]
MOVED = [dtypes.float32, dtypes.bfloat16, dtypes.bool_]


def collect(dtype: np.dtype, function: Callable[[Any], Any], shape: tuple[int, ...] = (4, 3)) -> Any:
    """Results of a function of shares of an array on the devices of both axes."""
    rng = np.random.default_rng(0)
    host = rng.integers(0, 100, (NUM_DEVICES * shape[0], *shape[1:]))
    x = (
        (host / 7).astype(dtype)
        if dtype in dtypes.FLOATS
        else (host % (2 if dtype == dtypes.bool_ else 100)).astype(dtype)
    )
    mesh = make_mesh((2, 2), ("a", "b"))
    mapped = inf.shard_map(
        lambda v: inf.tree.map(lambda y: y[None], function(v)),
        mesh=mesh,
        in_specs=P(("a", "b")),
        out_specs=P(("a", "b")),
        check_vma=False,
    )
    return inf.jit(mapped)(x)


@pytest.mark.parametrize("dtype", REDUCED, ids=str)
def test_reductions_of_every_dtype(dtype: np.dtype, gpus: Gpus) -> None:
    def reduced(x: Any) -> Any:
        found = [lax.psum(x, "a"), lax.psum(x[:3, :1], ("a", "b")), lax.psum_scatter(x, "b", tiled=True)]
        return found if dtype == dtypes.complex64 else [*found, lax.pmax(x, "b"), lax.pmin(x[0], ("b", "a"))]

    assert_as_in_lockstep(lambda: collect(dtype, reduced), exact=dtype != dtypes.float32)


@pytest.mark.parametrize("dtype", MOVED, ids=str)
def test_moves_of_every_dtype(dtype: np.dtype, gpus: Gpus) -> None:
    def moved(x: Any) -> Any:
        return [
            lax.all_gather(x, "a"),
            lax.all_gather(x, ("a", "b"), axis=1, tiled=True),
            lax.all_to_all(x, "b", 0, 1, tiled=True),
            lax.all_to_all(x, ("a", "b"), 0, 0, tiled=True),
            lax.ppermute(x, "a", [(0, 1)]),
            lax.ppermute(x, ("a", "b"), [(0, 1), (1, 2), (2, 3), (3, 0)]),
        ]

    assert_as_in_lockstep(lambda: collect(dtype, moved), exact=True)


def test_blocks_along_a_later_dimension(gpus: Gpus) -> None:
    def moved(x: Any) -> Any:
        return [
            lax.psum_scatter(x, "a", scatter_dimension=1, tiled=True),
            lax.all_gather(x, "b", axis=2, tiled=True),
            lax.all_to_all(x, "a", 2, 1, tiled=True),
            lax.axis_index(("a", "b")),
        ]

    assert_as_in_lockstep(lambda: collect(dtypes.int32, moved, (3, 4, 6)), exact=True)


def test_small_floats_are_added_up_in_float32(gpus: Gpus) -> None:
    def summed() -> Any:
        x = np.array([256, 1, 1, 1], np.float32).astype(dtypes.bfloat16)
        mesh = make_mesh((NUM_DEVICES,), ("a",))
        add = inf.shard_map(lambda v: lax.psum(v, "a"), mesh=mesh, in_specs=P("a"), out_specs=P())
        return inf.jit(add)(x)

    assert float(summed()[0]) == 260.0, "256 + 1 is 256 in bfloat16"
    assert gpus.calls("allReduce") == []


def test_a_maximum_keeps_what_is_not_a_number(gpus: Gpus) -> None:
    mesh = make_mesh((NUM_DEVICES,), ("a",))
    most = inf.shard_map(lambda v: lax.pmax(v, "a"), mesh=mesh, in_specs=P("a"), out_specs=P())
    assert np.isnan(np.asarray(inf.jit(most)(np.array([1, np.nan, 3, 2], np.float32)))).all()


def test_deterministic_sums_have_the_bits_of_devices_in_one_process(gpus: Gpus) -> None:
    def summed() -> Any:
        mesh = make_mesh((NUM_DEVICES,), ("a",))
        x = inf.device_put(
            np.sin(np.arange(52, dtype=np.float32)).reshape(4, 13), NamedSharding(mesh, P("a"))
        )
        program = inf.make_jaxpr(lambda v: inp.sin(v).sum(0))(np.zeros((4, 13), np.float32))
        return execute.Runner(program, CompileOptions(deterministic=True))([x])

    assert_as_in_lockstep(summed, exact=True)
    assert gpus.calls("allReduce") == []


def test_arrays_without_elements_are_not_sent(gpus: Gpus) -> None:
    assert_as_in_lockstep(
        lambda: collect(
            dtypes.float32,
            lambda x: [lax.psum(x[:0], "a"), lax.all_gather(x[:0], "b"), lax.ppermute(x[:0], "a", [(0, 1)])],
        ),
        exact=True,
    )
    assert gpus.calls() == []


def test_devices_that_take_different_branches_exchange_among_themselves(gpus: Gpus) -> None:
    def branch(x: Any) -> Any:
        return lax.cond(
            lax.axis_index("a") > 0, lambda v: lax.psum(v, "b"), lambda v: lax.ppermute(v, "b", [(0, 1)]), x
        )

    assert_as_in_lockstep(lambda: collect(dtypes.int32, lambda x: [branch(x)]), exact=True)
    with pytest.raises(errors.CollectiveError, match="different branches meet"):
        np.asarray(
            collect(
                dtypes.int32,
                lambda x: [lax.cond(lax.axis_index("a") > 0, lambda v: lax.psum(v, "a"), lambda v: v, x)],
            )[0]
        )


# --- groups ------------------------------------------------------------------------------------------


def test_groups_are_made_once_and_are_those_of_the_axes(gpus: Gpus) -> None:
    for _ in range(2):
        for axes in ("a", "b", ("a", "b")):
            collect(dtypes.float32, lambda x, axes=axes: [lax.psum(x, axes)])  # type: ignore[misc]
    assert gpus.nccl is not None
    assert sorted(gpus.nccl.joined) == [(0, 1), (0, 1, 2, 3), (0, 2), (1, 3), (2, 3)]


def test_an_identifier_keeps_its_bytes(gpus: Gpus) -> None:
    library, reason = Nccl.load(gpus.backend._probe[0].cupy)
    assert library is not None and reason is None
    id_ = library.new_id()
    assert len(id_) == 128 and max(id_) < 256
    assert library.join(b"\xff" * 128, 1, 0, 2).device == 2
    with pytest.raises(errors.ValueMismatchError, match=r"128 bytes"):
        library.join(id_[:5], 1, 0, 0)


def test_old_versions_of_nccl_are_refused(gpus: Gpus, monkeypatch: Any) -> None:
    assert gpus.nccl is not None
    module = gpus.machine.nccl
    module.get_version = lambda: 2604
    found, reason = Nccl.load(gpus.backend._probe[0].cupy)
    assert found is None and "2604" in str(reason)


# --- training steps ----------------------------------------------------------------------------------

BATCH, WIDTH = 8, 8


def step(w1: Any, w2: Any, x: Any, y: Any) -> Any:
    def loss(params: Any) -> Any:
        return ((inp.tanh(x @ params[0]) @ params[1] - y) ** 2).mean()

    value, (g1, g2) = inf.value_and_grad(loss)((w1, w2))
    return value, w1 - 0.1 * g1, w2 - 0.1 * g2


RECIPES = {
    "data": (P(), P(), P("x"), P("x")),
    "tensor": (P(None, "x"), P("x"), P(), P()),
    "zero3": (P("x"), P("x"), P("x"), P("x")),
}


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = ((WIDTH, WIDTH), (WIDTH, 4), (BATCH, WIDTH), (BATCH, 4))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("has_nccl", [True, False], ids=["nccl", "host"])
def test_a_training_step_equals_that_of_one_device(has_nccl: bool, recipe: str, monkeypatch: Any) -> None:
    found_gpus = Gpus(monkeypatch, has_nccl=has_nccl)
    w1, w2, x, y = arrays()
    with inf.config(device="reference"):
        wanted = []
        for _ in range(3):
            value, w1, w2 = inf.jit(step)(w1, w2, x, y)
            wanted.append(float(value))
    specs = RECIPES[recipe]
    mesh = make_mesh((NUM_DEVICES,), ("x",))
    placed = [inf.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays(), specs, strict=True)]
    runner = inf.jit(
        step,
        out_shardings=(None, NamedSharding(mesh, specs[0]), NamedSharding(mesh, specs[1])),
        donate_argnums=(0, 1),
    )
    found = []
    for _ in range(3):
        value, *placed[:2] = runner(*placed)
        found.append(float(value))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(placed[0]), np.asarray(w1), rtol=1e-4, atol=1e-6)
    assert bool(found_gpus.calls()) == has_nccl
    found_gpus.machine.drop()


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_exchanged_is_what_was_predicted(recipe: str, gpus: Gpus) -> None:
    specs, mesh = RECIPES[recipe], make_mesh((NUM_DEVICES,), ("x",))
    placed = [inf.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays(), specs, strict=True)]
    program = inf.make_jaxpr(step)(*arrays())
    with counting.count_collectives() as counts:
        execute.Runner(program, CompileOptions(mesh=mesh.abstract))(placed)
    options = CompileOptions(mesh=mesh.abstract, in_specs=tuple(tuple(spec) for spec in specs))
    predicted = partition.for_options(program, options)
    assert counts == counting.predicted(predicted) and counts
    # Float32 is added up by the library: each array of a collective is one call on every device.
    made = [e for e in predicted.program.equations if e.op.name in {"psum", "all_gather", "psum_scatter"}]
    assert len(gpus.calls()) == NUM_DEVICES * sum(len(equation.inputs) for equation in made)


# --- order and overlap -------------------------------------------------------------------------------


def layers(ws: Any, x: Any) -> Any:
    """Gradients of four layers, each of which can be added up while those before it are computed."""

    def loss(params: Any) -> Any:
        y = x
        for w in params:
            y = inp.tanh(y @ w)
        return (y * y).sum()

    return inf.grad(loss)(ws)


def run_layers() -> tuple[Any, Any]:
    """Results with buckets of one byte, and the same of one device."""
    ws = [W + i for i in range(4)]
    mesh = make_mesh((NUM_DEVICES,), ("x",))
    program = inf.make_jaxpr(layers)(ws, X)
    options = CompileOptions(mesh=mesh.abstract, collectives=inf.sharding.Collectives(1, 1, 1))
    placed = [inf.device_put(w, NamedSharding(mesh, P())) for w in ws]
    found = execute.Runner(program, options)([*placed, inf.device_put(X, NamedSharding(mesh, P("x")))])
    with inf.config(device="reference"):
        wanted = [np.asarray(w) for w in inf.jit(layers)(ws, X)]
    return [np.asarray(each) for each in found], wanted


def test_exchanges_are_ordered_with_what_makes_and_what_reads_them(gpus: Gpus) -> None:
    found, wanted = run_layers()
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    log = gpus.machine.events
    assert len(gpus.calls("allReduce")) == 4 * NUM_DEVICES
    for number in range(NUM_DEVICES):
        plain = gpus.backend.driver(number).stream.ptr
        beside = gpus.backend._aside.driver(number).stream.ptr
        order = [
            {("wait", beside, plain): "after", ("wait", plain, beside): "before"}.get(event[:3], event[0])
            for event in log
            if event[:3] in {("wait", beside, plain), ("wait", plain, beside)}
            or (event[0] == "nccl" and event[-1] == beside)
        ]
        # Each waits for what was computed before; all are awaited by what is computed later.
        assert [o for o in order if o != "before"] == ["after", "nccl"] * 4
        assert order.count("before") == 4 and order[-1] == "before"


def test_exchanges_go_on_beside_what_is_computed(gpus: Gpus) -> None:
    run_layers()
    log = gpus.machine.events
    plain, beside = gpus.backend.driver(0).stream.ptr, gpus.backend._aside.driver(0).stream.ptr
    first = next(i for i, event in enumerate(log) if event[0] == "nccl" and event[-1] == beside)
    awaited = next(i for i, event in enumerate(log) if event[:3] == ("wait", plain, beside))
    assert any(event[0] in {"launch", "gemm"} for event in log[first:awaited])


@pytest.mark.parametrize("is_exchange", [True, False], ids=["exchange", "consumer"])
def test_a_stream_that_does_not_wait_is_noticed(is_exchange: bool, gpus: Gpus, monkeypatch: Any) -> None:
    """The stand-in shows what a missing event would break; or the tests above would prove nothing."""
    real = driver_.Driver.wait

    def wait(self: Any, event: Any) -> None:
        if (self is gpus.backend._aside.driver(self.number)) != is_exchange:
            real(self, event)

    monkeypatch.setattr(driver_.Driver, "wait", wait)
    found, wanted = run_layers()
    assert not all(np.allclose(got, want, rtol=1e-4) for got, want in zip(found, wanted, strict=True))


def test_pieces_are_replayed_and_exchanges_stand_between_them(gpus: Gpus, monkeypatch: Any) -> None:
    monkeypatch.setattr(executable, "MIN_TASKS", 1)
    wanted = None
    mesh = make_mesh((NUM_DEVICES,), ("x",))
    w, x = (
        inf.device_put(W, NamedSharding(mesh, P("x"))),
        inf.device_put(X, NamedSharding(mesh, P(None, "x"))),
    )
    run = inf.jit(lambda x, w: inp.tanh(inp.tanh(x @ w) @ w))
    wanted = np.tanh(np.tanh(X @ W) @ W)
    for _ in range(4):
        np.testing.assert_allclose(np.asarray(run(x, w)), wanted, rtol=1e-4, atol=1e-5)
    assert gpus.machine.count("replay") >= NUM_DEVICES
    assert gpus.calls()  # the stand-in refuses calls inside a capture


def test_rows_of_loops_stay_on_their_devices(gpus: Gpus) -> None:
    mesh = make_mesh((NUM_DEVICES,), ("x",))
    x, w = inf.device_put(X, NamedSharding(mesh, P())), inf.device_put(W, NamedSharding(mesh, P("x")))
    run = inf.jit(scanned)
    run(x, w)
    gpus.machine.events.clear()
    _, ys = run(x, w)
    to_host = [event for event in gpus.machine.events if event[0] == "copy" and event[1] == 2]
    assert to_host == [] and gpus.calls()
    wanted = in_lockstep(lambda: inf.jit(scanned)(X, W))
    np.testing.assert_allclose(np.asarray(ys), wanted[1], rtol=5e-5, atol=1e-5)


# --- failures ----------------------------------------------------------------------------------------


def add_up() -> Any:
    mesh = make_mesh((NUM_DEVICES,), ("x",))
    return inf.jit(lambda x: (x @ x.T).sum())(inf.device_put(X, NamedSharding(mesh, P(None, "x"))))


def test_a_failing_exchange_names_the_operation_and_the_line(gpus: Gpus) -> None:
    assert gpus.nccl is not None
    gpus.nccl.fails["allReduce"] = "invalid argument"
    with pytest.raises(errors.CollectiveError, match=r"psum over x failed: ncclAllReduce failed") as caught:
        add_up()
    assert "invalid argument" in str(caught.value) and "NCCL_DEBUG" in str(caught.value)
    assert caught.value.where is not None and caught.value.where.file.endswith("test_cuda_fake_mesh.py")


def test_after_a_failure_all_groups_are_left_and_made_anew(gpus: Gpus) -> None:
    assert gpus.nccl is not None
    gpus.nccl.fails["allReduce"] = "invalid argument"
    with pytest.raises(errors.CollectiveError):
        add_up()
    assert gpus.nccl.num_aborted == NUM_DEVICES and gpus.nccl.depth == 0
    gpus.nccl.fails.clear()
    gpus.machine.drop()
    np.testing.assert_allclose(float(add_up()), (X @ X.T).sum(), rtol=1e-4)
    assert len(gpus.nccl.joined) == 2


def test_what_breaks_on_the_way_is_raised_by_the_next_exchange(gpus: Gpus) -> None:
    add_up()
    assert gpus.nccl is not None
    gpus.nccl.broken = "remote process exited"
    with pytest.raises(errors.CollectiveError, match=r"(?s)psum over x failed.*remote process exited"):
        add_up()


def test_a_group_that_cannot_be_made_is_an_error_of_the_exchange(gpus: Gpus) -> None:
    assert gpus.nccl is not None
    gpus.nccl.fails["ncclCommInitAll"] = "unhandled system error"
    with pytest.raises(
        errors.CollectiveError, match=r"(?s)psum over x.*ncclCommInitAll of the devices \[0, 1"
    ):
        add_up()


def test_without_nccl_exchanges_go_through_the_host_and_say_so(monkeypatch: Any) -> None:
    found = Gpus(monkeypatch, has_nccl=False)
    told: list[events.Event] = []
    with events.listen(told.append):
        assert float(add_up()) == pytest.approx(float((X @ X.T).sum()), rel=1e-4)
        add_up()
    assert [event.message for event in told if event.code == "exchanges-by-host"] == [
        "exchanges of cuda:0, cuda:1, cuda:2, cuda:3 go through the host: CuPy finds no NCCL; pip install "
        "nvidia-nccl-cu12 or nvidia-nccl-cu13, by the version of CUDA"
    ]
    found.machine.drop()


# --- processes ---------------------------------------------------------------------------------------


def test_every_process_of_a_job_has_one_gpu(gpus: Gpus, monkeypatch: Any) -> None:
    job = comm_.Processes(2, 4, None, host_index=1)
    monkeypatch.setattr(comm_, "processes", lambda: job)
    assert [(d.id, d.process_index) for d in gpus.backend.devices()] == [(i, i) for i in range(4)]
    mine = gpus.backend.devices()[2]
    assert gpus.backend.owns(mine) and not gpus.backend.owns(gpus.backend.devices()[1])
    assert gpus.backend.number(mine) == 1, "the second process of its machine"
    assert gpus.backend.put(X, mine).device == 1
    assert gpus.backend.dlpack_number(mine) == 1 and gpus.backend.dlpack_device(1) == mine


@pytest.mark.parametrize(("num_here", "number"), [(8, 5), (6, 5), (1, 0)])
def test_a_process_takes_the_gpu_of_its_number_or_the_one_it_is_shown(
    num_here: int, number: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(comm_, "processes", lambda: comm_.Processes(13, 16, None, host_index=5))
    assert spmd_devices.number_here(Device("cuda", 13, 13), num_here) == number
