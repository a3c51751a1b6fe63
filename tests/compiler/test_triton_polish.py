"""Statements of emitted text as they are printed: what moves, what must not, and what things are called."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.compiler.triton import naming, texts
from infini.compiler.triton.polish import polished
from infini.core.source import Where


def lines(text: str, **options: object) -> list[str]:
    """Statements, without the indentation of the function."""
    given = ["    " + line for line in text.strip("\n").splitlines()]
    return [line[4:] for line in polished(given, **options)]  # type: ignore[arg-type]


def test_what_is_used_once_stands_where_it_is_used() -> None:
    assert lines("a__1 = x * y\nb__2 = a__1 + z\ntl.store(p, b__2)") == ["tl.store(p, x * y + z)"]


def test_what_is_used_twice_has_a_name() -> None:
    found = lines("a__1 = x * y\nb__2 = a__1 + a__1\ntl.store(p, b__2)")
    assert found == ["a = x * y", "tl.store(p, a + a)"]


def test_values_stay_in_the_block_of_their_line() -> None:
    found = lines("a__1 = x * y\nb__2 = a__1 + z\ntl.store(p, b__2)", notes={0: "first", 1: "second"})
    assert found == ["# first", "a = x * y", "# second", "tl.store(p, a + z)"]


def test_the_comment_of_a_value_that_moved_stays_above_its_block() -> None:
    found = lines("a__1 = x * y\ntl.store(p, a__1 + z)", notes={0: "both"})
    assert found == ["# both", "tl.store(p, x * y + z)"]


def test_a_value_does_not_pass_a_change_of_what_it_is_made_of() -> None:
    text = "for i in range(0, 3):\n    t__1 = a + b\n    a = b\n    b = t__1"
    assert lines(text) == ["for i in range(0, 3):", "    t = a + b", "    a = b", "    b = t"]


def test_loads_do_not_move() -> None:
    text = "x__1 = tl.load(p)\ntl.store(p, 0.0)\ntl.store(q, x__1 + 1.0)"
    assert lines(text)[0] == "x = tl.load(p)"


def test_values_do_not_move_into_loops() -> None:
    text = "a__1 = x * y\nfor i in range(0, 3):\n    tl.store(p + i, a__1)"
    assert lines(text) == ["a = x * y", "for i in range(0, 3):", "    tl.store(p + i, a)"]


def test_long_values_keep_their_names() -> None:
    long = " + ".join(f"operand_{i}" for i in range(9))
    assert lines(f"a__1 = {long}\ntl.store(p, a__1 * a_very_long_name_of_a_factor)")[0] == f"a = {long}"


def test_what_nobody_reads_is_gone() -> None:
    found = lines("a__1 = x\nb__2 = a__1 * 2\nc__3 = y\ntl.store(p, z)", notes={0: "line"})
    assert found == ["# line", "tl.store(p, z)"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("x * 1", "x"), ("1 * x", "x"), ("x + 0", "x"), ("0 + x", "x"), ("x - 0", "x"), ("x // 1", "x"),
        ("x + -3", "x - 3"), ("x + i * -4", "x - i * 4"), ("x * 1.0", "x * 1.0"), ("x + 0.0", "x + 0.0"),
        ("0.0 + tl.dot(x, y)", "tl.dot(x, y)"), ("(x * (y)) + ((z))", "x * y + z"),
    ],
)  # fmt: skip
def test_arithmetic(given: str, found: str) -> None:
    assert lines(f"tl.store(p, {given})") == [f"tl.store(p, {found})"]


def test_positions_and_masks_that_repeat_have_names() -> None:
    lane = "tl.arange(0, 64)"
    text = f"x__1 = tl.load(p + {lane}, mask=({lane} < 50))\ntl.store(q + {lane}, x__1, mask=({lane} < 50))"
    assert lines(text) == [
        "lanes = tl.arange(0, 64)",
        "in_lanes = lanes < 50",
        "x = tl.load(p + lanes, mask=in_lanes)",
        "tl.store(q + lanes, x, mask=in_lanes)",
    ]


def test_a_position_that_occurs_once_has_no_name() -> None:
    assert lines("tl.store(p + tl.arange(0, 8), x)") == ["tl.store(p + tl.arange(0, 8), x)"]


def test_names_are_not_given_twice() -> None:
    text = "a__1 = tl.load(p)\na__2 = tl.load(q)\ntl.store(r, a__1 * a__2)\ntl.store(s, a__1 + a__2)"
    assert lines(text)[:2] == ["a = tl.load(p)", "a2 = tl.load(q)"]
    assert lines(text, taken=["a"])[:2] == ["a2 = tl.load(p)", "a3 = tl.load(q)"]
    assert lines(text, suggested={"a__2": "weight"})[1] == "weight = tl.load(q)"


def test_the_last_value_of_a_block_shows_its_type() -> None:
    text = "a__1 = tl.load(p)\nb__2 = tl.load(q)\ntl.store(r, a__1 * b__2 + a__1 + b__2)"
    found = lines(text, types={"a__1": "f32[8]", "b__2": "f32[8]"}, notes={2: "line"})
    assert found[:2] == ["a = tl.load(p)", "b = tl.load(q)  # f32[8]"]


def test_long_calls_have_an_argument_per_line() -> None:
    place = " + ".join(f"index_{i} * {i + 2}" for i in range(7))
    found = lines(f"tl.store(p + {place}, value, mask=inside)")
    assert found == ["tl.store(", f"    p + {place},", "    value,", "    mask=inside,", ")"]


# --- names of the user ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("hidden = x @ w", ("hidden",)), ("q, k = f(x)", ("q", "k")), ("total: Any = 1", ("total",)),
        ("x += 1", ()), ("return x", ()), ("loss = f(", ("loss",)), ("self.x = 1", ("",)), ("x == y", ()),
    ],
)  # fmt: skip
def test_targets_of_a_line(line: str, names: tuple[str, ...]) -> None:
    assert naming.targets(line) == names


def test_names_that_text_cannot_use_are_left_out() -> None:
    assert [naming.plain(name) for name in ("x", "_x", "for", "números", "number 3", "w2")] == [
        "x", "x", "", "", "", "w2",
    ]  # fmt: skip


def test_a_line_that_is_gone_is_named() -> None:
    assert naming.note(Where("/nowhere/model.py", 7)) == "model.py:7"


def test_operands_have_the_names_of_arguments_and_of_the_leaves_of_trees() -> None:
    def layer(params: dict[str, inp.ndarray], inputs: inp.ndarray, *, shift: inp.ndarray) -> inp.ndarray:
        return inp.tanh(inputs * params["scale"]) + shift

    x = np.ones((8, 16), np.float32)
    traced = inf.jit(layer).trace({"scale": x, "unused": x}, x, shift=x)
    (text,) = texts.of_program(traced.program).values()
    assert "(inputs_ptr, params_scale_ptr, shift_ptr, result_ptr)" in text


def test_names_of_positions_stand_before_what_uses_them() -> None:
    found = lines("where = tl.arange(0, 4)\ntl.store(p + tl.arange(0, 4) + where, tl.arange(0, 4))")
    known: set[str] = set()
    for line in found:
        for name in ("where", "lanes"):
            assert name not in line.partition(" = ")[2] or name in known, found
        known.add(line.partition(" = ")[0])


def test_a_loop_whose_values_nobody_reads_is_gone() -> None:
    assert lines("for i in range(0, 4):\n        a__1 = x * i\ntl.store(p, y)") == ["tl.store(p, y)"]


def test_the_lowest_number_of_32_bits_keeps_its_sign() -> None:
    assert lines("tl.store(p, b + x * -2147483648)") == ["tl.store(p, b + x * -2147483648)"]
