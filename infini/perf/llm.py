"""The engine beside llama.cpp on the same GGUF files, with the same threads: rounds in turns, each a new
process.

`infini bench decode` and `infini bench batched` measure the one side, `llama-bench` and `llama-batched-bench`
the other (https://github.com/ggml-org/llama.cpp). What is compared are tokens per second: of a prompt (pp),
of one sequence (tg), and of several at once (B).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infini.core import errors

OURS: Final = "infini"
THEIRS: Final = "llama.cpp"
_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured on every file.

    Args:
        threads: of both sides.
        prompt: tokens of a prompt.
        generated: tokens of one sequence.
        streams: sequences at once; 0 leaves that out.
        repetitions: within a process.
    """

    threads: int = 2
    prompt: int = 512
    generated: int = 64
    streams: int = 8
    repetitions: int = 3


@dataclass(frozen=True, slots=True)
class Peer:
    """Programs of llama.cpp.

    Args:
        bench: path of `llama-bench`.
        batched_bench: path of `llama-batched-bench`; None leaves several sequences out.
    """

    bench: str
    batched_bench: str | None

    @classmethod
    def found(cls, folder: Path | None) -> Peer:
        """In a folder, or on PATH.

        Raises:
            InfiniError: they are not there.
        """
        path = None if folder is None else str(folder)
        bench, batched = (shutil.which(name, path=path) for name in ("llama-bench", "llama-batched-bench"))
        if bench is None:
            raise errors.InfiniError(
                "llama-bench is not there",
                got="PATH" if folder is None else str(folder),
                fix="build llama.cpp and name the folder of its programs with --peer",
            )
        return cls(bench, batched)


Rates = dict[str, list[float]]  # of a measure such as tg64: tokens per second of every round


def measure(
    files: Sequence[Path], peer: Peer, work: Work, *, rounds: int, on_done: Callable[[str], None]
) -> dict[str, dict[str, Rates]]:
    """Tokens per second by file, measure and side.

    Args:
        files: GGUF files.
        peer: programs of llama.cpp.
        work: what to measure.
        rounds: how often; who begins changes with every round.
        on_done: called with a line after each process.
    """
    found: dict[str, dict[str, Rates]] = {file.name: {} for file in files}
    for number in range(rounds):
        for file in files:
            sides = [(OURS, _ours(file, work)), (THEIRS, _theirs(file, peer, work))]
            for side, commands in sides if number % 2 == 0 else reversed(sides):
                for name, rate in _rates(commands):
                    found[file.name].setdefault(name, {OURS: [], THEIRS: []})[side].append(rate)
                    on_done(
                        f"round {number + 1} of {rounds}  {file.name}  {side}  {name}  {rate:.2f} tokens/s"
                    )
    return found


def summary(found: dict[str, dict[str, Rates]]) -> list[dict[str, Any]]:  # Any: JSON
    """A row for every file and measure: medians, spreads, and the ratio of the medians."""
    rows = []
    for file, measures in found.items():
        for name, sides in measures.items():
            ours, theirs = (statistics.median(sides[side]) for side in (OURS, THEIRS))
            ratios = [a / b for a, b in zip(sides[OURS], sides[THEIRS], strict=True)]
            rows.append(
                {
                    "file": file,
                    "measure": name,
                    OURS: ours,
                    THEIRS: theirs,
                    "ratio": ours / theirs,
                    "least_ratio": min(ratios),
                    "most_ratio": max(ratios),
                }
            )
    return rows


Command = tuple[list[str], Callable[[str], Iterator[tuple[str, float]]]]


def _ours(file: Path, work: Work) -> list[Command]:
    start = [sys.executable, "-m", "infini", "bench"]
    threads = ["-t", str(work.threads)]
    single = ["decode", str(file), "-p", str(work.prompt), "-n", str(work.generated), "-o", "json"]
    several = ["batched", str(file), *_several(work), "--output-format", "jsonl"]
    found: list[Command] = [([*start, *single, "-r", str(work.repetitions), *threads], _of_bench)]
    return [*found, ([*start, *several, *threads], _of_batched)] if work.streams else found


def _theirs(file: Path, peer: Peer, work: Work) -> list[Command]:
    threads = ["-t", str(work.threads)]
    single = ["-m", str(file), "-p", str(work.prompt), "-n", str(work.generated), "-o", "json"]
    found: list[Command] = [([peer.bench, *single, "-r", str(work.repetitions), *threads], _of_bench)]
    if work.streams and peer.batched_bench is not None:
        room = work.streams * (work.prompt // 4 + work.generated + 8)
        several = ["-m", str(file), *_several(work), "--output-format", "jsonl", "-c", str(room)]
        found.append(([peer.batched_bench, *several, *threads], _of_batched))
    return found


def _several(work: Work) -> list[str]:
    return ["-npp", str(work.prompt // 4), "-ntg", str(work.generated), "-npl", str(work.streams)]


def _rates(commands: Sequence[Command]) -> Iterator[tuple[str, float]]:
    for arguments, read in commands:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment, check=False
        )
        if done.returncode:
            raise errors.InfiniError(
                f"{Path(arguments[0]).name} failed", got=f"{' '.join(arguments)}\n{done.stderr[-2000:]}"
            )
        yield from read(done.stdout)


def _of_bench(text: str) -> Iterator[tuple[str, float]]:
    for row in json.loads(text):
        name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        yield name, row["avg_ts"]


def _of_batched(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            yield f"tg{row['tg']} B{row['pl']}", row["speed_tg"]
