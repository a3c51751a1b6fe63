"""Rendering a template that a request brought, in a process that is killed when it takes too long.

The sandbox and its budgets (`templates`) hold there as they do here. The process is a second wall: it has a
limit of memory and of processor time from the system, reads nothing but what it is sent, and one rendering is
all it does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from infini.llm.text import template_sandbox, templates

MAX_MEMORY_BYTES: Final = 1 << 30
_GRACE_S: Final = 3.0  # for the start of the process
# What packages load when they are imported, arrays and compiler, takes longer than a template, and none of it
# is needed: bare packages stand in their place.
_CODE: Final = """
import sys, types
for name in ("infini", "infini.core", "infini.llm"):
    package = types.ModuleType(name)
    package.__path__ = ["/".join([{folder!r}, *name.split(".")[1:]])]
    sys.modules[name] = package
from infini.llm.text import template_process
template_process.serve()
"""


def render(template: str, values: Mapping[str, Any]) -> str:  # Any: JSON
    """As `templates.render`, in a process of its own.

    Raises:
        ChatTemplateError: as there; and if the process took too long or died.
    """
    folder = str(Path(__file__).resolve().parents[2])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE.format(folder=folder)],
            input=json.dumps({"template": template, "values": values}).encode(),
            capture_output=True,
            timeout=template_sandbox.MAX_SECONDS + _GRACE_S,
            check=False,
            env={"PATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
        )
    except subprocess.TimeoutExpired:
        raise templates.ChatTemplateError(
            "the chat template exceeds a limit", got=f"it took more than {template_sandbox.MAX_SECONDS:g} s"
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise templates.ChatTemplateError(
            "the chat template exceeds a limit", got=f"its process ended with {done.returncode}"
        ) from None
    if "text" in answer:
        return str(answer["text"])
    raise templates.ChatTemplateError(answer["what"], got=answer["got"], fix=answer["fix"])


def serve() -> None:
    """Render what standard input holds: the other side of `render`."""
    _limit()
    asked = json.load(sys.stdin.buffer)
    try:
        answer: dict[str, str | None] = {"text": templates.render(asked["template"], asked["values"])}
    except templates.ChatTemplateError as error:
        answer = {"what": error.what, "got": error.got, "fix": error.fix}
    sys.stdout.buffer.write(json.dumps(answer).encode())


def _limit() -> None:
    """Ask the system for limits, where it has them."""
    try:
        import resource
    except ImportError:  # Windows
        return
    seconds = int(template_sandbox.MAX_SECONDS + _GRACE_S)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
