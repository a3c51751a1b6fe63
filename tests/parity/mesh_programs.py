"""What JAX answers on eight devices: evaluates a table of programs with it, in a process of its own because
the number of devices is fixed before JAX is imported. `python -m tests.parity.mesh_programs` records them.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Program = Callable[[Any], Any]  # of a library: jax, or infini under that name
TABLES = {
    "shardings": "tests.parity.sharding_programs",
    "shard_map": "tests.parity.shard_map_programs",
    "collectives_xla": "tests.parity.annotated_programs",
}
RECORDED = Path(__file__).parent / "recorded"


def outcome(program: Program, lib: Any) -> Any:
    """What a program returns as JSON holds it, or the kind of its error."""
    try:
        return plain(program(lib))
    except Exception as error:  # noqa: BLE001  # the kind of error is what is compared
        return {"error": kind(error)}


def kind(error: Exception) -> str:
    """The built-in class of an error."""
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")


def plain(answer: Any) -> Any:
    """Arrays as nested lists, sets and slices as lists."""
    if isinstance(answer, dict):
        return {str(key): plain(item) for key, item in answer.items()}
    if isinstance(answer, (set, frozenset)):
        return sorted(map(plain, answer))
    if isinstance(answer, (list, tuple)):
        return [plain(item) for item in answer]
    if isinstance(answer, slice):
        return f"{answer.start}:{answer.stop}"
    if answer is None or isinstance(answer, (str, bool, int, float)):
        return answer
    return np.asarray(answer).tolist()


def same(ours: Any, theirs: Any) -> bool:
    """Whether two answers are equal, floats within rounding."""
    if isinstance(theirs, dict):
        return (
            isinstance(ours, dict)
            and list(ours) == list(theirs)
            and all(same(ours[k], theirs[k]) for k in theirs)
        )
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, float) and isinstance(ours, float):
        return bool(np.isclose(ours, theirs, rtol=2e-5, atol=1e-5))
    return type(ours) is type(theirs) and bool(ours == theirs)


def recorded(table: str) -> dict[str, Any]:
    """JAX's answers of a table."""
    return json.loads((RECORDED / f"{table}.json").read_text())


def ask_jax(table: str) -> dict[str, Any]:
    """JAX's answers of a table, evaluated now."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.parity.mesh_programs", table]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print JAX's answers of one table, or record those of all."""
    if len(sys.argv) > 1:
        jax = importlib.import_module("jax")
        importlib.import_module("jax.numpy")
        programs = importlib.import_module(TABLES[sys.argv[1]]).PROGRAMS
        sys.stdout.write(json.dumps({name: outcome(run, jax) for name, run in programs.items()}))
        return
    for table in TABLES:
        lines = [f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in ask_jax(table).items()]
        (RECORDED / f"{table}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
