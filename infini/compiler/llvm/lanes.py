"""Functions of the C library, lane by lane: what has no vector code, and arguments that vector code does not
reach.
"""

from __future__ import annotations

from collections.abc import Callable

from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.types import BYTES, Type, scalar


def library(symbol: str) -> Callable[..., Value]:
    """A function of the C library, by the name it has for float64, called once per lane."""

    def emit(f: Function, *operands: Value) -> Value:
        name = _width(symbol, operands[0].type)
        type_ = operands[0].type.with_lanes(1)
        f.declare(f"declare {type_} @{name}({', '.join([type_.text] * len(operands))})")
        result = f.constant(0, operands[0].type)
        for lane in range(operands[0].type.lanes):
            arguments = [f.extract(operand, lane) for operand in operands]
            text = ", ".join(f"{type_} {argument}" for argument in arguments)
            one = f.pure(f"call {type_} @{name}({text})", type_, *arguments)
            if operands[0].type.lanes == 1:
                return one
            text = f"insertelement {result.type} {result}, {type_} {one}, i64 {lane}"
            result = f.pure(text, result.type, result, one)
        return result

    return emit


def _width(symbol: str, type: Type) -> str:
    return symbol if type.element == "double" else symbol + "f"


def where_far(f: Function, x: Value, near: Value, symbol: str, bound: float) -> Value:
    """`near`, and the C library's function in lanes where |x| is `bound` or more, or NaN.

    Such lanes are rare, so their code is a call behind a branch, in a function of its own.
    """
    is_far = f.compare("uge", f.intrinsic("fabs", x), f.constant(bound, x.type))
    lanes = x.type.lanes
    any_far = is_far
    if lanes > 1:
        bits = f.pure(f"bitcast {is_far.type} {is_far} to i{lanes}", scalar(f"i{lanes}"), is_far)
        any_far = f.compare("ne", bits, f.constant(0, bits.type))
    slot = f.allocate(BYTES[x.type.element] * lanes)
    f.store(near, slot)
    with f.when(any_far):
        call = f"call {x.type} @{_far_function(f, symbol, x.type)}({x.type} {x})"
        f.store(f.select(is_far, f.here(call, x.type), near), slot)
    return f.load(slot, x.type)


def _far_function(f: Function, symbol: str, type: Type) -> str:
    """Name of the function that calls the C library for each lane; it is defined once per module."""
    name, one = _width(symbol, type), type.with_lanes(1)
    outer = f"{name}_of_{type.lanes}_lanes"
    f.declare(f"declare {one} @{name}({one})")
    if type.lanes == 1:
        return name
    lines, found = [], "poison"
    for lane in range(type.lanes):
        lines.append(f"  %x{lane} = extractelement {type} %x, i64 {lane}")
        lines.append(f"  %y{lane} = call {one} @{name}({one} %x{lane})")
        lines.append(f"  %r{lane} = insertelement {type} {found}, {one} %y{lane}, i64 {lane}")
        found = f"%r{lane}"
    body = "\n".join([*lines, f"  ret {type} {found}"])
    f.declare(f"define internal {type} @{outer}({type} %x) nounwind noinline {{\n{body}\n}}")
    return outer
