"""The table of operators and methods that arrays and tracers share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import errors
from infini.core.value import Value
from infini.numpy import _methods


def test_the_table_is_pinned(golden: Callable[[str, str], None]) -> None:
    groups = {"operators": _methods.OPERATORS, "methods": _methods.METHODS, "properties": _methods.PROPERTIES}
    golden(
        "array_methods.txt", "\n".join(f"{kind}: {' '.join(sorted(table))}" for kind, table in groups.items())
    )


@pytest.mark.parametrize("name", [*_methods.OPERATORS, *_methods.METHODS, *_methods.PROPERTIES])
def test_the_table_is_installed_for_arrays_and_tracers(name: str) -> None:
    assert hasattr(Value, name)


def test_numpy_leaves_mixed_operations_to_arrays() -> None:
    host = np.ones(3, np.float32)
    for result in (host + inp.ones(3), np.float32(2) * inp.ones(3), host @ inp.ones(3), host == inp.ones(3)):
        assert isinstance(result, infini.Array)


def test_other_types_get_their_turn() -> None:
    class Other:
        def __radd__(self, other):
            return "mine"

        def __eq__(self, other):
            return "equal"

    assert inp.ones(3) + Other() == "mine"
    assert (inp.ones(3) == Other()) == "equal"
    assert (inp.ones(3) == "text") is False


@pytest.mark.parametrize("bad", ["text", None, [1, 2, 3]], ids=str)
def test_operators_refuse_what_is_no_operand(bad: object) -> None:
    with pytest.raises(TypeError):
        inp.ones(3) + bad


def test_iteration_and_length() -> None:
    x = inp.asarray([[1, 2], [3, 4]])
    assert [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert len(x) == 2
    a, b = infini.jit(lambda x: tuple(x))(x)
    assert (a.tolist(), b.tolist()) == ([1, 2], [3, 4])
    for f in (len, iter):
        with pytest.raises(TypeError):
            f(inp.float32(1))


def test_reflected_operators() -> None:
    x = inp.asarray([1.0, 2.0])
    assert (3 - x).tolist() == [2, 1]
    assert (2 / x).tolist() == [2, 1]
    assert (2**x).tolist() == [2, 4]
    assert (5 // x).tolist() == [5, 2]
    assert (5 % x).tolist() == [0, 1]


def test_methods_work_while_tracing() -> None:
    def f(x):
        return x.reshape(2, -1).T.astype(inp.bfloat16).sum(0).max() + x.at[0].get()

    assert float(infini.jit(f)(inp.arange(4.0))) == 5


def test_integer_division_rounds_down_for_all_signs() -> None:
    x, y = np.meshgrid(np.arange(-7, 8), [-3, -2, -1, 1, 2, 3])
    assert np.array_equal(np.asarray(inp.asarray(x) // inp.asarray(y)), x // y)
    assert np.array_equal(np.asarray(inp.asarray(x) % inp.asarray(y)), x % y)


def test_bits_of_floats_are_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="bitcast_convert_type"):
        inp.ones(3) & 1
