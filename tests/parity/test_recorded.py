"""Functions of arrays give what JAX gave: results, dtypes, weak flags, and classes of errors."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy
import pytest

import infini
import infini.numpy
from infini import lax
from tests.parity import recorded_rows

FILES = sorted(recorded_rows.FOLDER.glob("*.txt"))
ROWS = [pytest.param(*row, id=row[0]) for path in FILES for row in recorded_rows.rows(path)]


@pytest.mark.parametrize(("expression", "expected"), ROWS)
def test_equals_what_jax_gave(expression: str, expected: str) -> None:
    found = recorded_rows.outcome(expression, infini.numpy, lax, infini)
    assert recorded_rows.agrees(found, expected), f"{expression} gives {found}, in JAX {expected}"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_jax_still_gives_what_is_recorded(path: Path) -> None:
    for expression, expected in recorded_rows.rows(path):
        assert recorded_rows.outcome(expression, jax.numpy, jax.lax, jax) == expected, expression
