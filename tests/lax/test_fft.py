"""`lax.fft`: the route, every size, many tasks, transformations, sharding and mistakes. Small cases of every
dtype are in the oracle tests, comparisons with JAX in the parity tests."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import errors, lax
from infini.backends import coverage
from infini.backends.cpu import libraries
from infini.compiler import partition
from infini.compiler.llvm import fourier
from infini.core.ir import ArrayType, Attrs
from infini.core.mesh import AbstractMesh
from infini.sharding import Mesh, NamedSharding, P
from infini.testing import assert_close, check_grads

KINDS = ("fft", "ifft", "rfft", "irfft")


def drawn(
    rng: np.random.Generator, kind: str, loop: tuple[int, ...], *lengths: int, wide: bool = False
) -> Any:
    """An operand of a transform of these sizes."""
    shape = (*loop, *lengths[:-1], lengths[-1] // 2 + 1) if kind == "irfft" else (*loop, *lengths)
    x = rng.standard_normal(shape)
    if kind != "rfft":
        x = x + 1j * rng.standard_normal(shape)
    names = ("float64", "complex128") if wide else ("float32", "complex64")
    return x.astype(names[kind != "rfft"])


def expected(kind: str, x: np.ndarray, *lengths: int) -> np.ndarray:
    return getattr(np.fft, f"{kind}n")(x, lengths, tuple(range(-len(lengths), 0)))


def on_device(x: np.ndarray) -> Any:
    with inf.config(host64="keep"):
        return inf.device_put(x)


def test_the_cpu_says_that_a_library_computes_it() -> None:
    (row,) = coverage.table(["cpu", "reference"], "fft", every_example=True)
    assert set(row.routes["cpu"].values()) == {"library"}
    assert set(row.routes["reference"].values()) == {"own"}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_equals_numpy(kind: str, wide: bool, rng: np.random.Generator) -> None:
    for n in (1, 2, 3, 4, 7, 12, 17, 64, 360, 1009):
        x = drawn(rng, kind, (3,), n, wide=wide)
        found = lax.fft(on_device(x), kind, (n,))
        wanted = expected(kind, x, n)
        assert found.dtype == wanted.dtype
        assert_close(np.asarray(found) / math.sqrt(n), wanted / math.sqrt(n), "contraction")


@pytest.mark.parametrize("lengths", [(4, 6), (3, 5), (1, 1), (4, 1, 3), (5, 4, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_several_dimensions_equal_numpy(
    kind: str, lengths: tuple[int, ...], rng: np.random.Generator
) -> None:
    for loop in ((), (0,), (2, 3)):
        x = drawn(rng, kind, loop, *lengths)
        assert_close(lax.fft(inp.asarray(x), kind, lengths), expected(kind, x, *lengths), "contraction")


@pytest.mark.parametrize(
    ("loop", "lengths"),
    [
        ((300,), (256,)),
        ((2,), (1 << 16,)),
        ((90,), (24, 30)),
        ((1,), (96, 1500)),
        ((3,), (7, 3000)),
        ((), (64, 9, 170)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_many_tasks_make_one_transform(
    kind: str, loop: tuple[int, ...], lengths: tuple[int, ...], rng: np.random.Generator
) -> None:
    x = drawn(rng, kind, loop, *lengths)
    type_ = ArrayType(x.shape, x.dtype)
    attrs = Attrs({"fft_type": kind, "fft_lengths": lengths})
    assert max(task.num_tasks for task in fourier.fft((type_,), attrs, None)) > 1  # type: ignore[arg-type]
    found, wanted = np.asarray(lax.fft(inp.asarray(x), kind, lengths)), expected(kind, x, *lengths)
    scale = np.abs(wanted).max()
    assert_close(found / scale, wanted / scale, "contraction")


def test_a_transform_is_alone_and_copies_nothing() -> None:
    x = inp.ones((8, 32), dtype="complex64")
    compiled = inf.jit(lambda x: lax.fft(x, "fft", (32,))).lower(x).compile()
    assert "kernel" not in compiled.as_text("kernels")
    assert compiled.cost_analysis()["copied bytes"] == 0


def test_transforms_of_one_program_follow_each_other(rng: np.random.Generator) -> None:
    x = drawn(rng, "rfft", (6,), 40)

    @inf.jit
    def filtered(x: Any) -> Any:
        spectrum = lax.fft(x, lax.FftType.RFFT, (40,))
        return lax.fft(spectrum * inp.exp(-inp.arange(21.0)), lax.FftType.IRFFT, (40,))

    wanted = np.fft.irfft(np.fft.rfft(x) * np.exp(-np.arange(21.0)), 40)
    assert_close(filtered(x), wanted.astype(np.float32), "contraction")


def test_transforms_in_a_loop(rng: np.random.Generator) -> None:
    x = drawn(rng, "fft", (), 12)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        carry = lax.fft(carry, "fft", (12,)) / math.sqrt(12)
        return carry, carry.real

    found, rows = inf.jit(lambda x: lax.scan(step, x, None, length=4))(x)
    assert_close(found, x, "contraction")  # four times is the identity
    assert_close(rows[1], np.roll(x[::-1], 1).real, "contraction")


@pytest.mark.parametrize("lengths", [(6,), (5,), (1,), (2,), (3, 4), (2, 3, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_equal_differences(kind: str, lengths: tuple[int, ...], rng: np.random.Generator) -> None:
    x = on_device(drawn(rng, kind, (2,), *lengths, wide=True))
    with inf.config(host64="keep"):
        check_grads(lambda x: lax.fft(x, kind, lengths), (x,), order=1)
        check_grads(lambda x: lax.fft(x, kind, lengths) ** 3, (x,), order=2)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_equals_a_loop(kind: str, rng: np.random.Generator) -> None:
    x = drawn(rng, kind, (3, 4), 6)
    found = inf.vmap(lambda x: lax.fft(x, kind, (6,)), in_axes=1, out_axes=1)(x)
    rows = [np.asarray(lax.fft(x[:, i], kind, (6,))) for i in range(4)]
    assert_close(found, np.stack(rows, 1), "contraction")


@pytest.mark.parametrize("spec", [P("x"), P("x", "y"), P(None, None, "x"), P("y", None, "x")])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_on_devices_make_the_same_transform(kind: str, spec: P, rng: np.random.Generator) -> None:
    with inf.config(cpu_devices=4):
        mesh = Mesh(np.array(inf.devices()[:4]).reshape(2, 2), ("x", "y"))
        x = drawn(rng, kind, (4, 2), 6)  # the half of a spectrum has four elements
        placed = inf.device_put(x, NamedSharding(mesh, spec))
        found = inf.jit(lambda x: lax.fft(x, kind, (6,)))(placed)
        assert_close(found, expected(kind, x, 6), "contraction")


@pytest.mark.parametrize(("spec", "expected"), [(("x",), []), ((None, "x"), ["all_gather"])])
def test_only_a_split_transformed_dimension_is_gathered(spec: Any, expected: list[str]) -> None:
    mesh = AbstractMesh(("x",), (4,))
    program = inf.make_jaxpr(lambda x: lax.fft(x, "rfft", (8,)))(inp.ones((8, 8)))
    found = partition.partition(program, mesh, [spec])
    assert [collective.name for collective in found.collectives] == expected


def test_the_cost_is_five_n_log_n() -> None:
    x = inp.ones((3, 64), dtype="complex64")
    flops = inf.jit(lambda x: lax.fft(x, "fft", (64,))).lower(x).compile().cost_analysis()["flops"]
    assert flops == 3 * 5 * 64 * 6


def test_without_dimensions_the_operand_is_converted() -> None:
    x = inp.arange(3)
    assert lax.fft(x, "fft", ()).dtype == "complex64"
    assert lax.fft(x, "rfft", ()).dtype == "float32"


def test_numbers_that_are_not_finite_stay_in_their_line() -> None:
    x = np.ones((9, 8), np.float32)
    x[4, 2] = np.nan
    found = np.isnan(np.asarray(lax.fft(x, "rfft", (8,)))).any(1)
    assert found.tolist() == [False] * 4 + [True] + [False] * 4


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "sizes": (lambda: lax.fft(inp.ones(4), "fft", (5,)), ValueError, r"last dimensions \[5\]"),
    "half sizes": (lambda: lax.fft(inp.ones(4), "irfft", (8,)), ValueError, r"last dimensions \[5\]"),
    "too many": (lambda: lax.fft(inp.ones((1,) * 4), "fft", (1,) * 4), ValueError, "1 to 3 dimensions"),
    "too few": (lambda: lax.fft(inp.ones(4), "fft", (1, 4)), ValueError, "1 to 3 dimensions"),
    "complex": (lambda: lax.fft(inp.ones(4) * 1j, "rfft", (4,)), ValueError, "real numbers only"),
    "narrow": (lambda: lax.fft(inp.ones(4, "bfloat16"), "rfft", (4,)), ValueError, "not take this dtype"),
    "name": (lambda: lax.fft(inp.ones(4), "dct", (4,)), ValueError, "fft, ifft, rfft, irfft"),
    "kind": (lambda: lax.fft(inp.ones(4), 2.5, (4,)), TypeError, "no kind of Fourier transform"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_say_what_is_wrong(name: str) -> None:
    call, kind, text = MISTAKES[name]
    with pytest.raises(kind, match=text):
        call()


def test_a_numpy_with_other_functions_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: str) -> object:
        return object()

    libraries.transform_symbols.cache_clear()
    monkeypatch.setattr(importlib, "import_module", other)
    with pytest.raises(errors.LoweringError, match="INFINI_DEVICE=reference"):
        libraries.addresses(["declare void @numpy_fft_fft_s(ptr, ptr, ptr, ptr)"])


def test_gpus_have_a_route_of_their_own() -> None:
    (row,) = coverage.table(["cuda"], "fft")
    assert set(row.routes["cuda"].values()) == {"own"}
