"""Golden programs, one per family: their text is pinned, parses back, types again, and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from infini.core import check, html, text
from infini.core.ir.__main__ import app
from tests.core import golden_programs

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "programs"
NAMES = sorted(golden_programs.PROGRAMS)
# A program with a callback refers to a Python function of the process that traced it.
RUNNABLE = [name for name in NAMES if name != "effects"]


def command(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize("name", NAMES)
def test_text_is_pinned(name, golden):
    golden(f"programs/{name}.ir", golden_programs.golden_text(name))


@pytest.mark.parametrize("name", NAMES)
def test_parsed_text_prints_as_it_was(name):
    content = (FOLDER / f"{name}.ir").read_text()
    assert text.print_program(text.parse(content)) + "\n" == content


@pytest.mark.parametrize("name", NAMES)
def test_every_equation_types_again(name):
    expected = f"@{name}: {_count(name)} equations, well formed\n"
    assert command(FOLDER / f"{name}.ir", "--check") == (0, expected)


def _count(name):
    lines = (FOLDER / f"{name}.ir").read_text().splitlines()
    others = ("return", "grid", "load", "store", "extent")
    inside = [line.strip() for line in lines if line.startswith("  ") and " const " not in line]
    return sum(not line.startswith(others) for line in inside)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", RUNNABLE)
def test_results_equal_those_of_the_reference(name, backend):
    code, output = command(FOLDER / f"{name}.ir", "--run", "--backend", backend)
    assert code == 0 and "equal" in output and "DIFFERENT" not in output


@pytest.mark.parametrize("name", NAMES)
def test_page_shows_every_variable_and_line(name):
    program = text.parse((FOLDER / f"{name}.ir").read_text())
    page = html.page(check.check(program))
    for section in text.sections(program):
        count = sum(len(e.outputs) for e in section.program.equations)
        assert all(f'data-var="{section.name}:%{n}"' in page for n in range(count))
        assert all(str(e.where) in page for e in section.program.equations)
