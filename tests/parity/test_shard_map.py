"""`shard_map` on eight devices, against what JAX answers."""

from __future__ import annotations

import pytest

import infini as inf
from tests.parity import mesh_programs
from tests.parity.shard_map_programs import PROGRAMS

RECORDED = mesh_programs.recorded("shard_map")


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield
        inf.set_mesh(None)


@pytest.mark.parametrize("name", PROGRAMS)
def test_answers_equal_those_of_jax(name: str) -> None:
    found = mesh_programs.outcome(PROGRAMS[name], inf)
    assert mesh_programs.same(found, RECORDED[name]), (found, RECORDED[name])


@pytest.mark.slow
def test_jax_still_answers_what_is_recorded() -> None:
    found = mesh_programs.ask_jax("shard_map")
    assert {name for name in RECORDED if not mesh_programs.same(found[name], RECORDED[name])} == set()
