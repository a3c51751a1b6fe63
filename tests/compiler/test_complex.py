"""Complex arrays on the cpu backend, against NumPy: what the oracle tests of operations do not reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax


@pytest.fixture
def z(rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_normal((4, 6)) + 1j * rng.standard_normal((4, 6))).astype(np.complex64)


def test_a_scan_carries_complex_numbers(z: np.ndarray) -> None:
    def step(carry: Any, x: Any) -> Any:
        return carry * x + 1j, lax.real(carry)

    carry, ys = inf.jit(lambda xs: lax.scan(step, inp.ones(6, "complex64"), xs))(z)
    expected, rows = np.ones(6, np.complex64), []
    for x in z:
        rows.append(expected.real)
        expected = (expected * x + 1j).astype(np.complex64)
    np.testing.assert_allclose(carry, expected, rtol=1e-5)
    np.testing.assert_allclose(ys, rows, rtol=1e-5)


def test_a_while_loop_and_a_branch_over_complex_numbers(z: np.ndarray) -> None:
    def escape(c: Any) -> Any:
        return lax.while_loop(
            lambda s: (s[1] < 50) & (lax.abs(s[0]) < 2), lambda s: (s[0] * s[0] + c, s[1] + 1), (c * 0, 0)
        )[1]

    def count(c: complex) -> int:
        x, n = 0j, 0
        while n < 50 and abs(x) < 2:
            x, n = x * x + c, n + 1
        return n

    points = [0.3 + 0.5j, -1.0 + 0.0j, 1.0 + 1.0j]
    found = inf.jit(inf.vmap(escape))(np.array(points, np.complex64))
    assert found.tolist() == [count(c) for c in points]
    swap = inf.jit(lambda p, x: lax.cond(p, lambda y: lax.conj(y), lambda y: y * 2, x))
    np.testing.assert_array_equal(swap(True, z), z.conj())
    np.testing.assert_array_equal(swap(False, z), z * 2)


def test_reading_outside_gives_nan_without_an_imaginary_part(z: np.ndarray) -> None:
    found = np.asarray(inp.asarray(z).at[7].get(mode="fill"))
    assert np.isnan(found.real).all() and (found.imag == 0).all()


def test_a_complex_carry_is_updated_in_place(z: np.ndarray) -> None:
    def turn(carry: Any, _: Any) -> Any:
        return carry * 1j, None

    compiled = inf.jit(lambda x: lax.scan(turn, x, None, length=4)[0]).lower(z).compile()
    np.testing.assert_allclose(compiled(z), z, rtol=1e-6)
    # One copy of each part goes into the loop, none is made inside it.
    assert compiled.cost_analysis()["copied bytes"] <= 2 * z.nbytes


def test_constants_and_empty_arrays() -> None:
    weights = np.array([1 + 2j, 3 - 1j], np.complex64)
    np.testing.assert_array_equal(inf.jit(lambda x: x * weights)(weights), weights * weights)
    assert inf.jit(lambda x: x + 1j)(np.zeros((0, 3), np.complex64)).shape == (0, 3)


def test_quotients_do_not_overflow_where_the_result_does_not() -> None:
    x = np.array([1e30 + 1e30j, 1e-30 + 1e-30j], np.complex64)
    np.testing.assert_allclose(inf.jit(lambda x: x / x)(x), np.ones(2), rtol=1e-6)


def test_real_parts_of_a_product_fuse_into_one_kernel(z: np.ndarray) -> None:
    compiled = inf.jit(lambda x, y: x * y + lax.conj(x)).lower(z, z).compile()
    assert compiled.cost_analysis()["kernels"] == 1
