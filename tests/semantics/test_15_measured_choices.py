"""Design 4a.15: measured choices are made by rank 0 in a job of several processes, broadcast, and part of the
program's key.
"""

import textwrap
import threading

import pytest

import infini
from infini.compiler import choices, disk_cache
from infini.compiler.choices import Choice
from infini.core import config, errors, events, execute, trace
from infini.core.backend import CompileOptions, Device
from infini.core.dtypes import float32
from infini.core.ir import ArrayType
from infini.core.mesh import AbstractMesh
from infini.lax import contraction
from tests.parallel import jobs
from tests.semantics.clocked import ClockedBackend

CHOICE = Choice("dot mk,kn->mn", ("library", "large tiles", "small tiles"), ("a device", "driver 1"))


@pytest.fixture(autouse=True)
def _clean(tmp_path):
    """A cache folder of its own, and nothing decided."""
    choices.forget()
    with config.config(cache_dir=str(tmp_path), no_cache=False, tune="on"):
        yield
    choices.forget()


class Clock:
    """Times of candidates: numbers that are given one after another, the last one for ever, or an error."""

    def __init__(self, **seconds):
        self.seconds = {name.replace("_", " "): found for name, found in seconds.items()}
        self.prepared, self.runs = [], []

    def prepare(self, name):
        self.prepared.append(name)
        numbers = self.seconds[name]
        numbers = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]

        def run():
            self.runs.append(name)
            number = numbers.pop(0) if len(numbers) > 1 else numbers[0]
            if isinstance(number, Exception):
                raise number
            return number

        return run


# --- the measurement ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "winner"),
    [
        ((3.0, 1.0, 2.0), "large tiles"),
        ((1.0, 1.0, 1.0), "library"),
        ((2.0, [9.0, 9.0, 1.0], [1.0, 1.0, 3.0]), "large tiles"),  # the first runs only warm up
        (([2.0] * 6 + [99.0] * 3 + [2.0], 3.0, 3.0), "library"),  # the median, not the mean
        ((RuntimeError("no memory"), 2.0, 1.0), "small tiles"),
        (([1.0, 1.0, 1.0, RuntimeError("late")], 2.0, 3.0), "large tiles"),
    ],
)
def test_the_fastest_candidate_wins(seconds, winner):
    clock = Clock(**dict(zip(("library", "large_tiles", "small_tiles"), seconds, strict=True)))
    found = choices.decide(CHOICE, clock.prepare)
    assert (found.winner, found.source) == (winner, "measured")


def test_candidates_are_measured_in_turns():
    clock = Clock(library=1.0, large_tiles=2.0, small_tiles=RuntimeError("out"))
    choices.decide(CHOICE, clock.prepare)
    assert clock.prepared == list(CHOICE.candidates)
    assert clock.runs[-2 * choices.ROUNDS :] == ["library", "large tiles"] * choices.ROUNDS


def test_a_question_is_measured_once():
    clock = Clock(library=3.0, large_tiles=1.0, small_tiles=2.0)
    decisions = {choices.decide(CHOICE, clock.prepare) for _ in range(3)}
    assert len(decisions) == 1 and len(clock.prepared) == 3


def test_threads_that_ask_at_once_get_one_answer():
    clock = Clock(library=3.0, large_tiles=1.0, small_tiles=2.0)
    gate, found = threading.Barrier(8), []
    settings = {"cache_dir": config.get("cache_dir"), "no_cache": False}

    def ask():
        gate.wait()
        with config.config(**settings):
            found.append(choices.decide(CHOICE, clock.prepare))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and len(clock.prepared) == 3


def test_when_all_fail_each_is_named_and_the_next_time_tries_again():
    clock = Clock(library=RuntimeError("not there"), large_tiles=MemoryError("full"), small_tiles=KeyError())
    with pytest.raises(errors.LoweringError) as raised:
        choices.decide(CHOICE, clock.prepare)
    for part in (CHOICE.key, "library: RuntimeError: not there", "large tiles: MemoryError: full", "tune"):
        assert part in str(raised.value)
    assert choices.decide(CHOICE, Clock(library=1.0, large_tiles=2.0, small_tiles=3.0).prepare).seconds


