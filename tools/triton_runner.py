"""Compile kernels with the Triton of the Python that runs this; it needs nothing else.

`python triton_runner.py JOBS TARGET ...` reads a JSON list of jobs, and writes a JSON line with target, job
and verdict for each: "ok", or what Triton said. Versions from 3.0 on name the parts of a source
differently.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import linecache
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends import compiler as backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compiler

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def load(text: str, name: str) -> Any:  # Any: Triton's
    """The function of a text."""
    file = f"<{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(text, file, "exec"), namespace)  # text of our own emitter
    return namespace[name]


def source(job: dict[str, Any]) -> Any:  # Any: Triton's
    """A job as this version of Triton takes it."""
    function = load(job["text"], job["function"])
    names = [name for name, _ in job["signature"]]
    aligned = [names.index(name) for name in job["divisibility"]]
    signature = dict(job["signature"])
    if "constexprs" in inspect.signature(ASTSource.__init__).parameters:
        attrs = {(place,): [["tt.divisibility", 16]] for place in aligned}
        return ASTSource(function, signature, constexprs={}, attrs=attrs)
    if hasattr(backends, "AttrsDescriptor"):  # 3.2
        properties = {"tt.divisibility": aligned, "tt.equal_to": []}
        described = {"arg_properties": properties, "cls": "AttrsDescriptor"}
        return ASTSource(
            function, signature, constants={}, attrs=backends.AttrsDescriptor.from_dict(described)
        )
    numbered = {place: kind for place, (_, kind) in enumerate(job["signature"])}
    return ASTSource(function, numbered, constants={}, attrs=compiler.AttrsDescriptor(tuple(aligned), ()))


def verdict(job: dict[str, Any], target: str) -> str:
    """What Triton says to a job."""
    options = {"num_warps": job["num_warps"], "num_stages": job["num_stages"]}
    try:
        found = triton.compile(source(job), target=TARGETS[target], options=options)
    except Exception as error:  # noqa: BLE001  # whatever it raises is what it says
        return f"{type(error).__name__}: {error}"
    binary = "hsaco" if target.startswith("gfx") else "cubin"
    return "ok" if found.asm.get(binary) else f"there is no {binary}"


def main(path: str, targets: list[str]) -> None:
    """Compile every job for every target."""
    for job in json.loads(Path(path).read_text()):
        for target in targets:
            print(json.dumps([target, job["name"], verdict(job, target)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
