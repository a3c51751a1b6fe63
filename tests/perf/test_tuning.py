"""Tuning of kernels: which configurations there are, which is taken, and that nothing is measured twice."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax, tile
from infini.backends.cpu import limits
from infini.compiler import choices
from infini.compiler.triton import launching
from infini.compiler.triton.emit import emit_triton
from infini.core import comm, config, dtypes, errors, ir, text
from infini.core.ir import ArrayType
from infini.perf import configuration_cost, tuning
from infini.tile import Tensor, block_size, configurations, program as tile_program
from infini.tile.configurations import Configuration
from tests.tile import kernels

FACTS = configuration_cost.DeviceFacts(("a device",), 4, 1e11, 1e10, 4e10, 1 << 20, 1 << 20, 1e-7)


def of(*shape: int) -> ArrayType:
    return ArrayType(shape, dtypes.float32)


def add_kernel() -> Any:
    """A kernel of its own, as tuning changes it."""
    block = block_size(64, 512, name="BLOCK")
    x = Tensor(1)
    return tile.kernel(
        lambda *ts: [t.tile((block,)) for t in ts],
        tensors=(x, Tensor(shape=x.shape), Tensor(shape=x.shape)),
        name="add",
    )(lambda x, y: lax.add(x, y))


class Clock:
    """Seconds of each configuration, and what was measured."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.measured: list[str] = []

    def prepare(self, name: str) -> Callable[[], float]:
        self.measured.append(name)
        return lambda: self.seconds.get(name, 1.0)


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A clock in the place of measurements, a disk cache of its own, and a device that nobody measured."""
    made = Clock()
    monkeypatch.setattr(tuning._Tuner, "_prepare", lambda self, operands: made.prepare)
    monkeypatch.setattr(configuration_cost, "facts_of", lambda device: FACTS)
    choices.forget()
    with config.config(cache_dir=str(tmp_path), no_cache=False, tune="on"):
        yield made
    choices.forget()


# --- configurations ----------------------------------------------------------------------------


def names(*args: Any, **options: Any) -> list[str]:
    return [str(c) for c in configurations.all_of(*args, **options)]


def test_block_sizes_are_powers_of_two_within_their_bounds() -> None:
    assert names(add_kernel()) == ["BLOCK=64", "BLOCK=128", "BLOCK=256", "BLOCK=512"]


def test_block_sizes_that_were_fixed_are_not_free() -> None:
    assert names(kernels.matmul.configure(BM=32, BN=16)) == [f"BK={1 << n}" for n in range(4, 8)]
    assert names(kernels.softmax) == ["nothing to choose"]


def test_constraints_are_relations_of_block_sizes() -> None:
    found = [
        Configuration.parse(name)
        for name in names(kernels.matmul, [kernels.BM * kernels.BN <= 1024, kernels.BK >= kernels.BM])
    ]
    assert found and all(c["BM"] * c["BN"] <= 1024 and c["BK"] >= c["BM"] for c in found)
    assert len(found) == sum(
        m * n <= 1024 and k >= m
        for m in (16, 32, 64, 128)
        for n in (16, 32, 64, 128)
        for k in (16, 32, 64, 128)
    )


def test_constraints_see_block_sizes_that_were_fixed() -> None:
    kernel = kernels.matmul.configure(BM=64, BK=16)
    assert names(kernel, [kernels.BM * kernels.BN <= 2048]) == ["BN=16", "BN=32"]


@pytest.mark.parametrize(
    "constraint", [block_size(1, 2, name="OTHER") <= 1, kernels.BM + 1, "BM <="], ids=str
)
def test_what_is_no_relation_of_block_sizes_is_refused(constraint: Any) -> None:
    with pytest.raises(errors.ValueMismatchError, match="a relation of its block sizes"):
        names(kernels.matmul, [constraint])


def test_launch_options_are_part_of_it_on_gpus() -> None:
    found = names(add_kernel().configure(BLOCK=64, num_stages=2), has_launch=True)
    assert found == [f"num_warps={n}" for n in (1, 2, 4, 8, 16)]


def test_too_many_configurations_are_refused() -> None:
    x = Tensor(3)
    blocks = [block_size(1, 1 << 12, name=f"B{n}") for n in range(6)]
    wide = tile.kernel(
        lambda x, y: (x.tile(blocks[:3]).tile(blocks[3:]), y.tile(blocks[:3]).tile(blocks[3:])),
        tensors=(x, Tensor(shape=x.shape)),
    )(lambda x: x)
    with pytest.raises(errors.ValueMismatchError, match="too many configurations"):
        names(wide)


# --- what is taken -------------------------------------------------------------------------------


def test_the_fastest_is_used_from_now_on(clock: Clock, rng: Any) -> None:
    kernel, operands = add_kernel(), [rng.standard_normal(2000).astype(np.float32) for _ in range(2)]
    before = np.asarray(kernel(*operands))
    clock.seconds = {"BLOCK=128": 0.5}
    report = kernel.tune(*operands)
    assert (str(report.chosen), report.source) == ("BLOCK=128", "measured")
    assert sorted(clock.measured) == ["BLOCK=128", "BLOCK=256", "BLOCK=512", "BLOCK=64"]
    assert kernel.specialize([of(2000)] * 2).loads[0].tile == (128,)
    np.testing.assert_array_equal(kernel(*operands), before)


def test_sizes_of_a_bucket_share_a_configuration(clock: Clock) -> None:
    kernel = add_kernel()
    clock.seconds = {"BLOCK=64": 0.5}
    kernel.tune(of(2000), of(2000))
    assert kernel.specialize([of(1025)] * 2).loads[0].tile == (64,)
    assert kernel.specialize([of(4000)] * 2).loads[0].tile == (512,)
    clock.measured.clear()
    assert kernel.tune(of(1100), of(1100)).source == "measured" and not clock.measured


def test_sizes_that_a_tuned_configuration_does_not_fit_take_the_usual_one(clock: Clock) -> None:
    x, block = Tensor(1), block_size(16, 64)
    half = tile.kernel(
        lambda x, y: (x[: x.shape[0] // 2].tile((block,)), y.tile((block,))),
        tensors=(x, Tensor(shape=(x.shape[0] // 2,))),
    )(lambda x: x)
    clock.seconds = {"BLOCK=64": 0.5}
    half.tune(of(256))
    assert half.specialize([of(256)]).loads[0].tile == (64,)
    assert half.specialize([of(160)]).loads[0].tile == (16,)


def test_another_process_reads_the_answer(clock: Clock) -> None:
    clock.seconds = {"BLOCK=256": 0.5}
    add_kernel().tune(of(2000), of(2000))
    choices.forget()
    clock.measured.clear()
    kernel = add_kernel()
    report = kernel.tune(of(2000), of(2000))
    assert (str(report.chosen), report.source, clock.measured) == ("BLOCK=256", "disk", [])
    assert kernel.specialize([of(2000)] * 2).loads[0].tile == (256,)


def other_kernel() -> Any:
    found = add_kernel()
    found.application = lambda x, y: lax.mul(x, y)
    return found


@pytest.mark.parametrize("change", ["body", "dtype", "device", "size"])
def test_what_decides_the_speed_is_part_of_the_question(
    change: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_kernel().tune(of(2000), of(2000))
    clock.measured.clear()
    kernel, types = add_kernel(), [of(2000)] * 2
    if change == "body":
        kernel = other_kernel()
    elif change == "dtype":
        types = [t.update(dtype=dtypes.float64) for t in types]
    elif change == "size":
        types = [of(5000)] * 2
    else:
        facts = dataclasses.replace(FACTS, name=("another device",))
        monkeypatch.setattr(configuration_cost, "facts_of", lambda device: facts)
    assert kernel.tune(*types).source == "measured" and clock.measured


@pytest.mark.parametrize("way", ["deterministic", "off", "cached"])
def test_the_usual_configuration_is_kept_where_nothing_may_be_measured(way: str, clock: Clock) -> None:
    kernel = add_kernel()
    usual = kernel.specialize([of(2000)] * 2)
    with config.config(tune="on" if way == "deterministic" else way):
        report = kernel.tune(of(2000), of(2000), deterministic=way == "deterministic")
    assert report.source == "default" and not clock.measured
    assert kernel.specialize([of(2000)] * 2) == usual


def test_blocks_beyond_the_operands_are_left_out(clock: Clock) -> None:
    report = add_kernel().tune(of(100), of(100))
    assert sorted(clock.measured) == ["BLOCK=128", "BLOCK=64"]
    assert report.left_out == (("a smaller block has as many tiles", 2),)


def test_tiles_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    facts = dataclasses.replace(FACTS, register_bytes=128 * 4)
    monkeypatch.setattr(configuration_cost, "facts_of", lambda device: facts)
    report = add_kernel().tune(of(2000), of(2000))
    # The usual one stays: it is what everybody else gets.
    assert sorted(clock.measured) == ["BLOCK=128", "BLOCK=512", "BLOCK=64"]
    assert report.left_out == (("tiles do not fit the device", 1),)


def test_no_more_than_asked_are_measured(clock: Clock) -> None:
    report = kernels.matmul.tune(of(256, 256), of(256, 256), most=3)
    assert len(clock.measured) <= 4 and len(report.rows) > 10
    assert "more, predicted to be slower" in str(report)


def test_constraints_hold_for_what_is_chosen(clock: Clock) -> None:
    kernel = kernels.matmul.configure(BK=16)
    report = kernel.tune(of(256, 256), of(256, 256), constraints=[kernels.BM * kernels.BN <= 512])
    assert report.chosen["BM"] * report.chosen["BN"] <= 512
    assert all(c["BM"] * c["BN"] <= 512 for c in map(Configuration.parse, clock.measured))
    with pytest.raises(errors.ValueMismatchError, match="no configuration"):
        kernel.tune(of(256, 256), of(256, 256), constraints=[kernels.BM > 4096])


def test_a_configuration_that_fails_is_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(name: str) -> Callable[[], float]:
        if name != "BLOCK=64":
            raise errors.LoweringError("too large")
        return lambda: 1.0

    monkeypatch.setattr(tuning._Tuner, "_prepare", lambda self, operands: prepare)
    report = add_kernel().tune(of(2000), of(2000))
    assert str(report.chosen) == "BLOCK=64" and "too large" in str(report)


# --- at the first use --------------------------------------------------------------------------


def test_a_knob_tunes_kernels_when_they_are_first_called(clock: Clock, rng: Any) -> None:
    kernel, operand = add_kernel(), rng.standard_normal(2000).astype(np.float32)
    kernel(operand, operand)
    assert not clock.measured
    clock.seconds = {"BLOCK=128": 0.5}
    with config.config(tune="all"):
        inf.jit(lambda x: kernel(x, x))(operand)
        assert not clock.measured
        np.testing.assert_allclose(kernel(operand, operand), 2 * operand)
        count = len(clock.measured)
        assert count == 4 and kernel.specialize([of(2000)] * 2).loads[0].tile == (128,)
        kernel(operand, operand)
        inf.jit(lambda x: kernel(x, x))(operand)
        assert len(clock.measured) == count


# --- several processes ---------------------------------------------------------------------------


class OneOfTwo:
    """A process of a job of two; the other's message is kept."""

    def __init__(self, index: int, message: list[bytes]) -> None:
        self.index, self.count, self.message = index, 2, message
        self.local_ranks = (index,)

    @property
    def launcher(self) -> OneOfTwo:
        return self

    def comm(self, owners: tuple[int, ...]) -> OneOfTwo:
        assert owners == (0, 1)
        return self

    def duplicate(self) -> OneOfTwo:
        return self

    def gather_bytes(self, content: bytes) -> list[bytes]:
        return [content, content]  # both have the same kernel

    def broadcast(self, content: bytes) -> bytes:
        if self.index == 0:
            self.message.append(content)
        return self.message[0]


