"""What programs with placements send, beside what XLA makes of them on eight devices: the same results, and
no more collectives nor bytes. `--update-golden` writes the page with both side by side; `python -m
tests.parity.mesh_programs` records what XLA makes.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import testing
from infini.compiler.partition import costs
from infini.sharding import Link, Machine
from tests.parity import annotated_programs, compiled_text, mesh_programs
from tests.parity.annotated_programs import CASES
from tests.parity.compiled_text import Collective

RECORDED = mesh_programs.recorded("collectives_xla")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "parallel-xla.md"
HEADER = """\
# What is sent, beside XLA

Every row is a program with the same placements of its arguments and results here and under `jax.jit`, over
eight devices: the sizes of the mesh, the collectives that one device takes part in during one run, and the
bytes that it sends in a ring. Ours are counted while the program runs. Those of XLA are read from the text of
the compiled program for its CPU devices: a collective of several arrays is one, as it is one message, and one
inside a loop counts once per turn. Results are equal to JAX's within rounding. [C19]

XLA makes no reduce-scatter for CPU devices: where a sum ends split, it sums everywhere and cuts. For other
devices it has one, so our smaller numbers in rows with a scatter say less than those in the others.

What is gathered here is smaller than a window (`Collectives.window_bytes`), so it is kept for the backward
pass, as XLA keeps it. Larger weights are gathered again where they are read, which is what splitting them is
for.

A row with a letter is one in which ours is larger, in collectives or in bytes; the reason stands below.

| program | mesh | ours | XLA | our bytes | bytes of XLA |
|---|---|---|---|---|---|
"""
SHORT = {
    "psum": "sum", "pmax": "maximum", "pmin": "minimum", "all_gather": "gather", "psum_scatter": "scatter",
    "all_to_all": "exchange", "ppermute": "permutation",
}  # fmt: skip
REASONS = {
    "a": "Ours is a message less, and larger by a part. To begin one counts like thousands of bytes\n"
    "(`sharding.Machine`), so that is the cheaper way. XLA splits the axis of four into two of two; on\n"
    "a mesh with two such axes, for a machine that begins messages at no cost, ours are smaller.",
}
# Rows in which ours is larger: the reason, our number of collectives, and our bytes.
LARGER = {"product, blocks, turned": ("a", 4, 3840)}


@dataclass(frozen=True, slots=True)
class Sent:
    """How often each kind of collective runs, and the bytes that a device sends in all."""

    kinds: Counter[str]
    nbytes: int

    @property
    def calls(self) -> int:
        return self.kinds.total()

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {SHORT[kind]}" for kind, count in sorted(self.kinds.items()))
        return f"{self.calls} ({kinds})" if kinds else "0"


def sent(made: Iterable[Collective]) -> Sent:
    kinds: Counter[str] = Counter()
    total = 0.0
    for one in made:
        kinds[one.name] += one.times
        total += costs.wire_bytes(one.name, one.nbytes, one.num_members) * one.times
    return Sent(kinds, round(total))


def of_xla(name: str) -> Sent:
    return sent(Collective(*one) for one in RECORDED[name]["collectives"])


@functools.cache
def of_infini(name: str) -> tuple[list[np.ndarray], Sent]:
    """Our results, and what was counted while they were computed."""
    sizes = CASES[name].axes
    with inf.config(device="reference", cpu_devices=8):
        run, args = annotated_programs.jitted(inf, CASES[name])
        with testing.count_collectives() as counts:
            found = inf.tree.leaves(run(*args))
        kinds: Counter[str] = Counter()
        total = 0.0
        for (kind, axes), count in counts.items():
            kinds[kind] += count.calls
            total += costs.wire_bytes(kind, count.nbytes, math.prod(sizes[axis] for axis in axes))
        return [np.asarray(x) for x in found], Sent(kinds, round(total))


def row(name: str) -> str:
    """A row of the page."""
    ours, theirs = of_infini(name)[1], of_xla(name)
    mesh = ", ".join(f"{axis} {size}" for axis, size in CASES[name].axes.items())
    title = f"{name} ({LARGER[name][0]})" if name in LARGER else name
    return f"| {title} | {mesh} | {ours} | {theirs} | {ours.nbytes} | {theirs.nbytes} |"


def footer() -> str:
    return "\n" + "\n\n".join(f"{letter}. {reason}" for letter, reason in REASONS.items()) + "\n"


# The tests of one program run in one process, where its results are kept.
each_program = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"xla {name}")) for name in CASES]
)


@each_program
def test_results_are_those_of_jax(name: str) -> None:
    found = of_infini(name)[0]
    expected = RECORDED[name]["results"]
    assert len(found) == len(expected)
    for ours, (shape, theirs) in zip(found, expected, strict=True):
        assert list(ours.shape) == shape
        bound = 2e-5 * max(theirs[0], 1e-3)  # of the norm
        np.testing.assert_allclose(annotated_programs.digest(ours)[1], theirs, rtol=0, atol=bound)


@each_program
def test_no_more_is_sent_than_by_xla(name: str) -> None:
    ours, theirs = of_infini(name)[1], of_xla(name)
    is_larger = ours.calls > theirs.calls or ours.nbytes > theirs.nbytes
    assert is_larger == (name in LARGER), (ours, theirs)
    if is_larger:
        assert (ours.calls, ours.nbytes) == LARGER[name][1:], "replace the numbers, or remove the row"


def test_fewest_bytes_are_sent_where_to_begin_costs_nothing() -> None:
    with inf.config(device="reference", cpu_devices=8):
        axes = ("u", "v")  # four devices, in two axes
        product = inf.shard(
            lambda a, b: a @ b,
            mesh=inf.make_mesh((2, 2, 2), ("x", *axes)),
            in_specs=(inf.P("x", axes), inf.P("x", axes)),
            out_specs=inf.P(axes, "x"),
            machine=Machine(Link(1e9)),
        )
        args = CASES["product, blocks, turned"].build(inf).args
        with testing.count_collectives() as counts:
            found = np.asarray(product(*args))
    np.testing.assert_allclose(found, args[0] @ args[1], rtol=1e-5, atol=1e-5)
    made = [Collective(kind, one.nbytes, 2 ** len(over), 1) for (kind, over), one in counts.items()]
    assert (sum(c.calls for c in counts.values()), sent(made).nbytes) == (6, 3264)
    assert sent(made).nbytes < of_xla("product, blocks, turned").nbytes


@each_program
def test_the_page_says_what_is_sent(name: str, request: Any) -> None:
    if not request.config.getoption("update_golden"):
        assert row(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_every_program(request: Any) -> None:
    if request.config.getoption("update_golden"):
        PAGE.write_text(HEADER + "".join(f"{row(name)}\n" for name in CASES) + footer(), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(HEADER) and text.endswith(footer())
    rows = text[len(HEADER) : -len(footer())].splitlines()
    titles = [f"{name} ({LARGER[name][0]})" if name in LARGER else name for name in CASES]
    assert [line.split("|")[1].strip() for line in rows] == titles


@pytest.mark.slow
def test_xla_still_makes_what_is_recorded() -> None:
    found = mesh_programs.ask_jax("collectives_xla")
    assert {name for name in RECORDED if not mesh_programs.same(found[name], RECORDED[name])} == set()


# --- the text -----------------------------------------------------------------------------------------

TEXT = """\
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  {inside}
}}

