"""Printer and parser: what is printed reads back as an equal program."""

import numpy as np
import pytest

from infini.core import check, dtypes, errors, ir, text, trace
from infini.lax import elementwise, indexing, loops, reduction

VECTOR = ir.ArrayType((4,), dtypes.float32)


def staged(f, *types):
    return trace.stage(f, types).program


def test_parse_of_print_is_equal():
    program = staged(
        lambda x: [reduction.reduce_sum(elementwise.mul(elementwise.tanh(x), 2.5), (0,))], VECTOR
    )
    assert text.parse(repr(program)) == program


def test_nested_programs_are_printed_once_and_shared():
    def f(x):
        first = loops.scan(lambda c, y: (elementwise.add(c, y), c), 0.0, x)[0]
        second = loops.scan(lambda c, y: (elementwise.add(c, y), c), 0.0, x)[0]
        return [elementwise.add(first, second)]

    program = staged(f, VECTOR)
    assert repr(program).count("program @") == 2
    assert text.parse(repr(program)) == program


@pytest.mark.parametrize("number", [0.1, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45])
def test_float_constants_read_back_bit_for_bit(number):
    program = staged(lambda x: [elementwise.add(x, number)], VECTOR)
    (_, constant), *_ = text.parse(repr(program)).consts
    assert constant.data == np.float32(number).tobytes()


@pytest.mark.parametrize("dtype", sorted(dtypes.ALL, key=str), ids=str)
def test_constants_of_every_dtype_read_back(dtype):
    data = np.arange(6).reshape(2, 3).astype(dtype)
    constant = ir.Constant.of(data)
    assert text.parse_constant(text.constant_text(constant), constant.type) == constant


def test_dimension_numbers_read_back():
    numbers = indexing.GatherDimensionNumbers((1,), (0,), (0,))
    program = staged(
        lambda x, i: [indexing.gather(x, i, numbers, (1, 3), mode="clip")],
        ir.ArrayType((5, 3), dtypes.float32),
        ir.ArrayType((2, 1), dtypes.int32),
    )
    assert text.parse(repr(program)) == program


def test_fingerprint_ignores_lines_and_names():
    def f(x):
        return [elementwise.sin(x)]

    def g(y):
        return [elementwise.sin(y)]

    one, other = staged(f, VECTOR), staged(g, VECTOR)
    assert one.equations[0].where != other.equations[0].where
    assert one.fingerprint == other.fingerprint and one == other and hash(one) == hash(other)


def test_fingerprint_sees_attributes_and_order_of_operands():
    programs = [
        staged(lambda x, y: [elementwise.sub(x, y)], VECTOR, VECTOR),
        staged(lambda x, y: [elementwise.sub(y, x)], VECTOR, VECTOR),
        staged(lambda x, y: [elementwise.add(y, x)], VECTOR, VECTOR),
    ]
    assert len({p.fingerprint for p in programs}) == 3


def test_equations_keep_the_line_of_their_user():
    program = staged(lambda x: [elementwise.sin(x)], VECTOR)
    assert program.equations[0].where.file == __file__
    assert "test_text.py" in repr(program)
    assert text.parse(repr(program)).equations[0].where.line == program.equations[0].where.line


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "program @f(%0: f32[2]) {\n  %1: f32[2] = sin(%9)\n  return %1\n}",
        "program @f(%0: f32[2]) {\n  %1: f32[2] = nonsense(%0)\n  return %1\n}",
        "program @f(%0: f32[2]) {\n  what is this\n  return %0\n}",
        "program @f(%0: q7[2]) {\n  return %0\n}",
        "program @f(%0: f32[2]) {\n  %1: f32[2] = call(%0) {body=@g}\n  return %1\n}",
        "program @f(%0: f32[2]) {\n}",
    ],
)
def test_what_is_no_program_is_a_named_error(bad):
    with pytest.raises(errors.ParseError):
        text.parse(bad)


def test_checker_shows_the_neighbourhood_and_the_line():
    program = staged(lambda x: [elementwise.sin(elementwise.cos(x))], VECTOR)
    first, second = program.equations
    wrong = ir.Equation(
        second.op, second.inputs, second.attrs, (ir.Var(VECTOR.update(shape=(5,))),), second.where
    )
    broken = program.replace(equations=(first, wrong), results=wrong.outputs)
    with pytest.raises(errors.CheckError, match=r"(?s)--> .*sin.*at: +test_text.py:\d+"):
        check.check(broken)


def test_checker_refuses_use_before_definition():
    program = staged(lambda x: [elementwise.sin(elementwise.cos(x))], VECTOR)
    with pytest.raises(errors.CheckError, match="before its use"):
        check.check(program.replace(equations=tuple(reversed(program.equations))))
