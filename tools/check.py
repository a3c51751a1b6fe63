"""`python -m tools.check`: everything that can be said about the tree in under a minute.

Runs ruff, the format check, mypy, the layering table, the doctests and the tests that are neither slow nor
parity. Every step runs, so one look shows all that is wrong; the exit status is the number of steps that
failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from rich.console import Console

from tools import layers

PATHS: Final = ("infini", "tests", "tools", "examples")
# The doctests import every module of these folders; the other folders need extras or start work at import.
DOCTEST_FOLDERS: Final = (
    "core", "lax", "transforms", "tile", "numpy", "random", "nn", "optim", "io", "data", "parallel",
    "train", "debug", "export", "llm",
)  # fmt: skip
# Folders of tests that a change is likely to break and that take seconds; `make test` runs all of them.
FAST_TESTS: Final = (
    "tiny",
    "core",
    "lax",
    "transforms",
    "semantics",
    "numpy",
    "random",
    "nn",
    "optim",
    "tile",
    "perf",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to check: its name, what runs it, and whether it is a test."""

    name: str
    run: Callable[[], str]
    is_test: bool = False


def command(*arguments: str) -> Callable[[], str]:
    """A step that runs a module of this Python; gives its output when it failed, or nothing."""

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=layers.ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return (
            "" if done.returncode == 0 else (done.stdout + done.stderr).strip() or f"exit {done.returncode}"
        )

    return run


def layering() -> str:
    """What breaks the layering, one fault per line."""
    try:
        return "\n".join(layers.faults())
    except SyntaxError as error:
        return f"{error.filename}:{error.lineno}: {error.msg}"


def existing(parent: str, names: Iterable[str]) -> list[str]:
    """Paths of the folders that exist."""
    return [f"{parent}/{name}" for name in names if (layers.ROOT / parent / name).is_dir()]


def fast_tests() -> list[str]:
    """The files beside the folders, and the fast folders."""
    files = sorted(path.name for path in (layers.ROOT / "tests").glob("test_*.py"))
    return [*(f"tests/{name}" for name in files), *existing("tests", FAST_TESTS)]


STEPS: Final = (
    Step("lint", command("ruff", "check", "--quiet", "--output-format=concise", *PATHS)),
    Step("format", command("ruff", "format", "--check", "--output-format=concise", *PATHS)),
    Step("layers", layering),
    Step("types", command("mypy")),
    Step(
        "doctests",
        command("pytest", "-q", "--doctest-modules", *existing("infini", DOCTEST_FOLDERS)),
        is_test=True,
    ),
    Step(
        "fast tests",
        command("pytest", "-q", "-n", "2", "-m", "not slow and not night and not multi", *fast_tests()),
        is_test=True,
    ),
)


def main(
    *,
    no_tests: Annotated[bool, typer.Option(help="Leave out doctests and tests.")] = False,
    lines: Annotated[int, typer.Option(help="Most lines shown of a step that failed; 0 shows all.")] = 25,
) -> None:
    """Check the tree; see the module's documentation."""
    console = Console(highlight=False, soft_wrap=True)
    num_failed = 0
    for step in STEPS:
        if no_tests and step.is_test:
            continue
        started = time.perf_counter()
        fault = step.run()
        verdict = "[red]fails[/]" if fault else "[green]good[/]"
        console.print(f"{step.name:<12}{verdict:<22}{time.perf_counter() - started:6.1f} s")
        if fault:
            num_failed += 1
            _show(console, fault.splitlines(), lines)
    raise typer.Exit(num_failed)


def _show(console: Console, text: list[str], limit: int) -> None:
    shown = text if limit == 0 else text[-limit:]
    if len(shown) < len(text):
        console.print(f"  ... {len(text) - len(shown)} lines before; --lines 0 shows them", style="dim")
    for line in shown:
        console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    typer.run(main)
