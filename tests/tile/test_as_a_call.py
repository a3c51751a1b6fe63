"""The tools take what a call takes: the types it makes of operands, parameters of compilation, its errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import tile
from infini.compiler import choices
from infini.core import config, dtypes, errors, text
from infini.core.ir import ArrayType
from infini.tile import Tensor, block_size, simulation
from infini.tile.function import KernelFunction

F32: Any = ArrayType((300,), dtypes.float32)
DOUBLE: Any = np.arange(300.0)  # float64, of which a call makes float32
FUNCTION: Any = abs
LINE: Any = Tensor(1)


def blocks(*tensors: Tensor) -> list[Tensor]:
    block = block_size(64, 128)
    return [t if t.is_scalar else t.tile((block,)) for t in tensors]


def scaled(**options: Any) -> Any:
    """A kernel of its own, as tuning changes it: its parameter of compilation comes first."""
    factor, line = Tensor(0, constexpr=True, **options), Tensor(1)

    @tile.kernel(blocks, tensors=(factor, line, Tensor(shape=line.shape)), name="scaled")
    def kernel(n: int, line: Any) -> Any:
        return line * n

    return kernel


def copied(dtype: Any = None) -> Any:
    line = Tensor(1, dtype=dtype)
    return tile.kernel(blocks, tensors=(line, Tensor(shape=line.shape)), name="copied")(lambda line: line)


@pytest.fixture(autouse=True)
def own_answers(tmp_path: Path) -> Iterator[None]:
    """Nothing that was tuned before is known."""
    choices.forget()
    with config.config(cache_dir=str(tmp_path / "cache"), no_cache=False, tune="on"):
        yield
    choices.forget()


Tool = Callable[..., Any]


def tuned(kernel: KernelFunction, operands: Sequence[Any], folder: Path, **static: Any) -> object:
    """The fastest configuration of two that are measured; the next call runs in it."""
    report = kernel.tune(*operands, most=2, **static)
    assert len([row for row in report.rows if row.measured_s is not None]) == 2
    bound = kernel.bind(operands, static)
    assert report.types == bound.types
    sizes = kernel.lower(bound.types, bound.static)[1]
    (block,) = (v for s, v in sizes.items() if str(s) == "BLOCK")
    assert report.chosen["BLOCK"] == block
    return report.types


def simulated(kernel: KernelFunction, operands: Sequence[Any], folder: Path, **static: Any) -> object:
    assert len(tile.simulate(kernel, operands, **static)) == 2
    return tuple(p.type for p in simulation.placements(kernel, operands, **static) if not p.is_result)


def drawn(kernel: KernelFunction, operands: Sequence[Any], folder: Path, **static: Any) -> object:
    found = [item.text for item in tile.draw(kernel, operands, **static).scene.items if hasattr(item, "text")]
    assert "line" in " ".join(found)
    return (F32,)


def built(kernel: KernelFunction, operands: Sequence[Any], folder: Path, **static: Any) -> object:
    loaded = tile.load(tile.build(kernel, [operands], ["cpu"], folder, **static))
    np.testing.assert_array_equal(loaded(DOUBLE), kernel(*operands, **static))
    return loaded.signatures[0].operands


def compared(kernel: KernelFunction, operands: Sequence[Any], folder: Path, **static: Any) -> object:
    assert tile.compare(kernel, *operands, **static).is_equal
    return (F32,)


TOOLS = [tuned, simulated, drawn, built, compared]


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_take_the_types_that_a_call_makes(tool: Tool, tmp_path: Path) -> None:
    assert copied()(DOUBLE).dtype == dtypes.float32
    assert tool(copied(), [DOUBLE], tmp_path / "built") == (F32,)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("way", ["by position", "by name", "with a value"])
def test_tools_take_parameters_of_compilation(tool: Tool, way: str, tmp_path: Path) -> None:
    kernel = scaled(value=2) if way == "with a value" else scaled()
    operands = [2, DOUBLE] if way == "by position" else [DOUBLE]
    static = {"n": 2} if way == "by name" else {}
    np.testing.assert_array_equal(kernel(*operands, **static), 2 * DOUBLE)
    assert tool(kernel, operands, tmp_path / "built", **static) == (F32,)


def test_numbers_take_the_dtype_of_their_tensor_in_tools_too() -> None:
    line, shift = Tensor(1), Tensor(0, dtype=dtypes.float32)
    shifted = tile.kernel(blocks, tensors=(line, shift, Tensor(shape=line.shape)))(lambda line, by: line + by)
    np.testing.assert_array_equal(shifted(DOUBLE, 3), DOUBLE + 3)
    assert shifted.bind([DOUBLE, 3], {}).types == (F32, ArrayType((), dtypes.float32))
    assert tile.compare(shifted, DOUBLE, 3).is_equal
    assert shifted.tune(DOUBLE, 3, deterministic=True).types[1].dtype == dtypes.float32


def test_types_are_what_they_say_and_arrays_are_kept_when_they_are() -> None:
    double = ArrayType((300,), dtypes.float64)
    wide = copied(dtypes.float64)
    assert wide.bind([double], {}).types == (double,)
    assert copied().bind([inf.ShapeDtypeStruct((300,), "float64")], {}).types == (double,)
    with config.config(host64="keep"):
        assert wide.bind([DOUBLE], {}).types == (double,)
        assert wide.tune(DOUBLE, most=1).types == (double,)


def test_of_traced_arrays_types_are_enough_except_where_results_are_compared() -> None:
    kernel = copied()
    seen: list[Any] = []

    def traced(x: Any) -> Any:
        seen.append(kernel.tune(x, most=2).types)
        seen.append(simulation.placements(kernel, [x])[0].type)
        with pytest.raises(errors.UnsupportedError, match="compare runs a kernel"):
            tile.compare(kernel, x)
        return x

    inf.jit(traced)(DOUBLE)
    assert seen == [(F32,), F32]


def test_signatures_of_the_same_types_cannot_differ_in_parameters(tmp_path: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="same types and other parameters"):
        tile.build(scaled(), [[2, F32], [3, F32]], ["cpu"], tmp_path / "built")


def test_names_are_those_of_the_tensors_behind_a_parameter_of_compilation() -> None:
    kernel = scaled()
    assert [p.name for p in simulation.placements(kernel, [2, DOUBLE])] == ["line", "result"]
    body = kernel.specialize([F32], n=2).body
    assert body.params[0].hint == "line", text.print_program(body)


def test_every_tool_is_a_public_name() -> None:
    assert {"build", "compare", "draw", "load", "simulate"} <= set(tile.__all__)
    assert all(callable(getattr(tile, name)) for name in tile.__all__ if name != "arrangements")
    assert dir(tile) == sorted(tile.__all__)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown keyword": (
        lambda: scaled()(2, DOUBLE, m=3),
        "scaled takes no keyword argument 'm'\n.*expected: n\n",
    ),
    "operand as a keyword": (
        lambda: scaled()(2, line=DOUBLE),
        "'line'\n.*n\n.*operands are given by position",
    ),
    "unknown keyword of specialize": (lambda: copied().specialize([F32], m=3), "'m'\n.*expected: none"),
    "unhashable constant": (lambda: scaled()(DOUBLE, n=[2]), "n is a parameter of compilation.*\n.*'list'"),
    "unhashable keyword": (lambda: configured()(DOUBLE, mode=[2]), "mode is a constant.*\n.*list\n.*tuple"),
    "array as a keyword": (lambda: configured()(DOUBLE, mode=inf.numpy.ones(3)), "mode is a constant.*\n"),
    "missing keyword": (lambda: configured()(DOUBLE), "needs a value for mode"),
    "type in a call": (lambda: copied()(F32), r"copied computes with arrays.*\n.*f32\[300\]"),
    "type in compare": (lambda: tile.compare(copied(), F32), "compare computes with arrays"),
    "symbolic operand": (lambda: tile.draw(copied(), [Tensor(1)]), "operand 0 is symbolic"),
    "one operand, no list": (lambda: tile.simulate(copied(), DOUBLE), "simulate takes a list.*\n.*ndarray"),
    "one operand in build": (lambda: tile.build(copied(), [F32], ["cpu"], "x"), "signature 0 of build takes"),
    "compare of a function": (lambda: tile.compare(FUNCTION, DOUBLE), "compare takes a kernel"),
    "draw of a tensor": (lambda: tile.draw(LINE, [F32]), "draw takes a kernel"),
}


def configured() -> Any:
    line = Tensor(1)

    @tile.kernel(blocks, tensors=(line, Tensor(shape=line.shape)))
    def kernel(line: Any, *, mode: str) -> Any:
        return line if mode == "same" else -line

    return kernel


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_call_is_an_error_that_says_so(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(errors.TypeMismatchError, match=message):
        call()


@pytest.mark.parametrize(
    "wrong",
    [{"num_warps": 4.0}, {"num_warps": True}, {"num_stages": "2"}, {"BLOCK": 64.0}, {"BLOCK": "64"}],
    ids=str,
)
def test_a_configuration_is_of_integers(wrong: Any) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(
        errors.ValueMismatchError, match=rf"wrong value of {name}\n.*{re.escape(repr(value))}"
    ):
        copied().configure(**wrong)


def test_a_configuration_takes_integers_of_numpy() -> None:
    kernel = copied().configure(BLOCK=np.int64(64), num_warps=np.int32(2))
    assert (kernel.block_sizes, kernel.launch) == ({"BLOCK": 64}, (("num_warps", 2),))
    assert type(kernel.block_sizes["BLOCK"]) is int
