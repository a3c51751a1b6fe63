"""Keys and samplers by themselves: known bits, moments, ranges, and refusals. The streams are compared in
tests/parity."""

from __future__ import annotations

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import random
from infini.core import errors


def test_the_cipher_gives_the_published_words() -> None:
    """Known answers of Threefry-2x32 with 20 rounds, from the authors' Random123 distribution
    (kat_vectors)."""
    from infini.lax import random_bits

    rows = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, expected in rows:
        words = random_bits.threefry2x32(*(inp.uint32(word) for word in (*key, *counter)))
        assert tuple(int(word) for word in words) == expected


def test_a_key_is_two_words() -> None:
    assert random.PRNGKey(7).tolist() == [0, 7]
    assert random.key_data(random.key(7)).tolist() == [0, 7]


def test_raw_and_typed_keys_draw_the_same() -> None:
    assert random.normal(random.key(3), (4,)).tolist() == random.normal(random.PRNGKey(3), (4,)).tolist()
    wrapped = random.wrap_key_data(random.PRNGKey(3))
    assert random.bits(wrapped).tolist() == random.bits(random.PRNGKey(3)).tolist()


def test_typed_keys_behave_as_arrays_of_keys() -> None:
    keys = random.split(random.key(0), 6).reshape(2, 3)
    assert keys.shape == (2, 3) and keys.size == 6 and len(keys) == 2
    assert random.key_data(keys[1, 2]).tolist() == random.split(random.PRNGKey(0), 6)[5].tolist()
    assert [key.shape for key in keys] == [(3,), (3,)]


def test_typed_keys_are_pytrees() -> None:
    draw = infini.jit(lambda key: random.split(key)[0])
    assert random.key_data(draw(random.key(1))).tolist() == random.split(random.PRNGKey(1))[0].tolist()


def test_the_stream_does_not_depend_on_vmap() -> None:
    keys = random.split(random.PRNGKey(0), 5)
    together = infini.vmap(lambda key: random.normal(key, (3,)))(keys)
    alone = np.stack([np.asarray(random.normal(key, (3,))) for key in keys])
    np.testing.assert_array_equal(np.asarray(together), alone)


def test_a_prefix_of_a_larger_draw_is_the_smaller_draw() -> None:
    key = random.PRNGKey(0)
    assert random.bits(key, (10,))[:4].tolist() == random.bits(key, (4,)).tolist()


def test_split_keys_differ() -> None:
    words = np.asarray(random.split(random.PRNGKey(0), 1000))
    assert len({tuple(row) for row in words}) == 1000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_uniform_floats_lie_in_their_range(dtype: str) -> None:
    x = np.asarray(random.uniform(random.PRNGKey(0), (10000,), dtype, -2, 3)).astype(np.float64)
    assert x.min() >= -2 and x.max() <= 3
    assert abs(x.mean() - 0.5) < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_of_the_normal_distribution(dtype: str) -> None:
    x = np.asarray(random.normal(random.PRNGKey(1), (100, 300), dtype)).astype(np.float64)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    # A uniform bfloat16 is one of 128 numbers, so its tails end early.
    assert abs((x**4).mean() - 3) < (0.15 if dtype == "float32" else 0.3)
    assert np.isfinite(x).all()


def test_truncated_normal_stays_inside() -> None:
    x = np.asarray(random.truncated_normal(random.PRNGKey(1), -0.1, 0.2, (5000,)))
    assert (x > -0.1).all() and (x < 0.2).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_truncated_normal_takes_infinite_bounds(dtype: str) -> None:
    x = np.asarray(random.truncated_normal(random.PRNGKey(1), 1.5, inp.inf, (5000,), dtype), np.float64)
    assert np.isfinite(x).all() and (x > 1.5).all()
    assert abs(x.mean() - 1.9387) < 0.03  # density at 1.5 over what is above


def test_integers_cover_their_range_evenly() -> None:
    counts = np.bincount(np.asarray(random.randint(random.PRNGKey(2), (60000,), 0, 6)), minlength=6)
    assert counts.sum() == 60000 and abs(counts - 10000).max() < 400


def test_categorical_follows_the_probabilities() -> None:
    p = np.array([0.1, 0.6, 0.3], np.float32)
    drawn = random.categorical(random.PRNGKey(3), inp.log(p), shape=(20000,))
    np.testing.assert_allclose(np.bincount(np.asarray(drawn), minlength=3) / 20000, p, atol=0.02)


def test_permutation_keeps_the_elements() -> None:
    order = np.asarray(random.permutation(random.PRNGKey(4), 1000))
    assert sorted(order) == list(range(1000)) and not (order == np.arange(1000)).all()


def test_choice_without_replacement_draws_no_element_twice() -> None:
    drawn = np.asarray(random.choice(random.PRNGKey(5), 50, (50,), replace=False))
    assert len(set(drawn.tolist())) == 50


def test_normal_samples_have_no_derivative_and_leave_others_alone() -> None:
    def loss(x):
        return (x * random.normal(random.PRNGKey(0), (3,))).sum()

    np.testing.assert_array_equal(
        np.asarray(infini.grad(loss)(inp.ones(3))), np.asarray(random.normal(random.PRNGKey(0), (3,)))
    )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda k: random.uniform("key"), TypeError),
        (lambda k: random.uniform(inp.zeros(2)), TypeError),
        (lambda k: random.normal(random.split(k, 3)), ValueError),
        (lambda k: random.uniform(k, dtype="int32"), ValueError),
        (lambda k: random.bits(k, dtype="int32"), ValueError),
        (lambda k: random.randint(k, (), 0, 5, "float32"), TypeError),
        (lambda k: random.uniform(k, (2,), minval=inp.zeros(3)), ValueError),
        (lambda k: random.bernoulli(k, 1), TypeError),
        (lambda k: random.gumbel(k, mode="best"), ValueError),
        (lambda k: random.choice(k, 3, (5,), replace=False), ValueError),
        (lambda k: random.PRNGKey(1.5), TypeError),
        (lambda k: random.PRNGKey(1, impl="rbg"), ValueError),
        (lambda k: random.fold_in(k, -1), OverflowError),
        (lambda k: random.normal(k, (1 << 17, 1 << 16)), ValueError),
    ],
)
def test_refusals_say_what_was_expected(call, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        call(random.PRNGKey(0))
    assert isinstance(caught.value, errors.InfiniError)