def test_a_candidate_that_compiles_a_program_with_choices_does_not_wait_for_itself():
    inner = Clock(rows=2.0, columns=1.0)

    def prepare(name):
        choices.decide(Choice("inner", ("rows", "columns")), inner.prepare)
        return lambda: 1.0

    assert choices.decide(CHOICE, prepare).winner == "library" and len(inner.prepared) == 2


def test_the_text_shows_the_times_and_what_failed():
    clock = Clock(library=RuntimeError("not there"), large_tiles=2e-6, small_tiles=1e-6)
    lines = choices.describe((choices.decide(CHOICE, clock.prepare),)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "dot mk,kn->mn: small tiles (measured)",
        "library failed: RuntimeError: not there",
        "large tiles 2.00 us",
        "small tiles 1.00 us",
    ]


# --- the knob, and what needs no clock ------------------------------------------------------------


def never(name):
    raise AssertionError(f"{name} was measured")


def test_nothing_is_measured_when_the_knob_is_off():
    with config.config(tune="off"):
        assert choices.decide(CHOICE, never).winner == "library"


def test_cached_takes_what_was_measured_before_and_else_the_first():
    with config.config(tune="cached"):
        assert choices.decide(CHOICE, never).winner == "library"
    choices.decide(CHOICE, Clock(library=3.0, large_tiles=1.0, small_tiles=2.0).prepare)
    choices.forget()
    with config.config(tune="cached"):
        assert choices.decide(CHOICE, never).winner == "large tiles"


def test_a_deterministic_program_takes_the_first_whatever_was_measured():
    choices.decide(CHOICE, Clock(library=3.0, large_tiles=1.0, small_tiles=2.0).prepare)
    assert choices.Chooser(CompileOptions(deterministic=True)).choose(CHOICE, never) == "library"


def test_a_single_candidate_is_not_measured():
    assert choices.decide(Choice("dot", ("library",)), never).winner == "library"


def test_a_given_choice_comes_before_everything():
    choices.decide(CHOICE, Clock(library=3.0, large_tiles=1.0, small_tiles=2.0).prepare)
    options = CompileOptions(choices=((CHOICE.key, "small tiles"),), deterministic=True)
    assert choices.Chooser(options).choose(CHOICE, never) == "small tiles"


def test_a_given_choice_that_is_no_candidate_is_an_error():
    with pytest.raises(errors.LoweringError, match="huge tiles"):
        choices.decide(CHOICE, never, given={CHOICE.key: "huge tiles"})


# --- the disk -----------------------------------------------------------------------------------


def entries():
    return [path for path in disk_cache.folder("choices").rglob("*") if path.is_file()]


def measure(**seconds):
    """Decide as a process that knows nothing but the disk."""
    choices.forget()
    clock = Clock(**(seconds or {"library": 3.0, "large_tiles": 1.0, "small_tiles": 2.0}))
    return choices.decide(CHOICE, clock.prepare)


def test_another_process_finds_the_answer_on_disk():
    first = measure()
    second = measure(library=0.0, large_tiles=1.0, small_tiles=1.0)
    assert (second.winner, second.source, second.seconds) == (first.winner, "disk", first.seconds)
    assert len(entries()) == 1


@pytest.mark.parametrize(
    "other",
    [
        Choice(CHOICE.key, CHOICE.candidates, ("another device", "driver 1")),
        Choice(CHOICE.key, CHOICE.candidates, ("a device", "driver 2")),
        Choice(CHOICE.key, CHOICE.candidates[:2], CHOICE.context),
        Choice("dot km,kn->mn", CHOICE.candidates, CHOICE.context),
    ],
)
def test_an_answer_holds_for_its_device_versions_and_candidates(other):
    measure()
    clock = Clock(library=0.0, large_tiles=1.0, small_tiles=1.0)
    assert choices.decide(other, clock.prepare).source == "measured"


def test_an_answer_holds_for_one_version_of_infini(monkeypatch):
    before = CHOICE.digest
    monkeypatch.setattr(infini, "__version__", "another")
    assert CHOICE.digest != before


