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
    with pytest.raises(AttributeError, match="'infini.llm' has no attribute 'Engine'"):
        _ = llm.Engine


def test_the_package_alone_loads_nothing_heavy():
    script = "import sys, infini.llm; print([m for m in ('jinja2', 'llguidance', 'fastapi', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_loads_neither_server_nor_grammars():
    script = (
        "import sys; from infini.llm import LLM, AsyncLLM, SamplingParams; "
        "print([m for m in ('llguidance', 'fastapi', 'httpx', 'uvicorn', 'prompt_toolkit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
