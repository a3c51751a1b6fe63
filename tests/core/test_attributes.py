"""Attributes of equations: what may be one, which are equal, and that each prints and parses back."""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

import infini as inf
from infini import lax
from infini.core import check, dtypes, errors, ir, primitive, text, trace

VECTOR = ir.ArrayType((2,), dtypes.float32)


@pytest.fixture
def probe():
    """An operation that takes any attribute."""
    op = primitive.register(primitive.Primitive("probe", None, {primitive.TYPE: lambda x, **_: (x,)}))
    yield op
    primitive.unregister(op)


def program(op, **attrs):
    return ir.single_equation(op, [VECTOR], ir.Attrs(attrs))


VALUES = [
    None,
    True,
    0,
    -7,
    2.5,
    -0.0,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    1 + 2j,
    complex(-0.0, math.inf),
    "text",
    "",
    'quotes " and \\ and \\" , (brackets] {of # every kind} via x',
    "line\nbreak",
    "中文",
    dtypes.bfloat16,
    dtypes.bool_,
    (),
    (1,),
    ((1, 2), ("a", (None, 2.5))),
    frozenset({1, 2}),
    frozenset({"a,b", "c"}),
    VECTOR,
    ir.ArrayType((), dtypes.int8),
    ir.HostFunction("f(x)", 3),
    lax.sin_p,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_print_and_parse_back(probe, value):
    made = program(probe, value=value)
    read = text.parse(text.print_program(made))
    assert read == made and read.equations[0].attrs == made.equations[0].attrs


@given(st.text(), st.floats(), st.integers(), st.tuples(st.text(), st.floats()))
def test_any_text_and_number_prints_and_parses_back(words, number, integer, pair):
    op = primitive.Primitive("probe_any", None, {primitive.TYPE: lambda x, **_: (x,)})
    primitive.register(op)
    try:
        made = program(op, words=words, number=number, integer=integer, pair=pair)
        assert text.parse(text.print_program(made)).equations[0].attrs == made.equations[0].attrs
    finally:
        primitive.unregister(op)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0.0, -0.0), ((1, 2), (1, 2.0)), (1.0, 1 + 0j), ("1", 1), ((), None)],
)
def test_values_that_python_takes_for_equal_are_told_apart(one, other):
    assert ir.Attrs({"value": one}) != ir.Attrs({"value": other})


def test_nan_equals_itself():
    assert ir.Attrs({"value": math.nan}) == ir.Attrs({"value": float("nan")})
    assert hash(ir.Attrs({"value": math.nan})) == hash(ir.Attrs({"value": np.float32("nan")}))


class Colour(enum.IntEnum):
    RED = 3


class Word(enum.StrEnum):
    HELLO = "hello"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, [2]], (1, (2,))),
        ({3}, frozenset({3})),
        (np.float64(2.5), 2.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (Colour.RED, 3),
        (Word.HELLO, "hello"),
        (dtypes.bfloat16.type(1.5), 1.5),
    ],
)
def test_values_are_made_plain(value, expected):
    frozen = ir.freeze(value)
    assert frozen == expected and type(frozen) is type(expected)


@pytest.mark.parametrize(
    "value", [object(), np.zeros(3), lambda: 0, {"a": 1}, b"bytes"], ids=lambda v: type(v).__name__
)
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match="cannot be an attribute"):
        ir.Attrs({"value": value})


def test_a_class_of_the_same_name_is_no_attribute():
    @dataclasses.dataclass(frozen=True)
    class HostFunction:
        name: str

    with pytest.raises(TypeError, match="cannot be an attribute"):
        ir.freeze(HostFunction("f"))
    with pytest.raises(errors.ValueMismatchError, match="exists already"):
        ir.attribute(HostFunction)


def test_executables_of_one_and_true_are_not_mixed_up(probe):
    seen = []
    rules = {**probe.rules, primitive.REFERENCE: lambda x, value: (seen.append(value), x)[1]}
    op = dataclasses.replace(probe, rules=rules)
    with inf.config(device="reference"):
        for value in (1, 1.0, True, -0.0, 0.0):
            trace.bind1(op, np.zeros(2, np.float32), value=value)
    assert list(map(repr, seen)) == ["1", "1.0", "True", "-0.0", "0.0"]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_traced_programs_are_checked_at_level_two(level, monkeypatch):
    checked = []
    monkeypatch.setattr(check, "check", lambda program: checked.append(program) or program)
    with inf.config(check=level):
        trace.stage(lambda x: [lax.sin(x)], [VECTOR])
    assert len(checked) == (level == 2)
