"""Triton functions from text in memory: Triton reads the source of a function through `linecache`, so it is
put there.
"""

from __future__ import annotations

import hashlib
import linecache
from typing import Any


def load_module(text: str) -> dict[str, Any]:  # Any: the names that the text defines
    """Execute the text of a Triton module. Messages about it show its lines under `<infini-triton-HASH>`."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    file = f"<infini-triton-{digest}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    namespace: dict[str, Any] = {"__name__": f"infini_triton_{digest}"}
    exec(compile(text, file, "exec"), namespace)  # text of our own emitter
    return namespace
