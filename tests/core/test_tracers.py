"""Errors around tracers: values that are not known yet, and values that outlive their transformation."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import errors, lax

LINES = Path(__file__).read_text().splitlines()
X = np.arange(3, dtype=np.float32)
I = np.int32(1)

# What Python does with the value, an argument, the error, and a word of the way out.
ASKING = {
    "bool": (lambda x: 1 if x[0] > 0 else 2, X, errors.TracerBoolConversionError, "lax.cond"),
    "while": (lambda i: list(iter(lambda: bool(i), 0)), I, errors.TracerBoolConversionError, "while_loop"),
    "in": (lambda x: 1.0 in x, X, errors.TracerBoolConversionError, "where"),
    "max": (lambda x: max(x), X, errors.TracerBoolConversionError, "where"),
    "int": (lambda i: int(i), I, errors.ConcretizationTypeError, "astype"),
    "float": (lambda i: float(i), I, errors.ConcretizationTypeError, "astype"),
    "complex": (lambda i: complex(i), I, errors.ConcretizationTypeError, "astype"),
    "math": (lambda i: math.sqrt(i), I, errors.ConcretizationTypeError, "infini.numpy instead of math"),
    "index": (lambda i: [1, 2, 3][i], I, errors.TracerIntegerConversionError, "index an infini array"),
    "range": (lambda i: list(range(i)), I, errors.TracerIntegerConversionError, "fori_loop"),
    "size": (lambda i: inp.zeros(i), I, TypeError, "static_argnums"),
    "numpy": (lambda x: np.sin(x), X, errors.TracerArrayConversionError, "infini.numpy"),
    "asarray": (lambda x: np.asarray(x), X, errors.TracerArrayConversionError, "infini.numpy"),
    "item": (lambda i: i.item(), I, errors.ConcretizationTypeError, "outside"),
    "tolist": (lambda x: x.tolist(), X, errors.ConcretizationTypeError, "outside"),
    "tobytes": (lambda x: x.tobytes(), X, errors.ConcretizationTypeError, "outside"),
    "format": (lambda x: f"{x[0]:.2f}", X, TypeError, "debug.print"),
    "hash": (lambda x: {x: 1}, X, TypeError, "static_argnums"),
    "mask": (lambda x: x[x > 0], X, errors.NonConcreteBooleanIndexError, "where"),
    "bounds": (lambda i: inp.asarray(X)[:i], I, IndexError, "dynamic_slice"),
}  # fmt: skip
TRANSFORMS = {
    "jit": lambda f, x: inf.jit(f)(x),
    "scan": lambda f, x: lax.scan(lambda c, _: (c, f(x + c)), 0 * x, None, length=2),
    "jit of grad": lambda f, x: inf.jit(inf.grad(lambda v: (f(v.astype(x.dtype)), v.sum())[1]))(x * 1.0),
    "vmap": lambda f, x: inf.vmap(f)(inp.stack([inp.asarray(x)] * 2)),
}


@pytest.mark.parametrize("asking", ASKING)
def test_a_value_that_is_not_known_yet_is_named_with_the_line_and_a_way_out(asking):
    function, argument, error, fix = ASKING[asking]
    with pytest.raises(error) as raised:
        inf.jit(function)(argument)
    shown = raised.value
    assert isinstance(shown, errors.InfiniError) and fix in shown.fix
    assert shown.where.file == __file__ and f'    "{asking}": ' in LINES[shown.where.line - 1]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("asking", ["int", "numpy"])
def test_every_transformation_hides_values(transform, asking):
    function, argument, error, _ = ASKING[asking]
    if transform == "jit of grad" and asking == "int":
        argument = np.float32(1)
    with pytest.raises(error):
        TRANSFORMS[transform](function, argument)


def test_values_are_known_under_grad_outside_jit():
    assert inf.grad(lambda x: x * 2 if x > 0 else x * 3)(1.0) == 2.0


def test_the_argument_behind_a_value_is_named():
    with pytest.raises(
        TypeError, match=r"array 1 among the arguments of loss \(jit, called at test_tracers.py:\d+\)"
    ):

        @inf.jit
        def loss(x, y):
            return int(y)

        loss(1.0, 2.0)


def test_an_array_of_several_elements_is_ambiguous_before_it_is_unknown():
    with pytest.raises(ValueError, match="ambiguous"):
        inf.jit(lambda x: bool(x > 0))(X)


def test_copies_of_tracers_are_tracers_of_the_same_value():
    assert inf.jit(lambda x: copy.copy(x) + copy.deepcopy(x))(1.5) == 3.0


def test_weakness_changes_on_a_copy():
    def function(x):
        strong = x.with_weak(False)
        assert (x.weak, strong.weak, strong.born, strong.owner) == (True, False, x.born, x.owner)
        return strong

    assert not inf.jit(function)(1.0).weak


def test_names_of_jax():
    theirs = {
        "ConcretizationTypeError", "KeyReuseError", "NonConcreteBooleanIndexError", "UnexpectedTracerError",
        "TracerArrayConversionError", "TracerBoolConversionError", "TracerIntegerConversionError",
        "JAXIndexError", "JAXTypeError",
    }  # fmt: skip
    assert theirs <= set(dir(errors))
    assert issubclass(errors.UnexpectedTracerError, TypeError) and issubclass(errors.KeyReuseError, TypeError)


# --- leaks ----------------------------------------------------------------------------------------

STORE = []


@pytest.fixture(autouse=True)
def empty_store():
    STORE.clear()
    yield
    STORE.clear()


def keep(x):
    STORE.append(x * 2)
    return x


def keep_in_closure():
    kept = []

    def function(x):
        kept.append(x * 2)
        return x

    return function


class Model:
    def __call__(self, x):
        self.cache = x * 2
        return x


MODEL = Model()
IN_STORE = "a list in the global variable 'STORE'"
IN_CLOSURE = "'kept' in keep_in_closure.<locals>.function"
LEAKS = {
    "jit": (lambda: inf.jit(keep)(1.0), "jit of keep", IN_STORE),
    "vmap": (lambda: inf.vmap(keep)(X), "vmap", IN_STORE),
    "grad": (lambda: inf.grad(keep)(1.0), "grad", IN_STORE),
    "scan": (lambda: lax.scan(lambda c, x: (keep(c), x), 0.0, X), "tracing of", IN_STORE),
    "closure": (lambda: inf.jit(keep_in_closure())(1.0), "jit of function", IN_CLOSURE),
    "attribute": (lambda: inf.jit(MODEL)(1.0), "jit of Model", "the attribute 'cache' of a Model"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found_where_it_is_stored(name):
    leak, transform, holder = LEAKS[name]
    with pytest.raises(errors.UnexpectedTracerError) as raised, inf.checking_leaks():
        leak()
    text = str(raised.value)
    assert f"outlives {transform}" in text and holder in text and "test_tracers.py" in text
    assert raised.value.where.file == __file__


@pytest.mark.parametrize(
    "function",
    [
        lambda: inf.jit(lambda x: x + 1)(1.0),
        lambda: inf.vmap(inf.grad(lambda x: inp.sin(x)))(X),
        lambda: lax.scan(lambda c, x: (c + x, c), 0.0, X),
        lambda: lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0),
        lambda: inf.jit(inf.hessian(lambda x: inp.sum(x**3)))(X),
        lambda: inf.value_and_grad(lambda x: (x * 2, x * 3), has_aux=True)(1.0),
    ],
)
def test_programs_that_leak_nothing_pass(function):
    with inf.checking_leaks():
        function()


def test_the_knob_alone_finds_leaks_of_traced_functions():
    with inf.check_tracer_leaks(), pytest.raises(errors.UnexpectedTracerError):
        inf.jit(keep)(1.0)


@pytest.mark.parametrize(
    ("leak", "transform"),
    [
        (lambda: inf.jit(keep)(1.0), "jit of keep"),
        (lambda: inf.vmap(keep)(X), "vmap of keep"),
        (lambda: inf.grad(keep)(1.0), "grad of keep"),
    ],
)
@pytest.mark.parametrize(
    "use", [lambda x: x + 1, lambda x: inf.jit(lambda y: x + y)(1.0), lambda x: np.asarray(x + 1)]
)
def test_a_leaked_value_says_where_it_was_made_and_by_which_transformation(leak, transform, use):
    leak()
    with pytest.raises(errors.UnexpectedTracerError) as raised:
        use(STORE[0])
    made = 1 + next(n for n, line in enumerate(LINES) if line == "    STORE.append(x * 2)")
    assert f"after {transform} had finished" in str(raised.value)
    assert f"made at test_tracers.py:{made}" in str(raised.value) and "checking_leaks" in raised.value.fix