def test_a_broken_entry_is_replaced():
    measure()
    (path,) = entries()
    whole = path.read_bytes()
    for broken in (b"", b"junk", whole[:-1], whole.replace(b"winner", b"sinner")):
        path.write_bytes(broken)
        assert measure().source == "measured"
        assert entries() == [path] and path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"7",
        b"\xff",
        b'{"key": "dot mk,kn->mn", "candidates": ["library"], "context": [], "winner": "library"}',
        b'{"key": "dot mk,kn->mn", "candidates": ["library", "large tiles", "small tiles"], '
        b'"context": ["a device", "driver 1"], "winner": "huge tiles", "seconds": {}, "failures": {}}',
        b'{"key": "dot mk,kn->mn", "candidates": ["library", "large tiles", "small tiles"], '
        b'"context": ["a device", "driver 1"], "winner": ["library"], "seconds": {}, "failures": {}}',
        b'{"key": "dot mk,kn->mn", "candidates": ["library", "large tiles", "small tiles"], '
        b'"context": ["a device", "driver 1"], "winner": "library", "seconds": [], "failures": {}}',
    ],
)
def test_an_entry_that_answers_something_else_is_replaced(content):
    disk_cache.write("choices", CHOICE.digest, content)
    assert measure().source == "measured"
    assert measure().source == "disk"


def test_the_knob_no_cache_leaves_the_disk_alone():
    with config.config(no_cache=True):
        measure()
        assert measure().source == "measured"
    assert entries() == []


# --- the key of a program -------------------------------------------------------------------------


@pytest.fixture
def clocked(monkeypatch):
    """The reference backend, with a choice at each product: by columns is faster."""
    made, real = ClockedBackend({"rows": 2.0, "columns": 1.0}), execute.backend.get
    monkeypatch.setattr(execute.backend, "get", lambda name: made if name == "reference" else real(name))
    return made


def product():
    x = ArrayType((3, 4), float32)
    return trace.stage(lambda x, y: [contraction.dot(x, y)], [x, ArrayType((4, 5), float32)]).program


def test_another_choice_is_another_executable(clocked):
    device, made = Device("reference"), {}
    for name in ("rows", "columns"):
        options = CompileOptions(choices=(("dot f32[3,4] f32[4,5]", name),))
        made[name] = execute.compile(product(), device, options)
        assert execute.compile(product(), device, options) is made[name]
        assert made[name].choices == options.choices
    assert made["rows"] is not made["columns"] and clocked.prepared == []


def test_a_program_compiled_with_the_knob_off_is_not_the_measured_one(clocked):
    device, options = Device("reference"), CompileOptions()
    measured = execute.compile(product(), device, options)
    with config.config(tune="off"):
        usual = execute.compile(product(), device, options)
    assert dict(measured.choices) == {"dot f32[3,4] f32[4,5]": "columns"}
    assert dict(usual.choices) == {"dot f32[3,4] f32[4,5]": "rows"}
    assert execute.compile(product(), device, options) is measured


def test_a_decision_that_is_forgotten_takes_its_programs_along(clocked):
    device, options = Device("reference"), CompileOptions()
    first = execute.compile(product(), device, options)
    clocked.seconds["rows"] = 0.5
    assert execute.compile(product(), device, options) is first
    choices.forget()
    with config.config(no_cache=True):
        assert dict(execute.compile(product(), device, options).choices) == {"dot f32[3,4] f32[4,5]": "rows"}


def test_a_measurement_is_an_event(clocked):
    with events.record() as found:
        execute.compile(product(), Device("reference"), CompileOptions())
    (event,) = [e for e in found if e.code == "choice-measured"]
    assert event.data["decision"].winner == "columns" and "2000000.00 us" in event.message


def test_the_devices_of_one_process_are_its_own_affair(clocked):
    with config.config(cpu_devices=2), events.record() as found:
        program = trace.stage(lambda x: [contraction.dot(x, x)], [ArrayType((4, 4), float32)]).program
        options = CompileOptions(mesh=AbstractMesh(("x",), (2,)), in_specs=(("x",),))
        executable = execute.compile(program, Device("reference"), options)
    assert [name for _, name in executable.choices] == ["columns"]
    assert executable.text("choices").startswith("dot ")
    assert "choices-agreed" not in [event.code for event in found]


# --- several processes ----------------------------------------------------------------------------

