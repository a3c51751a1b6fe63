"""Names beside the arrays: the process's world, dtypes and types, segments and SciPy, against JAX. What JAX
gave for the programs is recorded by `names_table`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import errors, scipy
from tests.parity import names_table
from tests.parity.names_table import IDS, MATRIX, PROGRAMS, ROWS, TREE, Program

RECORDED = np.load(names_table.RECORDED)


def check(results: Any, name: str) -> None:
    found = names_table.flat(results)
    expected = [RECORDED[place] for place in RECORDED.files if place.rpartition("/")[0] == name]
    for x, y in zip(found, expected, strict=True):
        assert np.asarray(x).dtype == y.dtype and np.shape(x) == y.shape
        np.testing.assert_allclose(np.asarray(x), y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_equal_those_of_jax(name: str) -> None:
    check(PROGRAMS[name](inf, inp, scipy), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_jax_still_gives_what_is_recorded(name: str) -> None:
    check(PROGRAMS[name](jax, jnp, jsp), name)


QUESTIONS: dict[str, Program] = {
    "default_backend": lambda lib, np_, sp: lib.default_backend(),
    "process_index": lambda lib, np_, sp: (lib.process_index(), lib.process_count(), lib.process_indices()),
    "keys are arrays": lambda lib, np_, sp: isinstance(lib.random.key(0), lib.Array),
    "keys are ndarrays": lambda lib, np_, sp: isinstance(lib.random.key(0), np_.ndarray),
    "numbers are no arrays": lambda lib, np_, sp: isinstance(2.0, lib.Array),
    "tracers are arrays": lambda lib, np_, sp: traced(lib, lambda x: isinstance(x, lib.Array)),
    "typeof": lambda lib, np_, sp: str(lib.typeof(np_.ones((2, 3)))),
    "typeof of a number": lambda lib, np_, sp: (lib.typeof(1.0).shape, lib.typeof(1.0).weak_type),
    "typeof of a key": lambda lib, np_, sp: str(lib.typeof(lib.random.split(lib.random.key(0), 3))),
    "kinds of keys": lambda lib, np_, sp: (
        lib.dtypes.issubdtype(lib.random.key(0).dtype, lib.dtypes.prng_key),
        np_.issubdtype(lib.random.key(0).dtype, lib.dtypes.extended),
        np_.issubdtype(np.float32, lib.dtypes.prng_key),
        np_.issubdtype(np.float32, np_.floating),
    ),
    "canonicalize_dtype": lambda lib, np_, sp: [
        str(lib.dtypes.canonicalize_dtype(t)) for t in (int, float, "bfloat16")
    ],
    "scalar_type_of": lambda lib, np_, sp: [
        lib.dtypes.scalar_type_of(x) for x in (1.0, np.int8(2), True, 1j)
    ],
    "weak flags of complex derivatives": lambda lib, np_, sp: (
        [lib.grad(f)(1 + 2j).weak_type for f in (np_.abs, np_.real, lambda x: np_.abs(np_.exp(x)) ** 2)]
        + [lib.grad(lambda x: x * x, holomorphic=True)(1 + 2j).weak_type]
    ),
}


def traced(lib: Any, question: Callable[[Any], bool]) -> bool:
    answers = []
    lib.jit(lambda x: answers.append(question(x)))(1.0)
    return answers[0]


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_equal_those_of_jax(name: str) -> None:
    assert QUESTIONS[name](inf, inp, scipy) == QUESTIONS[name](jax, jnp, jsp)


def test_default_device_holds_for_a_block() -> None:
    other = inf.devices("reference")[0]
    with inf.default_device(other):
        assert inp.ones(1).devices() == {other}
    with inf.default_device("cpu"):
        assert inf.default_backend() == "cpu"
    with pytest.raises(errors.DeviceError), inf.default_device("cpu:99"):
        pass
    assert inf.device_count() == len(inf.devices()) and inf.local_device_count("cpu") >= 1


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "segments while tracing": (lambda: inf.jit(inf.ops.segment_sum)(ROWS, IDS), errors.ConcretizationError),
    "negative segments": (lambda: inf.ops.segment_sum(ROWS, IDS, -1), ValueError),
    "typeof of a text": (lambda: inf.typeof("a"), TypeError),
    "size of a vector": (lambda: inf.flatten_util.ravel_pytree(TREE)[1](np.ones(3, np.float32)), ValueError),
    "dtype of a vector": (lambda: inf.flatten_util.ravel_pytree(TREE)[1](inp.ones(7, "float16")), TypeError),
    "order of polygamma": (lambda: scipy.special.polygamma(1.5, 1.0), ValueError),
    "method": (
        lambda: inf.random.multivariate_normal(inf.random.key(0), ROWS[:3], MATRIX, method="x"),
        ValueError,
    ),
    "orthogonal vector": (lambda: inf.nn.initializers.orthogonal()(inf.random.key(0), (3,)), ValueError),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_errors_of_four_parts(name: str) -> None:
    action, kind = MISTAKES[name]
    with pytest.raises(kind) as caught:
        action()
    assert isinstance(caught.value, inf.InfiniError)
