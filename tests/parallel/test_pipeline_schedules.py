"""Schedules of pipelines on simulated time, against the formulas of the literature.

GPipe (arXiv:1811.06965, section 2.3): waiting (p - 1) / (m + p - 1), activations of m microbatches. 1F1B
(PipeDream-flush, arXiv:2006.09503): the same waiting, activations of min(p - r, m). Interleaved
(arXiv:2104.04473, section 2.2): waiting over work (p - 1) / (v m); what rank 0 holds grows by
1 + (p - 1) / (p v) over 1F1B (arXiv:2205.05198, section 4.2.3).
"""

import dataclasses
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import infini as inf
from infini.parallel import schedules
from infini.parallel.schedules import Durations, Schedule, Task

# Of a forward and a backward pass: the formulas do not depend on them.
PACES = [(1, 1), (1, 2), (3, 1), (0.5, 1.25)]
SIZES = [(1, 1), (1, 5), (2, 2), (2, 7), (3, 2), (4, 4), (4, 8), (4, 32), (7, 14), (8, 24)]


def measured(schedule, pace=(1, 2), transfer=0.0):
    return schedules.simulate(schedule, Durations(*pace, transfer=transfer))


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("make", [schedules.gpipe, schedules.one_f_one_b])
def test_waiting_of_gpipe_and_1f1b(make, pace):
    for p, m in SIZES:
        timeline = measured(make(p, m), pace)
        assert timeline.bubble_fraction == pytest.approx((p - 1) / (m + p - 1))
        assert timeline.bubble_overhead == pytest.approx((p - 1) / m)
        assert timeline.makespan == pytest.approx((m + p - 1) * sum(pace))


@pytest.mark.parametrize("pace", PACES)
def test_waiting_of_interleaved(pace):
    for (p, m), v in itertools.product(SIZES, (1, 2, 3)):
        if m % p == 0:
            timeline = measured(schedules.interleaved(p, m, v), pace)
            assert timeline.bubble_overhead == pytest.approx((p - 1) / (v * m))
            assert timeline.bubble_fraction == pytest.approx((p - 1) / (v * m + p - 1))


def test_activations_of_gpipe():
    for p, m in SIZES:
        assert measured(schedules.gpipe(p, m)).peak_activations == (m,) * p


def test_activations_of_1f1b():
    for p, m in SIZES:
        found = measured(schedules.one_f_one_b(p, m)).peak_activations
        assert found == tuple(min(p - r, m) for r in range(p))


def test_activations_of_interleaved():
    for (p, m), v in itertools.product(SIZES, (2, 3)):
        if m % p == 0:
            found = measured(schedules.interleaved(p, m, v)).peak_activations
            assert found == tuple(min(2 * (p - r - 1) + (v - 1) * p + 1, m * v) for r in range(p))
            if m > p:
                stages = found[0] / v  # a chunk is a v-th of a stage
                assert stages == pytest.approx(p * (1 + (p - 1) / (p * v)))


def test_interleaved_with_one_chunk_waits_as_1f1b_does():
    found, plain = measured(schedules.interleaved(4, 8, 1)), measured(schedules.one_f_one_b(4, 8))
    assert found.makespan == plain.makespan


def test_what_is_held_counts_sizes_of_chunks():
    timeline = measured(schedules.one_f_one_b(2, 4))
    assert timeline.peak_held([100.0, 7.0]) == (200.0, 7.0)


def test_uneven_stages_wait_for_the_slowest():
    timeline = schedules.simulate(schedules.gpipe(3, 4), Durations([1, 5, 1], [1, 5, 1]))
    assert timeline.busy == (8, 40, 8)
    assert timeline.makespan == 40 + 2 + 2


def test_messages_take_their_time():
    quick, slow = (measured(schedules.one_f_one_b(4, 4), transfer=t) for t in (0.0, 0.5))
    assert slow.makespan > quick.makespan and slow.busy == quick.busy


def test_durations_of_single_tasks():
    schedule = schedules.one_f_one_b(2, 2)
    times = {task: 1.0 + task.chunk for order in schedule.tasks for task in order}
    found = schedules.simulate(schedule, times)
    assert [[(s.start, s.end) for s in row] for row in found.spans] == [
        [(0, 1), (1, 2), (5, 6), (9, 10)],
        [(1, 3), (3, 5), (5, 7), (7, 9)],
    ]


