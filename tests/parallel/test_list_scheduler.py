"""The order of steps: gathers of parameters late, reductions early, and every equation once."""

import weakref

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.backends.spmd import collectives, schedule as s, thread, walk
from infini.backends.spmd.lockstep import LockstepComm
from infini.compiler import partition
from infini.core import backend
from infini.core.backend import CompileOptions
from infini.core.mesh import AbstractMesh
from infini.sharding import Collectives, NamedSharding, P, make_mesh

WIDTH, LAYERS = 8, 5
LAYER_BYTES = WIDTH * WIDTH * 4
ONE_LAYER = s.Limits(first_bucket_bytes=1, bucket_bytes=1, window_bytes=LAYER_BYTES)
MESH = AbstractMesh(("x",), (2,))


def loss(weights, x):
    for w in weights:
        x = inp.tanh(x @ w)
    return (x * x).mean()


def step(weights, x):
    """Descent. With split weights and a split batch it is ZeRO-3."""
    gradients = inf.grad(loss)(weights, x)
    return [w - 0.1 * inp.tanh(g) for w, g in zip(weights, gradients, strict=True)]


def weights(layers=LAYERS):
    return [np.cos(np.arange(WIDTH * WIDTH) + i).reshape(WIDTH, WIDTH) / 4 for i in range(layers)]


def arguments(layers=LAYERS):
    x = np.sin(np.arange(64 * WIDTH)).reshape(64, WIDTH)  # larger than a weight: weights travel
    return [w.astype(np.float32) for w in weights(layers)], x.astype(np.float32)


def split(f, given, specs):
    return partition.partition(inf.make_jaxpr(f)(*given), MESH, specs).program


def zero3(layers=LAYERS):
    return split(step, arguments(layers), [("x",)] * (layers + 1))


def data_parallel(layers=LAYERS):
    return split(step, arguments(layers), [()] * layers + [("x",)])


def peak_gathered_bytes(schedule):
    """Bytes of gathered arrays from when their gather begins until nothing reads them."""
    live, peak = {}, 0
    for at, dead in zip(schedule.steps, schedule.dead, strict=True):
        if isinstance(at, s.Start | s.Exchange) and at.equation.op.name == "all_gather":
            live |= {v: v.type.nbytes for v in at.equation.outputs}
        peak = max(peak, sum(live.values()))
        for v in dead:
            live.pop(v, None)
    return peak


def test_zero3_holds_at_most_two_gathered_layers():
    schedule = s.cut(zero3(), limits=ONE_LAYER)
    assert s.count(schedule)["all_gather"] == 2 * LAYERS - 1  # the first needs none backwards
    assert peak_gathered_bytes(schedule) == 2 * LAYER_BYTES


def test_a_wider_window_gathers_more_at_once():
    wide = s.Limits(1, 1, window_bytes=2 * LAYER_BYTES)
    assert peak_gathered_bytes(s.cut(zero3(), limits=wide)) == 4 * LAYER_BYTES


@pytest.mark.parametrize(("room", "gathers"), [(0, 15), (1, 14), (2, 13), (3, 12), (4, 11), (6, 9), (8, 8)])
def test_zero3_that_keeps_and_joins_gathers_holds_two_windows_and_what_is_kept(room, gathers):
    layers = 8
    options = CompileOptions(
        mesh=MESH,
        in_specs=(("x",),) * (layers + 1),
        collectives=Collectives(window_bytes=room * LAYER_BYTES),
    )
    program = partition.for_options(inf.make_jaxpr(step)(*arguments(layers)), options).program
    made = [e for e in program.equations if e.op.name == "all_gather"]
    assert sum(len(e.inputs) for e in made) == gathers
    limits = s.Limits(window_bytes=room * LAYER_BYTES)
    assert peak_gathered_bytes(s.cut(program, limits=limits)) <= max(2, 3 * room) * LAYER_BYTES


def test_the_walk_holds_at_most_two_gathered_layers(monkeypatch):
    live, peaks = [0], []
    real = walk.Walk.exchange

    def exchange(self, equation, env):
        make = real(self, equation, env)
        if equation.op.name != "all_gather":
            return make

        def counted():
            found = make()
            for row in (row for rows in found for row in rows):
                live[0] += row.nbytes
                weakref.finalize(row, lambda n=row.nbytes: live.__setitem__(0, live[0] - n))
            peaks.append(live[0])
            return found

        return counted

    monkeypatch.setattr(walk.Walk, "exchange", exchange)
    with inf.config(device="cpu", cpu_devices=2):
        mesh = make_mesh((2,), ("x",))
        given = inf.device_put(arguments(), NamedSharding(mesh, P("x")))
        found = inf.shard(step, mesh=mesh, collectives=Collectives(1, 1, LAYER_BYTES))(*given)
        expected = inf.jit(step)(*arguments())
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    assert len(peaks) == 2 * LAYERS - 2  # the first needs none backwards, and the last is still there
    assert max(peaks) == 2 * 2 * LAYER_BYTES  # on each of two devices
    assert live[0] == 0


def test_a_schedule_as_text(golden):
    golden("schedules/zero3.txt", str(s.cut(zero3(3), range(3), ONE_LAYER)))
    golden("schedules/data_parallel.txt", str(s.cut(data_parallel(3), range(3), ONE_LAYER)))


