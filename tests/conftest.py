"""What every test shares.

One BLAS thread, seeds from the test's name, golden files, and markers that skip with a reason.
"""

from __future__ import annotations

import os

# Before NumPy is imported: tests run side by side, one process per core.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import ctypes.util
import functools
import hashlib
import importlib.util
import random
import shutil
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import hypothesis
import numpy as np
import pytest

TESTS: Final = Path(__file__).resolve().parent
GOLDEN: Final = TESTS / "golden"
DEFAULT_BACKENDS: Final = "reference,cpu"

# A shell starts background jobs with Ctrl-C ignored, and all that they start inherit it.
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("dev", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("ci", max_examples=300, deadline=None, derandomize=True)
hypothesis.settings.register_profile("night", max_examples=5000, deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files instead of comparing with them"
    )
    parser.addoption(
        "--backend", default=DEFAULT_BACKENDS,
        help=f"backends of tests with the fixture `backend_name`, by commas (default {DEFAULT_BACKENDS})",
    )  # fmt: skip
    parser.addoption("--slow", action="store_true", help="run tests marked slow")
    parser.addoption("--network", action="store_true", help="run tests marked network")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend_name" in metafunc.fixturenames:
        metafunc.parametrize("backend_name", metafunc.config.getoption("backend").split(","), scope="session")


# --- markers ------------------------------------------------------------------------------


@functools.cache
def _why_no_gpu() -> str | None:
    if ctypes.util.find_library("cuda") is None:
        return "no CUDA driver (libcuda) on this machine"
    missing = [name for name in ("cupy", "triton") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def mpirun() -> str | None:
    """Path of `mpirun`: that beside this Python, where the wheel of MPICH puts it, or the system's."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


@functools.cache
def _why_no_mpi() -> str | None:
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return None if mpirun() else "mpirun is not installed"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": _why_no_gpu(),
        "multi": _why_no_mpi(),
        "slow": None if config.getoption("slow") else "slow; runs with --slow",
        "network": None if config.getoption("network") else "needs the network; runs with --network",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


# --- fixtures -----------------------------------------------------------------------------


def _seed(node_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(node_id.encode(), digest_size=4).digest(), "little")


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A number made from the test's own name, which also seeds `random` and NumPy's global generator."""
    number = _seed(request.node.nodeid)
    random.seed(number)
    np.random.seed(number)
    return number


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """NumPy's generator, seeded by the test's name."""
    return np.random.default_rng(seed)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares with `tests/golden/<name>`; `--update-golden` writes the file instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("update_golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(
                f"there is no {path.relative_to(TESTS.parent)}; run with --update-golden, and read the result"
            )
        assert text == path.read_text(encoding="utf-8"), f"{name} changed; --update-golden writes it anew"

    return compare


@pytest.fixture(scope="session")
def mpirun_path() -> str:
    """Path of `mpirun`, for tests marked `multi`."""
    found = mpirun()
    assert found is not None
    return found


# --- time per folder ----------------------------------------------------------------------

_seconds: defaultdict[str, float] = defaultdict(float)
_counts: defaultdict[str, int] = defaultdict(int)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    parts = Path(report.nodeid.partition("::")[0]).parts
    folder = parts[1] if len(parts) > 2 else "."
    _seconds[folder] += report.duration
    _counts[folder] += report.when == "call"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if len(_seconds) > 1 or "." not in _seconds:
        terminalreporter.section("time per folder, all processes together")
        for folder, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{seconds:8.1f} s {_counts[folder]:6} tests  tests/{folder}")