def test_text_of_1f1b():
    assert measured(schedules.one_f_one_b(3, 4)).text().splitlines() == [
        "rank 0 |F0 F1 F2 .  .  .  .  B0=== F3 B1=== .  B2=== .  B3===",
        "rank 1 |.  F0 F1 .  .  B0=== F2 B1=== F3 B2=== .  B3=== .  .",
        "rank 2 |.  .  F0 B0=== F1 B1=== F2 B2=== F3 B3=== .  .  .  .",
    ]


def test_text_of_interleaved_names_the_chunks():
    lines = measured(schedules.interleaved(2, 2, 2), (1, 1)).text().splitlines()
    assert lines[0] == "rank 0 |F0a F1a F0b F1b .   B0b .   B1b B0a B1a"


def test_text_of_a_given_width():
    lines = measured(schedules.gpipe(4, 16)).text(width=40).splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 40
    assert set("".join(line.partition("|")[2] for line in lines)) == set(" .-=")


def test_the_page_shows_what_is_drawn():
    page = (Path(__file__).resolve().parents[2] / "docs" / "pipelines.md").read_text()
    for schedule in (schedules.one_f_one_b(4, 8), schedules.interleaved(2, 4, 2)):
        assert f"```text\n{measured(schedule).text()}\n```" in page


def test_picture_has_a_box_per_task(tmp_path):
    timeline = measured(schedules.interleaved(2, 4, 2))
    path = timeline.save(tmp_path / "timeline.svg")
    boxes = [e for e in ET.parse(path).iter() if e.tag.endswith("rect") and e.get("stroke") == "#ffffff"]
    assert len(boxes) == sum(map(len, timeline.spans)) == 32
    with pytest.raises(inf.InfiniError, match="SVG or PNG"):
        timeline.save(tmp_path / "timeline.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.gpipe(0, 4), r"num_stages is a positive integer(.|\n)*num_stages=0"),
        (lambda: schedules.one_f_one_b(2, 2.0), "num_microbatches is a positive integer"),
        (lambda: schedules.interleaved(2, 4, True), "num_virtual is a positive integer"),
        (lambda: schedules.interleaved(4, 6, 2), r"whole groups(.|\n)*a multiple of 4"),
        (lambda: schedules.named("1f1b", 2, 4, 2), "one chunk per rank"),
        (lambda: schedules.named("zigzag", 2, 4), "'gpipe', '1f1b' or 'interleaved'"),
        (lambda: Durations(forward=-1.0), "not negative"),
        (lambda: schedules.simulate(schedules.gpipe(2, 1), Durations([1.0], 1.0)), "one number per chunk"),
        (lambda: schedules.simulate(schedules.gpipe(1, 1), {}), "no duration"),
        (lambda: measured(schedules.gpipe(2, 1)).peak_held([1.0]), "one size per chunk"),
    ],
)
def test_numbers_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_whose_ranks_wait_for_each_other_is_refused():
    first, second = schedules.gpipe(2, 1).tasks
    with pytest.raises(inf.InfiniError, match=r"for ever(.|\n)*rank 0: backward of microbatch 0"):
        Schedule("mine", 2, 1, 1, (first[::-1], second))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tasks: tasks[:1], "one order of tasks per rank"),
        (lambda tasks: tasks[::-1], "not its own"),
        (lambda tasks: (tasks[0][:-1], tasks[1]), "every microbatch once"),
        (lambda tasks: ((*tasks[0], tasks[0][0]), tasks[1]), "every microbatch once"),
        (lambda tasks: ((tasks[0][1], tasks[0][0], *tasks[0][2:]), tasks[1]), "ascending order"),
    ],
)
def test_a_schedule_that_is_none(change, message):
    with pytest.raises(inf.InfiniError, match=message):
        Schedule("mine", 2, 2, 1, change(schedules.gpipe(2, 2).tasks))


def test_a_schedule_of_ones_own():
    """Half of the forward passes, then their backward passes, then the other half."""
    order = lambda rank: tuple(  # noqa: E731
        Task(kind, rank, i) for half in ((0, 1), (2, 3)) for kind in ("forward", "backward") for i in half
    )
    schedule = Schedule("halves", 2, 4, 1, (order(0), order(1)))
    assert measured(schedule).peak_activations == (2, 2)
    assert dataclasses.replace(schedule, name="other") != schedule
