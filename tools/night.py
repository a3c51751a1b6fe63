"""`python -m tools.night`: what is too slow for every change, with a summary in `bench/nightly/DATE.md`.

The tests marked `night`, the property tests at their largest profile, the whole suite, and the parity
suite. Each part runs even when one before it failed; the exit status is the number of parts that did. The
summary is written after every part, so what ran is told when the rest did not; `--only` runs some parts and
keeps the rows of the others, each with the commit it ran on, and `--failed` runs of them what failed last.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from infini.perf import record
from tools import layers


@dataclass(frozen=True, slots=True)
class Part:
    """One run of pytest: its name and arguments."""

    name: str
    arguments: tuple[str, ...]


EXHAUSTIVE: Final = "tests/compiler/test_llvm_math_exhaustive.py"
PARTS: Final = (
    Part("suite", ("tests", "--ignore=tests/parity", "--slow")),
    # A minute of threads, ten thousand compilations.
    Part("night", ("tests", "-m", "night", "--slow", f"--ignore={EXHAUSTIVE}")),
    Part(
        "properties, 5000 examples",
        ("tests/property", "tests/backends/test_determinism.py", "--slow", "--hypothesis-profile=night"),
    ),
    Part("parity", ("tests/parity", "--slow")),
    Part("every float32", (EXHAUSTIVE, "-m", "night", "--slow")),
)


def run_part(part: Part, num_jobs: int, *, only_failed: bool = False) -> tuple[bool, str, float]:
    """Whether a part passed, pytest's closing line, and its seconds."""
    started = time.perf_counter()
    again = ["--last-failed", "--last-failed-no-failures", "none"] if only_failed else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", str(num_jobs), *again, *part.arguments],
        cwd=layers.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    closing = next(
        (line for line in reversed(output.splitlines()) if re.search(r" in \d", line)), "no closing line"
    )
    # 5 is pytest's status for "no tests found", which is what a part without tests gives.
    passed = done.returncode in (0, 5)
    if not passed:
        typer.echo(output)
    return passed, closing.strip("= "), time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Row:
    """What one part gave."""

    name: str
    verdict: str
    closing: str
    seconds: str
    commit: str

    def __str__(self) -> str:
        return f"| {self.name} | {self.verdict} | {self.closing} | {self.seconds} | {self.commit} |"


def read(path: Path) -> dict[str, Row]:
    """The rows of a summary that is there already."""
    if not path.exists():
        return {}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines()]
    known = {part.name for part in PARTS}
    return {
        row[0]: Row(*row) for row in cells if row[0] in known and len(row) == len(dataclasses.fields(Row))
    }


def write(path: Path, day: str, rows: Mapping[str, Row]) -> None:
    """The summary with these rows; parts without one have not run."""
    facts = record.machine()
    lines = [
        f"# Night of {day}",
        "",
        f"{facts['cpu']}, {facts['num_cpus']} CPUs, Python {facts['python']}.",
        "",
        "| part | verdict | pytest says | seconds | commit |",
        "|---|---|---|---|---|",
        *(str(rows.get(part.name, Row(part.name, "not run", "", "", ""))) for part in PARTS),
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines), encoding="utf-8")
    part.replace(path)


def main(
    *,
    jobs: Annotated[int, typer.Option(help="Processes of pytest.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Run this part; may be given several times.")] = None,
    failed: Annotated[bool, typer.Option(help="Run only what failed before; the row says so.")] = False,
) -> None:
    """Run the nightly parts and write the summary."""
    names = [part.name for part in PARTS]
    if unknown := sorted(set(only or ()) - set(names)):
        raise typer.BadParameter(f"there is no part {unknown[0]!r}; there are {', '.join(names)}")
    day = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    path = layers.ROOT / "bench" / "nightly" / f"{day}.md"
    rows, num_failed, commit = read(path), 0, record.commit()
    for part in PARTS:
        if only and part.name not in only:
            continue
        passed, closing, seconds = run_part(part, jobs, only_failed=failed)
        if failed and part.name in rows:
            closing += f"; before, on {rows[part.name].commit}: {rows[part.name].closing}"
        typer.echo(f"{part.name}: {closing}")
        num_failed += not passed
        verdict = "passed" if passed else "FAILED"
        rows[part.name] = Row(part.name, verdict, closing, f"{seconds:.0f}", commit)
        write(path, day, rows)
    typer.echo(str(path.relative_to(layers.ROOT)))
    raise typer.Exit(num_failed)


if __name__ == "__main__":
    typer.run(main)
