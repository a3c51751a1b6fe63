"""`python -m infini.backends`: the routes of every operation, and that the CPU lacks none."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from infini.backends import coverage
from infini.backends.__main__ import app
from infini.core import backend, primitive


@pytest.fixture(scope="module")
def rows():
    return {row.op.name: row for row in coverage.table(["cpu", "reference"])}


def command(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_the_cpu_has_no_hole(rows):
    assert {
        name: row.dtypes_of("cpu", "hole") for name, row in rows.items() if row.worst("cpu") == "hole"
    } == {}


def test_the_reference_has_no_hole(rows):
    assert [name for name, row in rows.items() if row.worst("reference") == "hole"] == []


def test_gpus_lack_no_operation():
    assert [row.op.name for row in coverage.table(["cuda"]) if row.worst("cuda") == "hole"] == []


@pytest.mark.parametrize(
    "op",
    [
        "all_gather", "all_to_all", "axis_index", "pmax", "pmin", "ppermute", "psum", "psum_invariant",
        "psum_scatter", "shard_map", "sharding_constraint",
    ],
)  # fmt: skip
def test_accelerators_run_programs_over_meshes(op):
    names = ["cuda", "metax", "ascend"]
    (row,) = coverage.table(names, op)
    assert [row.worst(name) for name in names] == ["mesh"] * 3


def test_every_operation_is_tried_with_a_program(rows):
    special = {"mesh", "transform"}
    assert [
        n for n, row in rows.items() if set(row.routes["cpu"]) == {"any"} and row.worst("cpu") not in special
    ] == []


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("add", "kernel"), ("reduce_sum", "kernel"), ("sort", "own"), ("dot", "own"), ("scan", "own"),
        ("while", "own"), ("call", "inlined"), ("checkpoint", "inlined"), ("rms_norm", "decomposition"),
        ("psum", "mesh"), ("shard_map", "mesh"), ("custom_vjp_linear", "transform"),
    ],
)  # fmt: skip
def test_routes_of_the_cpu(rows, name, route):
    assert rows[name].routes["cpu"].get("f32", rows[name].worst("cpu")) == route


def test_an_operation_that_nobody_lowers_is_a_hole():
    op = primitive.Primitive(
        "riddle",
        None,
        {primitive.TYPE: lambda x: (x,), primitive.CASES: primitive.by_name("sin").rule(primitive.CASES)},
    )
    primitive.register(op)
    try:
        (row,) = coverage.table(["cpu", "reference"], "riddle")
        done = command("--missing", "--op", "riddle", "--backend", "cpu")
    finally:
        primitive.unregister(op)
    assert (row.worst("cpu"), row.worst("reference")) == ("hole", "hole")
    assert done.exit_code == 1 and "riddle" in done.stdout


def test_json_lists_every_operation_backend_and_dtype():
    table = json.loads(command("--json", "--op", "tanh", "--backend", "cpu", "--backend", "reference").stdout)
    assert table["tanh"]["cpu"]["f32"] == "kernel" and table["tanh"]["reference"]["bf16"] == "own"


def test_one_operation_is_shown_with_its_definition():
    shown = command("--op", "rms_norm", "--backend", "cpu").stdout
    assert "signature: (d),(d)->(d)" in shown and "rsqrt(" in shown and "decomposition" in shown


def test_rows_by_dtype():
    lines = command("--op", "sin", "--backend", "cpu", "--dtypes").stdout.splitlines()
    assert any("bf16" in line and "kernel" in line for line in lines)


@pytest.mark.parametrize("arguments", [("--op", "sine"), ("--backend", "abacus")])
def test_unknown_names_are_named(arguments):
    done = command(*arguments)
    assert done.exit_code == 1 and arguments[1] in done.stderr and "Traceback" not in done.output


def test_a_backend_that_does_not_say_is_asked_to_compile(monkeypatch):
    class Mute:
        name = "mute"

        def compile(self, program, options):
            return backend.get("cpu").compile(program, options)

    monkeypatch.setattr(backend, "get", {"mute": Mute(), "cpu": backend.get("cpu")}.__getitem__)
    (row,) = coverage.table(["mute"], "add")
    assert row.routes["mute"]["f32"] == "own"
