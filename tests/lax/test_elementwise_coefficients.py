"""The coefficients of formulas are what the tool that fits them prints."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from infini.lax.elementwise import coefficients
from tools import fit_polynomials


@pytest.mark.night
def test_coefficients_are_those_that_the_tool_prints(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.py"
    path.write_text("\n".join(fit_polynomials.tables()), encoding="utf-8")
    printed = runpy.run_path(str(path))
    names = [name for name in vars(coefficients) if name.isupper()]
    assert names and {name: printed[name] for name in names} == {n: getattr(coefficients, n) for n in names}


def test_every_table_is_for_one_width() -> None:
    names = [name for name in vars(coefficients) if name.isupper()]
    assert all(name.endswith(("_32", "_64")) for name in names)
    assert len(names) == sum((f.terms[0] > 0) + 1 for f in fit_polynomials.FITS)
