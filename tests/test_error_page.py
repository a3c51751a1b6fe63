"""The page of mistakes: each snippet fails with the message printed below it, in every language of the page.

`pytest --update-golden tests/test_error_page.py` writes the messages anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, TRANSLATION = DOCS / "errors.md", DOCS / "zh" / "errors.md"
PREAMBLE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
MISTAKE = re.compile(r"^### (\d+)\..*?^```py\n(.*?)^```\n\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE)


def mistakes(path: Path) -> dict[int, tuple[str, str]]:
    """Number, snippet and message of each mistake of a page."""
    found = MISTAKE.finditer(path.read_text(encoding="utf-8"))
    return {int(m.group(1)): (m.group(2), m.group(3)) for m in found}


def message_of(snippet: str) -> str:
    """What a snippet raises, as the last lines of a traceback show it."""
    found = PREAMBLE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(found.group(1), "imports.py", "exec"), namespace)
    with pytest.raises(Exception) as caught:  # the message is compared below
        exec(compile(snippet, "example.py", "exec"), namespace)
    return f"{type(caught.value).__name__}: {caught.value}\n"


def update(path: Path) -> None:
    def renewed(m: re.Match[str]) -> str:
        whole, start = m.group(0), m.start(0)
        return whole[: m.start(3) - start] + message_of(m.group(2)) + whole[m.end(3) - start :]

    path.write_text(MISTAKE.sub(renewed, path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize("number", mistakes(PAGE))
def test_a_mistake_gives_the_message_on_the_page(number: int, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("update_golden"):
        update(PAGE)
        update(TRANSLATION)
    snippet, message = mistakes(PAGE)[number]
    found = message_of(snippet)
    assert found == message
    assert "example.py:" in found, "the message names the user's line"


def test_there_are_at_least_twenty() -> None:
    assert list(mistakes(PAGE)) == list(range(1, len(mistakes(PAGE)) + 1))
    assert len(mistakes(PAGE)) >= 20


def test_the_translation_has_the_same_snippets_and_messages() -> None:
    assert mistakes(TRANSLATION) == mistakes(PAGE)
