"""`python -m tools.night`: what is too slow for every change, with a summary in `bench/nightly/DATE.md`.

The tests marked `night`, the property tests at their largest profile, the whole suite, and the parity
suite. Each part runs even when one before it failed; the exit status is the number of parts that did.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from infini.perf import record
from tools import layers


@dataclass(frozen=True, slots=True)
class Part:
    """One run of pytest: its name and arguments."""

    name: str
    arguments: tuple[str, ...]


PARTS: Final = (
    Part("suite", ("tests", "--ignore=tests/parity", "--slow")),
    # Every float32, a minute of threads, ten thousand compilations.
    Part("night", ("tests", "-m", "night", "--slow")),
    Part(
        "properties, 5000 examples",
        ("tests/property", "tests/backends/test_determinism.py", "--slow", "--hypothesis-profile=night"),
    ),
    Part("parity", ("tests/parity", "--slow")),
)


def run_part(part: Part, num_jobs: int) -> tuple[bool, str, float]:
    """Whether a part passed, pytest's closing line, and its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", str(num_jobs), *part.arguments],
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


def main(*, jobs: Annotated[int, typer.Option(help="Processes of pytest.")] = 2) -> None:
    """Run the nightly parts and write the summary."""
    rows = []
    for part in PARTS:
        if part.arguments[0].startswith("tests/") and not (layers.ROOT / part.arguments[0]).is_dir():
            continue
        passed, closing, seconds = run_part(part, jobs)
        typer.echo(f"{part.name}: {closing}")
        rows.append((part.name, passed, closing, seconds))
    now = datetime.datetime.now(datetime.UTC)
    path = layers.ROOT / "bench" / "nightly" / f"{now:%Y-%m-%d}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = record.machine()
    lines = [
        f"# Night of {now:%Y-%m-%d}",
        "",
        f"Commit {record.commit()}, {facts['cpu']}, {facts['num_cpus']} CPUs, Python {facts['python']}.",
        "",
        "| part | verdict | pytest says | seconds |",
        "|---|---|---|---|",
        *(
            f"| {name} | {'passed' if ok else 'FAILED'} | {closing} | {s:.0f} |"
            for name, ok, closing, s in rows
        ),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    typer.echo(str(path.relative_to(layers.ROOT)))
    raise typer.Exit(sum(not passed for _, passed, _, _ in rows))


if __name__ == "__main__":
    typer.run(main)
