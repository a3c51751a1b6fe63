"""The Python in the README and in docs runs.

Blocks marked ```python, page by page, each page in a namespace of its own.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import infini.tile.program  # noqa: F401  # declares an operation that is no page's, and is loaded late
from infini.core import primitive

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]


ALONE = {"as-jax.md": "it puts infini in JAX's place, which a process that has imported JAX refuses"}


def blocks(path: Path) -> list[tuple[int, str]]:
    """Line and source of each block of a page."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found.group(1)) for found in BLOCK.finditer(text)]


@pytest.fixture
def declared() -> Iterator[None]:
    """Operations that a page declares are forgotten after it."""
    before = primitive.all_primitives()
    yield
    for name, op in primitive.all_primitives().items():
        if name not in before:
            primitive.unregister(op)


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    "path", [p for p in PAGES if blocks(p)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_python_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if path.name in ALONE:
        source = "\n".join(source for _, source in blocks(path))
        subprocess.run([sys.executable, "-c", source], check=True, stdout=subprocess.DEVNULL)
        return
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, source in blocks(path):
        # Empty lines in front, so that an error names the line of the page.
        code = compile("\n" * (line - 1) + source, str(path), "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, namespace)


def test_every_page_is_reachable() -> None:
    """Links between pages lead somewhere, and mkdocs lists every page."""
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in PAGES[2:]:
        assert str(path.relative_to(ROOT / "docs")) in listed
        for target in re.findall(r"\]\(([^)#:]+\.md)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"