HEAD = """
import os
import numpy as np
import infini as inf, infini.parallel as parallel
from infini import lax
from infini.core import errors, events, execute
from infini.sharding import NamedSharding, P, make_mesh
from tests.semantics.clocked import ClockedBackend

parallel.initialize()
rank = parallel.process_index()
# The clocks disagree: process 0 finds columns faster, process 1 rows.
backend = ClockedBackend({"rows": 2.0 - rank, "columns": 1.0 + rank})
backend.install()
mesh = make_mesh((2,), ("x",))
across, along = NamedSharding(mesh, P(None, "x")), NamedSharding(mesh, P("x"))
put = lambda shape, sharding: inf.device_put(np.ones(shape, np.float32), sharding)
# Split along what is summed: a product, then a collective.
summed = inf.jit(inf.shard_map(
    lambda x, y: lax.psum(lax.dot(x, y), "x"), mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P()))
taken = lambda executable: [name for _, name in executable.choices]
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


def mpirun(path, body, folder, timeout=60):
    """Exit code, output and errors of a script under two processes."""
    script = HEAD + textwrap.dedent(body)
    done = jobs.run(path, 2, "-c", script, timeout_s=timeout, INFINI_CACHE_DIR=folder)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.multi
def test_rank_0_chooses_for_programs_of_both_and_each_for_its_own(mpirun_path, tmp_path):
    code, out, err = mpirun(
        mpirun_path,
        """
        with inf.config(no_cache=True), events.record() as found:
            agreed = lambda: sum(e.code == "choices-agreed" for e in found)
            x, y = put((3, 4), across), put((4, 5), along)

            # A program of one process: each process goes by its own clock, and nobody is told.
            inf.jit(lax.dot)(np.ones((3, 2), np.float32), np.ones((2, 7), np.float32))
            assert (agreed(), len(backend.prepared)) == (0, 2)

            # A program of both: one process may compile it alone; when both run it, rank 0 is asked.
            if rank == 1:
                summed.lower(x, y).compile()
                assert taken(backend.over_meshes[0]) == ["rows"] and len(backend.prepared) == 2
            for _ in range(3):
                np.testing.assert_array_equal(np.asarray(summed(x, y)), np.full((3, 5), 4.0))
            assert taken(backend.over_meshes[-1]) == ["columns"], taken(backend.over_meshes[-1])
            assert (agreed(), len(backend.prepared)) == (1, 4 if rank == 0 else 2)

            # One process forgets its programs: they are compiled again with the choices of before.
            if rank == 1:
                execute.clear_caches()
            summed(x, y)
            assert agreed() == 1 and taken(backend.over_meshes[-1]) == ["columns"]

            # A program without a collective may be run by one process alone: no exchange, and no clock.
            if rank == 1:
                inf.jit(lax.dot)(put((4, 5), along), put((5, 2), NamedSharding(mesh, P())))
                assert agreed() == 1 and taken(backend.over_meshes[-1]) == ["rows"]

            # Another shape is another question.
            summed(put((6, 4), across), y)
            assert agreed() == 2 and taken(backend.over_meshes[-1]) == ["columns"]

        say("ok", *backend.prepared)
        """,
        tmp_path,
    )
    assert code == 0, err
    assert sorted(out.splitlines()) == ["ok" + 1 * " rows columns", "ok" + 3 * " rows columns"]


@pytest.mark.multi
def test_when_rank_0_fails_both_raise_and_go_on(mpirun_path, tmp_path):
    code, out, err = mpirun(
        mpirun_path,
        """
        x, y = put((3, 4), across), put((4, 5), along)
        seconds = dict(backend.seconds)
        if rank == 0:
            backend.seconds.clear()
        try:
            summed(x, y)
        except errors.LoweringError as error:
            say("failed" if "KeyError: 'rows'" in str(error) else error)
        backend.seconds.update(seconds)
        summed(x, y)
        say(*taken(backend.over_meshes[-1]))
        """,
        tmp_path,
    )
    assert (code, sorted(out.splitlines())) == (0, ["columns", "columns", "failed", "failed"]), err


@pytest.mark.multi
def test_processes_that_run_different_programs_are_told(mpirun_path, tmp_path):
    code, _, err = mpirun(mpirun_path, "summed(put((3 + rank, 4), across), put((4, 5), along))", tmp_path)
    assert code != 0 and "the processes of this job run different programs over one mesh" in err