def test_processes_take_the_choice_of_the_first(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.agreement, "_agreed", {})
    monkeypatch.setattr(tuning.agreement, "_comms", {})
    message: list[bytes] = []
    clock.seconds = {"BLOCK=64": 0.5}
    monkeypatch.setattr(comm, "processes", lambda: OneOfTwo(0, message))
    assert str(add_kernel().tune(of(2000), of(2000)).chosen) == "BLOCK=64"
    # The other process would find another one faster.
    monkeypatch.setattr(tuning.agreement, "_agreed", {})
    monkeypatch.setattr(tuning.agreement, "_comms", {})
    choices.forget()
    clock.measured.clear()
    clock.seconds = {"BLOCK=512": 0.1}
    monkeypatch.setattr(comm, "processes", lambda: OneOfTwo(1, message))
    kernel = add_kernel()
    report = kernel.tune(of(2000), of(2000))
    assert (str(report.chosen), report.source, clock.measured) == ("BLOCK=64", "agreed", [])
    assert kernel.specialize([of(2000)] * 2).loads[0].tile == (64,)


def test_the_first_use_in_a_job_measures_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "processes", lambda: OneOfTwo(0, []))
    kernel = add_kernel()
    tuning.tune_first_use(kernel, [of(2000)] * 2, {})
    assert not clock.measured and kernel.specialize([of(2000)] * 2).loads[0].tile == (512,)


