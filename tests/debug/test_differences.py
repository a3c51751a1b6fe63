"""`debug.compare`: a rule of an emitter that is deliberately wrong is found at its line of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infini import debug, lax, tile
from infini.backends.reference.interpreter import evaluate
from infini.compiler.llvm import lower, operations
from infini.compiler.triton import scalar
from infini.core import dtypes, errors, execute
from infini.core.ir import ArrayType
from infini.debug import differences, distances
from infini.tile import Tensor, block_size
from infini.tile.program import Kernel, interpret
from tests.tile import kernels

x = Tensor(2, name="x")


def rows(tensor: Tensor) -> Tensor:
    return tensor.tile((1, -1)).squeeze(1).squeeze(0, level=1)


@tile.kernel(lambda x, y: (rows(x), rows(y)), tensors=(x, Tensor(shape=x.shape)))
def shifted_tanh(row: Any) -> Any:
    largest = lax.reduce_max(row, (0,))
    away = lax.sub(row, lax.broadcast_in_dim(largest, row.shape, ()))
    curved = lax.tanh(away)  # tanh in a row
    doubled = lax.add(curved, curved)
    return lax.mul(doubled, row)


a = Tensor(2, name="a")
WIDTH = block_size(16, 64, name="WIDTH")


@tile.kernel(
    lambda a, y: (
        a.tile((1, WIDTH)).tile((1, -1)).squeeze(0, level=1).squeeze(1).squeeze(0, level=2),
        y.tile((1,)).squeeze(0, level=1),
    ),
    tensors=(a, Tensor(shape=a.shape[:1])),
)
def log_sum(parts: Any) -> Any:
    def step(total: Any, part: Any) -> tuple[Any, None]:
        grown = lax.exp(part)
        curved = lax.tanh(grown)  # tanh in a loop
        return lax.add(total, lax.reduce_sum(curved, (0,))), None

    total, _ = lax.scan(step, lax.full((), 0.0, "float32"), parts)
    return lax.log(total)


def line_of(comment: str) -> int:
    """The line of this file that ends with a comment."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.endswith(f"# {comment}"))


def forget() -> None:
    execute.clear_caches()
    for function in vars(lower).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture(autouse=True)
def no_executables() -> Iterator[None]:
    """Nothing that a wrong rule made stays."""
    forget()
    yield
    forget()


@pytest.fixture(params=["cpu", "triton"])
def way(request: Any) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    return str(request.param)


def break_tanh(monkeypatch: pytest.MonkeyPatch, above: float) -> None:
    """Make tanh a quarter where its operand is greater than a bound, in both emitters."""
    emit, weight = operations._TABLE["tanh"]

    def wrong(f: Any, dtype: Any, value: Any) -> Any:
        is_above = f.compare("ogt", value, f.constant(above, value.type))
        return f.select(is_above, f.constant(0.25, value.type), emit(f, dtype, value))

    monkeypatch.setitem(operations._TABLE, "tanh", (wrong, weight))
    rule = scalar.RULES["tanh"]
    monkeypatch.setitem(
        scalar.RULES,
        "tanh",
        lambda x, **options: f"tl.where({x} > {above}, 0.25, {rule(x, **options)})",
    )


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel", "shapes"),
    [
        (kernels.softmax, [(3, 37)]),
        (kernels.matmul.configure(BM=16, BN=16, BK=16), [(20, 40), (40, 18)]),
        (log_sum, [(3, 50)]),
    ],
    ids=["softmax", "matmul", "log_sum"],
)
def test_kernels_that_are_right_are_equal(kernel: Any, shapes: Any, way: str, rng: Any) -> None:
    found = debug.compare(kernel, *(normal(rng, *shape) for shape in shapes), on=way)
    assert found.is_equal and found.num_programs > 1
    assert "equals the interpreter" in str(found)


