"""What `import infini` loads: a list under version control, and none of the heavy packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = (
    "triton", "cupy", "mpi4py", "sympy", "fastapi", "tokenizers", "torch", "jax", "typer", "rich", "llvmlite",
    "safetensors", "msgpack", "hypothesis", "pytest",
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """Modules in memory after `import infini` in a fresh process."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    done = subprocess.run(
        [sys.executable, "-c", "import infini, sys; print('\\n'.join(sorted(sys.modules)))"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return done.stdout.split()


def test_import_loads_the_modules_on_the_list(loaded: list[str], golden: Callable[[str, str], None]) -> None:
    ours = [name for name in loaded if name.partition(".")[0] == "infini"]
    golden("import_infini.txt", "\n".join(ours))


@pytest.mark.parametrize("name", HEAVY)
def test_import_leaves_heavy_packages_alone(loaded: list[str], name: str) -> None:
    assert [module for module in loaded if module.partition(".")[0] == name] == []


def test_the_look_for_a_device_loads_nothing_of_vendors_whose_library_is_not_here() -> None:
    """The tables of an adapter, what compiles for it, and Triton's side of the compiler are for machines with
    its runtime.
    """
    code = """
import sys
from infini.core import backend
assert {"metax", "ascend"} <= set(backend.names()), backend.names()
for name in ("metax", "ascend"):
    assert backend.get(name).devices() == ()
backend.default_device()
print(*(name for name in sys.modules if ".vendors." in name or ".triton" in name))
"""
    homes = ("MACA", "ASCEND")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(homes)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    found = {name.rpartition(".")[2] for name in done.stdout.split()}
    assert found <= {"metax", "ascend", "adapter", "places"}


def test_a_first_operation_that_was_compiled_before_loads_no_emitter(tmp_path: Path) -> None:
    """What writes LLVM's text is for programs that are not in the disk cache."""
    code = "import sys, infini; infini.numpy.zeros(3) + 1; print(*sys.modules)"
    knobs = {"INFINI_CACHE_DIR": str(tmp_path), "INFINI_DEVICE": "cpu", "INFINI_NO_CACHE": ""}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, **knobs},
        )  # fmt: skip
    found = {name for name in done.stdout.split() if name.startswith("infini.compiler.llvm.")}
    assert found == {"infini.compiler.llvm.target", "infini.compiler.llvm.library_symbols"}