def test_reductions_begin_when_their_operand_is_there():
    schedule = s.cut(data_parallel(), limits=ONE_LAYER)
    kinds = [type(at).__name__ for at in schedule.steps]
    # Each gradient but the first layer's crosses the mesh while the next one is computed.
    beside = LAYERS - 1
    assert kinds == ["Piece", *["Start", "Piece"] * beside, "Exchange", *["Wait"] * beside, "Piece"]


def test_small_reductions_share_a_bucket():
    assert s.count(s.cut(data_parallel())) == {"pieces": 2, "psum": LAYERS}
    buckets = s.Limits(first_bucket_bytes=LAYER_BYTES, bucket_bytes=2 * LAYER_BYTES)
    assert (
        s.count(s.cut(data_parallel(), limits=buckets))["pieces"] == 4
    )  # 1 + 2 + 2 gradients, and the steps


def test_what_is_only_decayed_waits_for_the_step(mesh):
    def f(m, g):
        return 0.9 * m + lax.psum(g * g, "x")

    program = split(
        inf.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False),
        [np.ones(8, np.float32)] * 2,
        [("x",), ("x",)],
    )
    first, _, last = s.cut(program).steps
    assert [e.op.name for e in first.program.equations] == ["mul"]
    assert [e.op.name for e in last.program.equations] == ["mul", "add"]


def test_a_gather_begins_before_the_piece_that_makes_room_for_it():
    names = [
        f"{type(at).__name__} {at.equation.op.name}" if not isinstance(at, s.Piece) else "Piece"
        for at in s.cut(zero3(3), limits=ONE_LAYER).steps
    ]
    assert names[:7] == [
        "Exchange all_gather", "Start all_gather", "Piece", "Wait all_gather", "Start all_gather", "Piece",
        "Wait all_gather",
    ]  # fmt: skip


def random_program(rng):
    """Collectives and products in any order, over and over."""

    def f(*operands):
        found = list(operands)
        for _ in range(12):
            a, b = (found[i] for i in rng.integers(0, len(found), 2))
            kind = rng.integers(0, 7)
            if kind == 0:
                found.append(lax.psum(a, "x"))
            elif kind == 1:
                found.append(lax.all_gather(a, "x", tiled=True)[:4])
            elif kind == 2:
                found.append(lax.psum_scatter(inp.concatenate([a, b]), "x", tiled=True))
            elif kind == 3:
                found.append(a * lax.axis_index("x"))
            elif kind == 4:
                found.append(lax.scan(lambda c, _, b=b: (c + lax.pmax(b, "x"), c), a, None, length=2)[1][1])
            else:
                found.append(inp.sin(a) * b if kind == 5 else a * 0.5)
        return tuple(found[i] for i in rng.integers(0, len(found), 3))

    return f


@pytest.fixture
def mesh():
    with inf.config(device="reference", cpu_devices=2):
        yield make_mesh((2,), ("x",))


@pytest.mark.parametrize("number", range(12))
def test_every_equation_runs_once_after_what_it_reads(number, mesh):
    mapped = inf.shard_map(
        random_program(np.random.default_rng(number)), mesh=mesh, in_specs=P("x"), out_specs=P("x"),
        check_vma=False,
    )  # fmt: skip
    given = [np.linspace(-1, 1, 8, dtype=np.float32) + i for i in range(3)]
    program = split(mapped, given, [("x",)] * 3)
    expected = None
    for limits in (s.DEFAULT, s.Limits(1, 1, 1), s.Limits(16, 32, 32)):
        schedule = s.cut(program, (0,), limits)
        there, begun, done = {*program.params, *(v for v, _ in program.consts)}, [], []
        for at in schedule.steps:
            assert there.issuperset(at.inputs)
            if isinstance(at, s.Start):
                begun.append(at.equation)
                continue
            if isinstance(at, s.Wait):
                assert at.equation is begun.pop(0)  # the order in which they end
            done += at.program.equations if isinstance(at, s.Piece) else [at.equation]
            there.update(at.outputs)
        assert not begun and there.issuperset(program.results)
        assert sorted(map(id, done)) == sorted(map(id, program.equations))
        results = _run(schedule, given)
        expected = expected or results
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def _run(schedule, given):
    reference, pieces = backend.get("reference"), {}

    def compile(part):
        for at in part.steps:
            if isinstance(at, s.Piece):
                pieces[id(at)] = reference.compile(at.program, CompileOptions())
            for body in at.bodies if isinstance(at, s.Structured) else ():
                compile(body)

    compile(schedule)
    with inf.config(cpu_devices=2):
        devices = reference.devices()
    found = walk.Walk(
        reference, pieces, collectives.Mesh(MESH, (0, 1)), LockstepComm(2),
        exchanger=thread.IMMEDIATE, devices=devices, constants={},
    ).run(schedule, [[x[:4], x[4:]] for x in given])  # fmt: skip
    return [np.stack(column) for column in found]


def test_the_schedule_is_a_function_of_the_program():
    assert str(s.cut(zero3(), limits=ONE_LAYER)) == str(s.cut(zero3(), limits=ONE_LAYER))