def test_a_wrong_rule_is_found_at_its_line(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_tanh(monkeypatch, -0.5)
    operand = np.full((4, 8), -3.0, np.float32)
    operand[:2] = np.nan  # whose rows are NaN in any case
    operand[2, 4] = operand[2, 6] = 1.0  # which the wrong rule sees as zeros
    found = debug.compare(shifted_tanh, operand, on=way).difference
    assert found is not None and found.kind == "statement" and "= tanh(" in found.statement
    assert found.where is not None and found.where.line == line_of("tanh in a row")
    assert found.program == (2,) and found.element == (4,) and found.step == ()
    assert found.found == np.float32(0.25) and found.expected == 0.0
    assert found.absolute == 0.25 and found.num_elements == 2


def test_a_wrong_rule_in_a_loop_is_found_at_its_step(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_tanh(monkeypatch, 1.5)
    operand = np.full((3, 100), -1.0, np.float32)
    operand[1, 70] = 1.0
    result = debug.compare(log_sum.configure(WIDTH=16), operand, on=way)
    found = result.difference
    assert found is not None and found.kind == "statement" and "= tanh(" in found.statement
    assert found.where is not None and found.where.line == line_of("tanh in a loop")
    assert (found.program, found.step, found.element) == ((1,), (4,), (6,))
    text = str(result)
    assert "curved = lax.tanh(grown)" in text and "program 1, step 4, element 6" in text
    assert "takes equal values and gives others" in text


def test_programs_are_numbered_as_arranged(monkeypatch: pytest.MonkeyPatch) -> None:
    break_tanh(monkeypatch, 1.5)
    cube = Tensor(3)
    curve = tile.kernel(
        lambda x, y: (x.tile((1, 1, -1)).squeeze(2).flatten().squeeze((0, 1), level=1), y),
        tensors=(cube, Tensor(shape=(cube.shape[0] * cube.shape[1],))),
    )(lambda row: lax.reduce_sum(lax.tanh(row), (0,)))
    operand = np.zeros((3, 4, 5), np.float32)
    operand[2, 1, 3] = 2.0
    found = debug.compare(curve, operand).difference
    assert found is not None and (found.program, found.element) == ((9,), (3,))


def test_a_tile_program_of_the_compiler_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    types = [ArrayType((4, 8), dtypes.float32)]
    operand = np.ones((4, 8), np.float32)
    assert debug.compare(shifted_tanh.specialize(types), operand).is_equal
    forget()
    break_tanh(monkeypatch, -0.5)
    found = debug.compare(shifted_tanh.specialize(types), operand).difference
    assert found is not None and "= tanh(" in found.statement


# --- faults that no statement has, by a stand-in for the compiled kernel -------------------------


Change = Callable[[Kernel, list[np.ndarray]], list[np.ndarray]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Sets what becomes of the results of the interpreter, which stands in for a compiled kernel."""

    def install(change: Change) -> None:
        def run(_: Any, __: Any, kernel: Kernel, arrays: Any) -> list[np.ndarray]:
            return change(kernel, list(interpret(kernel, arrays, evaluate)))

        monkeypatch.setattr(differences, "_run_compiled", run)

    return install


def is_probe(kernel: Kernel) -> bool:
    return kernel.name.endswith("_probe")


def test_a_fault_of_the_whole_kernel_alone_is_told_apart(compiled: Any, rng: Any) -> None:
    compiled(lambda kernel, found: found if is_probe(kernel) else [x + 1 for x in found])
    result = debug.compare(shifted_tanh, normal(rng, 3, 8))
    assert result.difference is not None and result.difference.kind == "kernel"
    assert "wrong in the whole kernel" in str(result) and "mul(" in str(result)


def test_a_fault_of_a_load_is_told_apart(compiled: Any, rng: Any) -> None:
    operand = normal(rng, 3, 8)

    def change(kernel: Kernel, found: list[np.ndarray]) -> list[np.ndarray]:
        return list(interpret(kernel, [operand + 1], evaluate))

    compiled(change)
    found = debug.compare(shifted_tanh, operand).difference
    assert found is not None and found.kind == "load" and "operand 0" in found.statement


def test_statements_that_cannot_be_compiled_alone_widen_the_answer(compiled: Any, rng: Any) -> None:
    def change(kernel: Kernel, found: list[np.ndarray]) -> list[np.ndarray]:
        names = [e.op.name for e in kernel.body.equations]
        if is_probe(kernel) and names and names[-1] == "tanh":
            raise errors.LoweringError("no code for tanh alone")
        return [x + 1 for x in found] if "tanh" in names else found

    compiled(change)
    found = debug.compare(shifted_tanh, normal(rng, 3, 8)).difference
    assert found is not None and found.kind == "statement"
    assert ["tanh(" in line or "add(" in line for line in found.statement.splitlines()] == [True, True]


def test_tolerances_decide_what_differs(compiled: Any) -> None:
    compiled(lambda kernel, found: [x * np.float32(1.01) for x in found])
    operand = np.full((2, 4), 2.0, np.float32)
    assert not debug.compare(shifted_tanh, operand + np.eye(2, 4, dtype=np.float32)).is_equal
    loose = debug.compare(shifted_tanh, operand + np.eye(2, 4, dtype=np.float32), rtol=0.05)
    assert loose.is_equal and loose.largest_distance > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_ulps_count_the_numbers_between(dtype: str) -> None:
    one = np.asarray(1.0, dtypes.canonical(dtype))
    above = (
        np.nextafter(one, np.asarray(2.0, one.dtype))
        if dtype != "bfloat16"
        else np.asarray(1.0078125, one.dtype)
    )
    assert distances.ulps(above, one) == 1 and distances.ulps(one, one) == 0
    assert distances.ulps(-one, one) == 2 * distances._ordered(one)
    assert distances.ulps(np.asarray(np.nan, one.dtype), one) is None


def test_users_of_kernels_find_it_under_tile() -> None:
    assert tile.compare is debug.compare and "compare" in dir(tile)


def test_an_unknown_platform_is_refused(rng: Any) -> None:
    with pytest.raises(errors.DeviceError):
        debug.compare(shifted_tanh, normal(rng, 2, 3), on="abacus")