%test (p: (s32[], f32[8])) -> pred[] {{
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  {outside}
  %while.2 = (s32[], f32[8]{{0}}) while(%t), condition=%test, body=%body.1, backend_config={{{trips}}}
}}
"""
SUM = "%s = f32[4,2]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add"
TRIPS = '"known_trip_count":{"n":"3"}'


def text(
    inside: str = "%i = s32[] add(%j, %k)", outside: str = "%a = f32[8]{0} copy(%b)", trips: str = TRIPS
) -> str:
    return TEXT.format(inside=inside, outside=outside, trips=trips)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (SUM, ("psum", 32, 4)),
        ("%s = (f32[4]{0}, s32[]) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%add",
         ("psum", 20, 2)),
        ("%g = f32[16]{0} all-gather(%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
         ("all_gather", 16, 4)),
        ("%g = f32[16]{0} reduce-scatter(%x), replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], "
         "device_ids=([2,4]T(1,0)) {'axis_0'}, to_apply=%add", ("psum_scatter", 256, 4)),
        ("%e = (pred[1,4]{1,0}, pred[1,4]{1,0}) all-to-all(%x, %y), replica_groups=[4,2]<=[2,2,2]T(0,2,1)",
         ("all_to_all", 8, 2)),
        ("%p = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", ("ppermute", 16, 2)),
    ],
)  # fmt: skip
def test_the_text_of_a_collective(line: str, expected: tuple[str, int, int]) -> None:
    assert compiled_text.collectives(text(outside=line)) == [Collective(*expected, 1)]


def test_a_collective_in_a_loop_counts_once_per_turn() -> None:
    assert compiled_text.collectives(text(inside=SUM)) == [Collective("psum", 32, 4, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inside": SUM, "trips": ""}, "no known trip count"),
        ({"outside": SUM.replace("all-reduce", "all-reduce-start")}, "all-reduce-start is not understood"),
        ({"outside": SUM.replace("[2,4]<=[8]", "{}")}, "groups that are not understood"),
        ({"outside": SUM.replace("f32", "f4e2m1fn")}, "the size of f4e2m1fn is not known"),
        ({"outside": "%c = f32[] conditional(%p, %x), branch_computations={%body.1, %test}", "inside": SUM},
         "inside conditional"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_an_error(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled_text.collectives(text(**changes))
