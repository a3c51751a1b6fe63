"""Where two programs that should be one differ first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.backends.spmd import differences
from infini.backends.spmd.differences import Difference, Subject

X = np.ones((2, 3), np.float32)


def subject(function: Callable[..., object], *arguments: object, **facts: str) -> Subject:
    return Subject(inf.make_jaxpr(function)(*arguments), tuple(facts.items()))


def difference(first: Subject, second: Subject) -> Difference:
    first_told, second_told = (differences.unpack(differences.pack(found)) for found in (first, second))
    found = differences.show((3, first_told), (5, second_told))
    assert found == differences.show((5, second_told), (3, first_told))  # both are told the same
    return found


def test_names_of_functions_do_not_count() -> None:
    def first(x: inf.Array) -> inf.Array:
        return inp.tanh(x)

    def second(x: inf.Array) -> inf.Array:
        return inp.tanh(x)

    assert subject(first, X).key == subject(second, X).key


def test_the_first_other_equation_is_shown_from_both_sides() -> None:
    found = difference(subject(lambda x: inp.sin(x) + 1, X), subject(lambda x: inp.cos(x) + 1, X))
    assert found.what == "they differ first in equation 1"
    first, second = found.got.splitlines()
    assert first.startswith("process 3: ") and "sin" in first and "test_differences.py" in first
    assert second.strip().startswith("process 5: ") and "cos" in second


def test_an_equation_too_many_is_shown_beside_what_the_other_does_there() -> None:
    found = difference(subject(inp.sin, X), subject(lambda x: inp.sin(inp.sin(x)), X))
    assert found.what == "they differ first in equation 2"
    assert "process 3: return" in found.got and "sin" in found.got.splitlines()[1]


def test_another_attribute_is_a_difference_inside_a_loop_too() -> None:
    def looped(step: float) -> Callable[[object], object]:
        return lambda x: inf.lax.fori_loop(0, 3, lambda i, y: inp.sum(y, axis=int(step)) + y, x)

    square = np.ones((3, 3), np.float32)
    found = difference(subject(looped(0), square), subject(looped(1), square))
    assert "axes=(-2,)" in found.got and "axes=(-1,)" in found.got


@pytest.mark.parametrize(("first", "second"), [(0.5, 1.5), (np.zeros(3), np.ones(3))])
def test_a_constant_of_another_value_is_named_as_one(first: object, second: object) -> None:
    found = difference(*(subject(lambda x, c=c: x * inp.asarray(c), X) for c in (first, second)))
    assert found.what == "a constant depends on the process" and "used at test_differences.py" in found.got


def test_a_long_constant_is_cut_short() -> None:
    values = (np.full(60, number, np.float32) + 1 / 3 for number in (0, 1))
    found = difference(*(subject(lambda x, c=c: inp.sum(x) + inp.asarray(c), X) for c in values))
    assert "..." in found.got and len(found.got) < 600


def test_another_argument_is_shown_with_its_types() -> None:
    found = difference(subject(inp.sin, X), subject(inp.sin, X[:1]))
    assert found.what == "argument 0 has another type"
    assert "f32[2,3]" in found.got and "f32[1,3]" in found.got


def test_an_argument_too_many_is_shown() -> None:
    found = difference(subject(lambda x: x, X), subject(lambda x, y: x, X, X))
    assert found.what == "argument 1 has another type" and "nothing" in found.got


def test_equal_programs_with_another_option_are_told_its_name() -> None:
    found = difference(subject(inp.sin, X, tune="on", fuse="no"), subject(inp.sin, X, tune="on", fuse="yes"))
    assert "other options" in found.what and "fuse = yes" in found.got and found.fix.startswith("set fuse")
