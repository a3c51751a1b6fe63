"""What a step of a pipeline records: its timeline is that of the schedule, and what is kept is little."""

import pytest

import infini as inf
from infini import parallel
from infini.parallel import schedules
from infini.parallel.schedules import Durations, Schedule, Task
from infini.sharding import make_mesh
from tests.parallel.pipelined import MICROBATCHES, ROWS, SCHEDULES, arguments, check, layer, squares

PACE = Durations(forward=1.0, backward=2.0)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


@pytest.mark.parametrize(("name", "ranks", "chunks"), SCHEDULES)
def test_the_recorded_timeline_is_the_simulated_one(name, ranks, chunks, rng):
    params, x, t = arguments(rng, (4,) * (chunks + 1))
    durations = Durations([1.0 + c for c in range(chunks)], 2.0, transfer=0.25)
    step = parallel.pipeline(
        [layer] * chunks,
        squares,
        mesh=make_mesh((ranks,), ("pp",)),
        num_microbatches=8,
        schedule=name,
        durations=durations,
    )
    step(params, x, t)
    assert step.record.timeline == schedules.simulate(step.schedule, durations)


@pytest.mark.parametrize(("name", "v"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3)])
def test_recorded_waiting_and_activations_are_those_of_the_literature(name, v, rng):
    p, m, width = 4, 8, 4
    params, x, t = arguments(rng, (width,) * (p * v + 1))
    step = parallel.pipeline(
        [layer] * (p * v),
        lambda y, t: y.sum(),
        mesh=make_mesh((p,), ("pp",)),
        num_microbatches=m,
        schedule=name,
        durations=PACE,
    )
    step(params, x, t)
    found = step.record.timeline
    assert found.bubble_fraction == pytest.approx((p - 1) / (v * m + p - 1))
    held = {
        "gpipe": (m,) * p,
        "1f1b": tuple(p - r for r in range(p)),
        "interleaved": tuple(2 * (p - r - 1) + (v - 1) * p + 1 for r in range(p)),
    }[name]
    assert found.peak_activations == held
    # A layer keeps what goes in and what comes out of the tanh; arrays of float32.
    layer_bytes = 2 * (ROWS // m) * width * 4
    assert step.record.peak_activation_bytes == tuple(n * layer_bytes for n in held)


def test_measured_durations_give_the_recorded_timeline(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    step = parallel.pipeline([layer] * 2, squares, mesh=make_mesh((2,), ("pp",)), num_microbatches=4)
    step(params, x, t)
    found = step.record.timeline
    taken = {span.task: span.end - span.start for row in found.spans for span in row}
    again = schedules.simulate(step.schedule, taken)
    for a, b in zip(found.spans, again.spans, strict=True):
        assert [(s.task, pytest.approx(s.start), pytest.approx(s.end)) for s in a] == [
            (s.task, s.start, s.end) for s in b
        ]


def test_what_depends_on_parameters_alone_is_not_kept(rng):
    """The backward pass needs the transposed weight; it is made again, not kept for every microbatch."""
    params, x, t = arguments(rng, (64, 64, 64))
    step, _ = check([lambda p, x: x @ p["weight"].T] * 2, squares, params, x, t)
    assert (
        step.record.peak_activation_bytes[0] == 2 * (ROWS // MICROBATCHES) * 64 * 4
    )  # x of two microbatches


def test_a_checkpointed_stage_keeps_its_input_only(rng):
    def deep(params, x):
        for _ in range(3):
            x = layer(params, x)
        return x

    params, x, t = arguments(rng, (8, 8, 8))
    step, _ = check([inf.checkpoint(deep)] * 2, squares, params, x, t)
    assert step.record.peak_activation_bytes[0] == 2 * (ROWS // MICROBATCHES) * 8 * 4


def test_a_second_step_compiles_nothing(rng):
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return layer(params, x)

    params, x, t = arguments(rng, (4, 4, 4))
    step = parallel.pipeline([counted] * 2, squares, mesh=make_mesh((2,), ("pp",)), num_microbatches=4)
    for _ in range(3):
        step(params, x, t)
    assert len(traces) == 2
    step(params, x[:8], t[:8])
    assert len(traces) == 4


def test_a_schedule_of_ones_own(rng):
    order = lambda rank: tuple(  # noqa: E731
        Task(kind, rank, i) for half in ((0, 1), (2, 3)) for kind in ("forward", "backward") for i in half
    )
    schedule = Schedule("halves", 2, 4, 1, (order(0), order(1)))
    params, x, t = arguments(rng, (4, 4, 4))
    step, _ = check([layer] * 2, squares, params, x, t, schedule=schedule, num_microbatches=None)
    assert [span.task for span in step.record.timeline.spans[1]] == list(order(1))
