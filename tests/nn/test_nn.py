"""Activations, attention and losses against NumPy, and what derivatives they have at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import nn
from infini.core import errors
from infini.testing import tolerances

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 7)).astype(np.float32)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    grown = np.exp(x - x.max(axis, keepdims=True))
    return grown / grown.sum(axis, keepdims=True)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_and_its_logarithm(axis: int) -> None:
    tolerances.assert_close(nn.softmax(X * 50, axis), softmax(X * 50, axis))
    tolerances.assert_close(nn.log_softmax(X, axis), np.log(softmax(X, axis)))


def test_logsumexp_neither_overflows_nor_turns_infinities_into_nan() -> None:
    assert float(nn.logsumexp(inp.asarray([1e4, 1e4]))) == pytest.approx(1e4 + math.log(2))
    assert float(nn.logsumexp(inp.asarray([-inp.inf, -inp.inf]))) == -inp.inf
    assert float(nn.logsumexp(inp.asarray([inp.inf, 1.0]))) == inp.inf


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu(approximate: bool) -> None:
    exact = X * np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(X)
    np.testing.assert_allclose(np.asarray(nn.gelu(X, approximate)), exact, atol=1e-3 if approximate else 1e-6)


def test_relu_keeps_nan_and_has_derivative_zero_at_zero() -> None:
    assert np.isnan(float(nn.relu(inp.nan)))
    assert infini.vmap(infini.grad(nn.relu))(inp.asarray([-1.0, 0.0, 2.0])).tolist() == [0, 0, 1]


def test_derivatives_of_branches_that_are_not_taken_do_not_leak() -> None:
    for f in (nn.elu, nn.selu, nn.celu, nn.softplus, nn.log_sigmoid, nn.silu):
        slopes = np.asarray(infini.vmap(infini.grad(f))(inp.asarray([-200.0, 200.0])))
        assert np.isfinite(slopes).all(), f


def test_one_hot_of_numbers_outside_is_zero() -> None:
    assert nn.one_hot(inp.asarray([0, 2, 5, -1]), 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_cross_entropy() -> None:
    labels = np.array([0, 6, 3])
    expected = -np.log(softmax(X))[np.arange(3), labels]
    tolerances.assert_close(nn.losses.cross_entropy(X, labels), expected)


def test_cross_entropy_of_16_bit_logits_is_computed_in_float32() -> None:
    loss = nn.losses.cross_entropy(inp.asarray(X, "bfloat16"), np.array([0, 6, 3]))
    assert loss.dtype == inp.float32


def test_gradient_of_cross_entropy_is_probabilities_less_one_hot() -> None:
    labels = np.array([0, 6, 3])
    found = infini.grad(lambda x: nn.losses.cross_entropy(x, labels).sum())(inp.asarray(X))
    tolerances.assert_close(found, softmax(X) - np.eye(7, dtype=np.float32)[labels], "reduction")


def test_cross_entropy_refuses_labels_that_do_not_fit() -> None:
    with pytest.raises(errors.TypeMismatchError, match="labels"):
        nn.losses.cross_entropy(X, np.zeros(4, np.int32))
    with pytest.raises(errors.TypeMismatchError, match="labels"):
        nn.losses.cross_entropy(X, np.zeros(3, np.float32))


def test_mse() -> None:
    tolerances.assert_close(nn.losses.mse(X, np.zeros_like(X)), X**2)
    tolerances.assert_close(nn.losses.mse(X, np.zeros_like(X), reduction="mean"), (X**2).mean(), "reduction")


# --- attention: B 2, T 5, S 6, N 4, K 2, H 8 ---

Q = RNG.standard_normal((2, 5, 4, 8)).astype(np.float32)
K, V = (RNG.standard_normal((2, 6, 2, 8)).astype(np.float32) for _ in range(2))
BIAS = RNG.standard_normal((2, 4, 5, 6)).astype(np.float32)
MASK = RNG.integers(0, 2, (2, 1, 5, 6)).astype(bool)
MASK[..., 0] = True


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: object = 0.0, mask: object = True
) -> np.ndarray:
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1]) + bias
    return np.einsum("bnts,bsnh->btnh", softmax(np.where(mask, scores, -np.inf)), v)


CAUSAL = np.tri(5, 6, dtype=bool)
BAND = (np.arange(5)[:, None] - np.arange(6) <= 1) & (np.arange(6) - np.arange(5)[:, None] <= 2)


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({}, {}),
        ({"bias": BIAS}, {"bias": BIAS}),
        ({"mask": MASK}, {"mask": MASK}),
        ({"is_causal": True}, {"mask": CAUSAL}),
        ({"is_causal": True, "mask": MASK}, {"mask": CAUSAL & MASK}),
        ({"local_window_size": (1, 2)}, {"mask": BAND}),
        (
            {"key_value_seq_lengths": np.array([6, 3])},
            {"mask": np.arange(6) < np.array([6, 3])[:, None, None, None]},
        ),
    ],
    ids=str,
)
def test_attention(options: dict, oracle: dict) -> None:
    tolerances.assert_close(
        nn.dot_product_attention(Q, K, V, **options), attention(Q, K, V, **oracle), "contraction"
    )


def test_attention_without_a_batch_dimension() -> None:
    tolerances.assert_close(nn.dot_product_attention(Q[0], K[0], V[0]), attention(Q, K, V)[0], "contraction")


def test_attention_gives_zeros_beyond_the_queries() -> None:
    result = np.asarray(nn.dot_product_attention(Q, K, V, query_seq_lengths=np.array([5, 2])))
    assert (result[1, 2:] == 0).all() and (result[1, :2] != 0).any()


def test_attention_of_16_bit_floats_is_close_to_that_of_32() -> None:
    narrow = nn.dot_product_attention(*(inp.asarray(x, "bfloat16") for x in (Q, K, V)))
    assert narrow.dtype == inp.bfloat16
    np.testing.assert_allclose(np.asarray(narrow, np.float32), attention(Q, K, V), atol=0.03)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"implementation": "cudnn"}, ValueError),
        ({"mask": BIAS}, TypeError),
        ({"local_window_size": -1}, ValueError),
    ],
    ids=str,
)
def test_attention_refuses_what_it_does_not_know(options: dict, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        nn.dot_product_attention(Q, K, V, **options)
    assert isinstance(caught.value, errors.InfiniError)


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(errors.TypeMismatchError, match="K divides N"):
        nn.dot_product_attention(Q[:, :, :3], K, V)