# --- launch options ------------------------------------------------------------------------------


def test_launch_options_go_with_the_kernel() -> None:
    types = [of(5, 37)]
    kernel = kernels.softmax.configure(num_warps=8, num_stages=2).specialize(types)
    assert kernel.launch == (("num_stages", 2), ("num_warps", 8))
    assert tile_program.batch_kernel(kernel, [True], 3).launch == kernel.launch
    source = launching.chosen(emit_triton(kernel, types), kernel)
    assert (source.num_warps, source.num_stages) == (8, 2)
    plain = kernels.softmax.specialize(types)
    assert plain.launch == () and launching.chosen(emit_triton(plain, types), plain).num_stages == 3


def test_launch_options_are_printed_and_read() -> None:
    kernel = kernels.softmax.configure(num_warps=8).specialize([of(5, 37)])
    program = ir.single_equation(tile_program.kernel_p, [of(5, 37)], ir.Attrs({"kernel": kernel}))
    shown = text.print_program(program)
    assert "launch num_warps = 8" in shown and text.parse(shown) == program
    plain = kernels.softmax.specialize([of(5, 37)])
    assert program != ir.single_equation(tile_program.kernel_p, [of(5, 37)], ir.Attrs({"kernel": plain}))


@pytest.mark.parametrize("options", [{"num_warps": 3}, {"num_warps": 0}, {"num_stages": 0}], ids=str)
def test_wrong_launch_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(errors.ValueMismatchError, match="wrong value of num"):
        kernels.softmax.configure(**options)


