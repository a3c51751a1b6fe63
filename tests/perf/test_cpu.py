"""The CPU suite takes turns fairly, survives a contender that fails, and offers what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from infini.backends.cpu import limits as kernels, objects
from infini.compiler.llvm import target as target_
from infini.perf import __main__ as command, cpu, plot, workloads
from infini.perf.contestants import NAMES
from infini.perf.limits import Limits

LIMITS = Limits(2, 1e9, {100: 1e9}, {100: 2e9})
SOFTMAX = workloads.by_name("softmax/6x10")


class _FakeWorker:
    """Notes who was asked for what; `broken` is what it cannot do."""

    log: ClassVar[list[tuple[str, str]]] = []
    broken: ClassVar[dict[str, str]] = {}

    def __init__(self, name: str, options: cpu.Options, folder: Path) -> None:
        self.name = name

    def ask(self, **request: Any) -> dict[str, Any]:
        self.log.append((self.name, request["do"]))
        if self.broken.get(self.name) == request["do"]:
            raise cpu.WorkerError("gone")
        if request["do"] == "prepare":
            return {"first_s": 1.0, "difference": 0.5, "read": 100, "written": 100}
        return {"seconds": [1.0, 2.0]}

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[_FakeWorker]:
    monkeypatch.setattr(_FakeWorker, "log", [])
    monkeypatch.setattr(_FakeWorker, "broken", {})
    monkeypatch.setattr(cpu, "Worker", _FakeWorker)
    monkeypatch.setattr(cpu, "PAUSE_S", 0.0)
    return _FakeWorker


def _measured(names: tuple[Any, ...] = ("infini", "jax"), num_rounds: int = 1) -> cpu.Measured:
    options = cpu.Options(names=names, num_rounds=num_rounds, turns=2)
    (found,) = cpu.measure([SOFTMAX], options, LIMITS, lambda text: None)
    return found


def test_contenders_alternate_between_turns(fake: type[_FakeWorker]) -> None:
    _measured()
    assert [name for name, do in fake.log if do == "time"] == ["infini", "jax", "jax", "infini"]


def test_the_first_turn_alternates_between_rounds(fake: type[_FakeWorker]) -> None:
    _measured(num_rounds=2)
    assert [name for name, do in fake.log if do == "time"][::4] == ["infini", "jax"]


def test_everyone_is_ready_before_the_first_turn(fake: type[_FakeWorker]) -> None:
    _measured()
    assert [do for _, do in fake.log[:2]] == ["prepare", "prepare"]


def test_samples_are_kept_by_round(fake: type[_FakeWorker]) -> None:
    assert _measured(num_rounds=2).samples["jax"] == [[1.0, 2.0, 1.0, 2.0]] * 2


def test_the_difference_of_a_result_is_kept(fake: type[_FakeWorker]) -> None:
    assert _measured().differences["jax"] == 0.5


@pytest.mark.parametrize("stage", ["prepare", "time"])
def test_a_contender_that_fails_leaves_the_others(fake: type[_FakeWorker], stage: str) -> None:
    fake.broken["jax"] = stage
    found = _measured(num_rounds=2)
    assert found.failed == {"jax": "gone"}
    assert set(found.samples) == {"infini"}


def test_the_shortest_time_follows_from_what_is_moved(fake: type[_FakeWorker]) -> None:
    assert _measured().least_s == pytest.approx(200 / 2e9)


def test_a_worker_that_is_silent_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cpu.sys, "executable", "/bin/cat"
    )  # whatever its arguments, it answers nothing useful
    worker = cpu.Worker("infini", cpu.Options(names=("infini",), patience_s=5.0), tmp_path)
    with pytest.raises(cpu.WorkerError, match="the process of infini"):
        worker.ask(do="prepare", workload=SOFTMAX.name)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_kernels_of_the_limits_compile(lanes: int) -> None:
    assert objects.compile_module(kernels._text(lanes), target_.host_target(), level=0)


def test_the_list_names_every_workload() -> None:
    done = CliRunner().invoke(command.app, ["cpu", "--list"])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == len(workloads.WORKLOADS) + len(cpu.PROBES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family", "nope"], "there is no family 'nope'"),
        (["--only", "nope"], "no workload is asked for"),
        (["--peers", "nope"], "there is no contender 'nope'"),
    ],
)
def test_unknown_names_are_refused(options: list[str], message: str) -> None:
    done = CliRunner().invoke(command.app, ["cpu", *options], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in done.stderr


def test_unknown_workloads_of_the_gpu_are_refused() -> None:
    done = CliRunner().invoke(command.app, ["gpu", "--only", "nope"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "no workload is asked for" in done.stderr


def test_kernels_by_hand_are_asked_only_where_there_are_some(fake: type[_FakeWorker]) -> None:
    options = cpu.Options(names=("infini", "triton"), num_rounds=1, turns=1, device="cuda")
    cpu.measure([SOFTMAX, workloads.by_name("gpu/softmax/5x37")], options, LIMITS, lambda text: None)
    assert [name for name, do in fake.log if do == "prepare"] == ["infini", "infini", "triton"]


def test_on_a_gpu_everyone_is_told_so() -> None:
    found = cpu.environment(8, "cuda")
    assert (found["INFINI_DEVICE"], found["JAX_PLATFORMS"]) == ("cuda", "cuda")
    assert cpu.environment(2)["JAX_PLATFORMS"] == "cpu"


def test_infini_always_takes_part() -> None:
    assert cpu.installed(("infini",)) == ("infini",)
    assert cpu.installed(NAMES)[0] == "infini"


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plot, "is_available", lambda: False)
    with pytest.raises(NotImplementedError, match="matplotlib"):
        plot.draw([], tmp_path / "ratios.png")


def test_an_interrupted_run_keeps_the_families_before(
    fake: type[_FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Any]] = []

    def measure(chosen: Any, options: Any, limits: Any, progress: Any) -> list[cpu.Measured]:
        if chosen[0].family == "calls":
            raise KeyboardInterrupt
        return [cpu.Measured(chosen[0].name, chosen[0].family, samples={"infini": [[1.0]], "jax": [[2.0]]})]

    def append(suite: str, results: dict[str, Any]) -> Path:
        kept.append(results)
        return command.record.ROOT / "results.json"

    monkeypatch.setattr(cpu, "measure", measure)
    monkeypatch.setattr(cpu, "measure_limits", lambda *about: LIMITS)
    monkeypatch.setattr(command.record, "append", append)
    done = CliRunner().invoke(command.app, ["cpu", "--quick", "--family", "mlp", "--family", "calls"])
    assert done.exit_code == 0, done.stderr
    (results,) = kept
    assert not results["is_whole"]
    assert {row["family"] for row in results["families"]} == {"mlp"}
