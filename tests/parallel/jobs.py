"""Jobs of several processes that tests start under mpirun: their environment, and what each process found.

    found = jobs.found(mpirun_path, 4, runs, folder)

runs a function of a test module in each of four processes. One job that runs every case costs the start of
Python once, so tests read what a fixture of the module found.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CALL = """
import importlib, json, sys
import infini.parallel as parallel
parallel.initialize()
module, name, arguments = sys.argv[2:]
found = getattr(importlib.import_module(module), name)(*json.loads(arguments))
"""
TELL = """
import json, pathlib, sys
import infini.parallel
pathlib.Path(sys.argv[1], str(infini.parallel.process_index())).write_text(json.dumps(found))
"""


def environment(**settings: object) -> dict[str, str]:
    """Of a process that imports this tree: no knobs but the given ones, such as `INFINI_DEVICE="cpu"`; the
    reference backend and one thread when they say nothing else. None leaves a variable out.
    """
    kept = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    own = {
        "PYTHONPATH": ROOT,
        "COLUMNS": 160,
        "INFINI_DEVICE": "reference",
        "INFINI_NUM_THREADS": 1,
        "OMPI_ALLOW_RUN_AS_ROOT": 1,
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1,
        **settings,
    }
    return kept | {name: str(value) for name, value in own.items() if value is not None}


def run(
    mpirun_path: str, count: int, *arguments: str, timeout_s: float = 120, **settings: object
) -> subprocess.CompletedProcess[str]:
    """What Python said under mpirun.

    Args:
        mpirun_path: of the fixture of that name.
        count: number of processes.
        *arguments: of Python, such as `"-c", script`.
        timeout_s: after which the job is killed, and the test fails.
        **settings: see `environment`.
    """
    return subprocess.run(
        [mpirun_path, "-n", str(count), sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**settings),
    )


def found_by(
    mpirun_path: str, count: int, script: str, folder: Path, *arguments: str, **settings: object
) -> list[Any]:
    """What a script leaves in its variable `found` in each process, by the number of the process.

    Args:
        mpirun_path: of the fixture of that name.
        count: number of processes.
        script: Python, which makes `found` of what JSON can write.
        folder: an empty one.
        *arguments: of the script, from `sys.argv[2]` on.
        **settings: see `environment`.
    """
    told = ("-c", script + TELL, str(folder), *arguments)
    done = run(mpirun_path, count, *told, timeout_s=240, **settings)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / str(rank)).read_text()) for rank in range(count)]


def found(
    mpirun_path: str,
    count: int,
    function: Callable[..., Any],
    folder: Path,
    arguments: Sequence[Any] = (),
    **settings: object,
) -> list[Any]:
    """What a function of a test module returns in each process, by the number of the process.

    Args:
        mpirun_path: of the fixture of that name.
        count: number of processes.
        function: one at the top of a module under `tests`; it returns what JSON can write.
        folder: an empty one.
        arguments: of the function.
        **settings: see `environment`.
    """
    path = Path(inspect.getfile(function)).resolve().relative_to(ROOT)
    module = ".".join(path.with_suffix("").parts)
    told = (module, function.__name__, json.dumps(arguments))
    return found_by(mpirun_path, count, CALL, folder, *told, **settings)
