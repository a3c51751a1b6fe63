"""No figure stands in the README or in docs without its row in `docs/claims.md`.

The rule is written at the top of that page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = ROOT / "docs" / "claims.md"
NUMBER = r"\d[\d,.]*(?:e[+-]?\d+)?"
UNITS = (
    r"ns|us|µs|ms|s|sec|seconds?|min|minutes?|hours?|h|[kKMGT]i?B|bytes|[GT]?FLOP/?s|[GMk]?B/s|tokens?/s|tok/s|"
    r"ulps?|nats?|bits/byte"
)
CLAIM = re.compile(
    rf"(?<![\w.]){NUMBER}\s*(?:{UNITS})\b"
    rf"|{NUMBER}\s*%"
    rf"|(?<![\w.]){NUMBER}\s*[x×](?!\w)"
    rf"|\b(?:twice|three times|{NUMBER} times) (?:as|the|faster|slower)\b"
    r"|\b(?:equals|equal to|identical|bit for bit)\b",
    re.IGNORECASE,
)  # fmt: skip
REFERENCE = re.compile(r"\[(C\d+)\]")
# Lines that look like a claim and are none, with the reason.
EXCEPTIONS = (
    (r"make demo`? .*about \d+ (?:seconds|minutes)", "how long the demo is told to train: a setting"),
    (r"under a minute|under \d+ minutes", "a limit that CI enforces"),
    (r"Copyright|Licen[cs]e", "legal text"),
    (r"equal (?:shapes|dtypes|types|sizes)", "what an operation asks of its operands"),
    (r"`==`|two programs are equal|compare equal", "the meaning of equality of programs"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table of claims."""

    id: str
    statement: str
    command: str
    commit: str
    machine: str
    date: str
    notes: str


def rows() -> list[Row]:
    """The table of claims."""
    found = []
    for line in CLAIMS.read_text(encoding="utf-8").splitlines():
        if re.match(r"\|\s*C\d+\s*\|", line):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            assert len(cells) == 7, f"a row of claims.md has {len(cells)} cells instead of 7: {line}"
            found.append(Row(*cells))
    return found


def pages() -> list[Path]:
    """Every page that may state a figure."""
    found = sorted(path for path in (ROOT / "docs").rglob("*.md") if path != CLAIMS)
    return [ROOT / "README.md", ROOT / "README.zh.md", *found]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines outside code blocks, with their numbers."""
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, line


def is_claim(line: str) -> bool:
    """Whether a line of prose states something that needs evidence."""
    text = re.sub(r"`[^`]*`", "`code`", line)
    return CLAIM.search(text) is not None and not any(re.search(pattern, line) for pattern, _ in EXCEPTIONS)


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_figure_has_a_reference(path: Path) -> None:
    bare = [
        f"{number}: {line}" for number, line in prose(path) if is_claim(line) and not REFERENCE.search(line)
    ]
    assert bare == []


def test_references_and_rows_are_the_same_set() -> None:
    used = {name for path in pages() for _, line in prose(path) for name in REFERENCE.findall(line)}
    assert used == {row.id for row in rows()}


def test_ids_are_unique() -> None:
    ids = [row.id for row in rows()]
    assert sorted(ids) == sorted(set(ids))


def test_rows_can_be_measured_again() -> None:
    for row in rows():
        assert row.statement and row.machine and row.notes, row
        assert re.fullmatch(r"`.+`", row.command), f"{row.id} names no command"
        assert re.fullmatch(r"[0-9a-f]{7,40}\+?", row.commit), f"{row.id} names no commit"
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", row.date), f"{row.id} has no date"


@pytest.mark.parametrize(
    "line",
    [
        "A step takes 3.5 ms.", "It is 1.4x faster.", "40% of peak", "at 2,000 tokens/s",
        "The loss equals JAX's.", "twice as fast as NumPy", "bit for bit the same streams",
        "1e-3 s of overhead", "wheels of 286 MB",
    ],
)  # fmt: skip
def test_these_lines_are_claims(line: str) -> None:
    assert is_claim(line)


@pytest.mark.parametrize(
    "line",
    [
        "Python 3.11 to 3.14",
        "64-bit dtypes",
        "`make check` runs under a minute",
        "Zen 4",
        "step 3 of 6",
        "`x 3 ms`",
    ],
)
def test_these_lines_are_none(line: str) -> None:
    assert not is_claim(line)
