"""`python -m tools.triton_versions`: the golden kernels on several versions of Triton, each in its own
environment.

Environments are made in `.triton/` when they are first needed and stay there; they hold Triton, NumPy,
which it imports, and nothing of ours. Kernels are compiled for GPUs that are not here. Triton 3.0 and 3.2
bring no linker for AMD's binaries: that of the newest takes its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from infini.compiler.triton.source import TritonSource
from tests.compiler import golden_kernels
from tools import layers

NEWEST: Final = "newest"
VERSIONS: Final = ("3.0.0", "3.2.0", "3.6.0", NEWEST)
# The last Python that there are wheels for.
LAST_PYTHON: Final = {"3.0.0": (3, 12), "3.2.0": (3, 13)}
TARGETS: Final = ("sm_80", "sm_90", "gfx942")
_FOLDER: Final = layers.ROOT / ".triton"
_RUNNER: Final = Path(__file__).with_name("triton_runner.py")
_LINKER: Final = """\
#!{python}
import sys
if "--version" in sys.argv:
    print("LLD, by way of the newest Triton")
else:
    from triton._C.libtriton import amd
    amd.link_hsaco(sys.argv[-3], sys.argv[-1])
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a version of Triton says to a kernel: `ok`, or its message."""

    version: str
    target: str
    kernel: str
    text: str


def environment(version: str) -> Path:
    """The Python of an environment with a version of Triton; made when there is none.

    Raises:
        CalledProcessError: pip finds no wheel of that version for this Python.
    """
    folder = _FOLDER / version
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if stamp.exists():
        return python
    typer.echo(f"installing Triton {version} in {folder.relative_to(layers.ROOT)}")
    wanted = "triton" if version == NEWEST else f"triton=={version}"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, wanted, "numpy"], check=True)
    stamp.touch()
    return python


def jobs() -> list[dict[str, object]]:
    """The golden kernels as the runner takes them, each once."""
    found: dict[str, tuple[str, TritonSource]] = {}
    for name, golden in {**golden_kernels.PROGRAMS, **golden_kernels.RULES}.items():
        for source in golden_kernels.sources(golden):
            found.setdefault(source.key, (f"{name}: {source.function_name}", source))
    for name in golden_kernels.FOLDED:
        for how, target in golden_kernels.NARROW.items():
            for source in golden_kernels.sources(golden_kernels.PROGRAMS[name], target):
                found.setdefault(source.key, (f"{name} {how}: {source.function_name}", source))
    return [
        {
            "name": name,
            "text": source.text,
            "function": source.function_name,
            "signature": source.signature,
            "divisibility": source.divisibility,
            "num_warps": source.num_warps,
            "num_stages": source.num_stages,
        }
        for name, source in found.values()
    ]


def verdicts(version: str, targets: Sequence[str] = TARGETS) -> list[Verdict]:
    """What a version says to every golden kernel for every target."""
    python, newest = environment(version), environment(NEWEST)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "jobs.json").write_text(json.dumps(jobs()))
        linker = path / "ld.lld"
        linker.write_text(_LINKER.format(python=newest))
        linker.chmod(0o755)
        own = {"TRITON_CACHE_DIR": str(path / "cache"), "TRITON_HIP_LLD_PATH": str(linker)}
        done = subprocess.run(
            [str(python), str(_RUNNER), str(path / "jobs.json"), *targets],
            env={**os.environ, **own, "TRITON_DEFAULT_FP_FUSION": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"Triton {version} ended with {done.returncode}:\n{done.stderr}")
    return [Verdict(version, *json.loads(line)) for line in done.stdout.splitlines()]


def main(
    *,
    only: Annotated[list[str] | None, typer.Option(help="Versions; all of them when absent.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Targets; all of them when absent.")] = None,
) -> None:
    """Compile the golden kernels and show what each version says."""
    num_failed = 0
    for version in only or VERSIONS:
        found = verdicts(version, target or TARGETS)
        for place in target or TARGETS:
            mine = [v for v in found if v.target == place]
            refused = [v for v in mine if v.text != "ok"]
            typer.echo(f"Triton {version} for {place}: {len(mine) - len(refused)} of {len(mine)} compile")
            for each in refused:
                typer.echo(f"  {each.kernel}: {each.text[:400]}")
            num_failed += len(refused)
    raise typer.Exit(min(num_failed, 1))


if __name__ == "__main__":
    typer.run(main)