# --- predictions, reports, clocks -------------------------------------------------------------------


def predicted(kernel: Any, *types: ArrayType, **facts: Any) -> float:
    return configuration_cost.predicted_s(
        kernel.specialize(types), types, dataclasses.replace(FACTS, **facts)
    )


def test_predictions_know_what_takes_time() -> None:
    large, small = (add_kernel().configure(BLOCK=n) for n in (512, 64))
    types = [of(1 << 16)] * 2
    moved = 3 * 4 * (1 << 16) / FACTS.memory_bytes_per_s
    assert predicted(large, *types, program_s=0.0) == pytest.approx(moved, rel=1e-3)
    assert predicted(small, *types) > predicted(large, *types)  # more programs
    few = kernels.matmul.configure(BM=128, BN=128, BK=16)
    assert predicted(few, of(128, 128), of(128, 128), num_units=8, program_s=0.0) == pytest.approx(
        8 * predicted(few, of(128, 128), of(128, 128), num_units=1, program_s=0.0)
    )  # one program keeps one unit of eight busy


def test_facts_of_a_gpu_are_read_off_its_driver() -> None:
    properties = {
        "multiProcessorCount": 132, "clockRate": 1_700_000, "memoryClockRate": 2_600_000,
        "memoryBusWidth": 5120, "sharedMemPerBlockOptin": 232_448,
    }  # fmt: skip
    runtime = SimpleNamespace(getDeviceProperties=lambda number: properties)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    found = configuration_cost._cuda(SimpleNamespace(number=0, facts=("a GPU",), cupy=cupy))
    assert found.num_units == 132 and found.shared_bytes == 232_448
    assert found.memory_bytes_per_s == pytest.approx(3.328e12) and found.flops_per_s == pytest.approx(
        5.745e13, rel=1e-3
    )


def test_walked_tiles_count_per_stage() -> None:
    types = [of(256, 256)] * 2
    kernel = kernels.matmul.configure(BM=64, BN=64, BK=64)
    facts = dataclasses.replace(FACTS, shared_bytes=3 * 2 * 64 * 64 * 4)
    for stages, fits in ((2, True), (3, True), (4, False)):
        found = configuration_cost.why_not(
            kernel.configure(num_stages=stages).specialize(types), types, facts
        )
        assert (found is None) == fits


def test_a_report_is_a_table_and_a_picture(clock: Clock, tmp_path: Path) -> None:
    clock.seconds = {"BLOCK=64": 2e-5, "BLOCK=128": 1e-5, "BLOCK=256": 4e-5, "BLOCK=512": 8e-5}
    report = add_kernel().tune(of(2000), of(2000))
    lines = [line for line in str(report).splitlines() if "BLOCK=" in line]
    assert [line.split()[1] for line in lines] == ["BLOCK=128", "BLOCK=64", "BLOCK=256", "BLOCK=512"]
    assert "chosen (measured)" in lines[0] and "10 us" in lines[0]
    drawing = report.draw(tmp_path / "tuning.svg")
    ElementTree.fromstring((tmp_path / "tuning.svg").read_text())
    assert "add: 4 configurations on " in drawing.title


def test_configurations_are_measured_on_the_cpu(monkeypatch: pytest.MonkeyPatch, rng: Any) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(limits, "known", lambda: limits.Limits(1, 1e11, {1 << 20: 1e10}, {1 << 20: 1e10}))
    monkeypatch.setattr(tuning, "_SAMPLE_S", 1e-5)
    operand = rng.standard_normal(3000).astype(np.float32)
    kernel = add_kernel()
    report = kernel.tune(operand, of(3000), on="cpu")
    assert report.source == "measured" and report.device == "cpu:0"
    assert all(row.measured_s and row.measured_s > 0 for row in report.rows)
    assert kernel.specialize([of(3000)] * 2).loads[0].tile == (report.chosen["BLOCK"],)
    np.testing.assert_allclose(kernel(operand, operand), 2 * operand)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="most=0"):
        add_kernel().tune(of(10), of(10), most=0)
