"""What `infini.llm` offers, and what it loads for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from infini import llm


@pytest.mark.parametrize("name", llm.__all__)
def test_every_name_is_there(name):
    assert getattr(llm, name).__name__ == name
    assert name in dir(llm)


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match=r"'infini\.llm' has no attribute 'Engine'"):
        _ = llm.Engine


HEAVY = ("llguidance", "fastapi", "httpx", "uvicorn", "prompt_toolkit")


def loaded(statement: str, names: tuple[str, ...]) -> str:
    """Which modules a statement loads, as text."""
    script = f"import sys; {statement}; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_package_alone_loads_nothing_heavy():
    assert loaded("import infini.llm", (*HEAVY, "jinja2")) == "[]"


def test_the_engine_loads_neither_server_nor_grammars():
    assert loaded("from infini.llm import LLM, AsyncLLM, SamplingParams", HEAVY) == "[]"
