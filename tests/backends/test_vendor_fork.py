"""The compile step of vendors on the Triton that is installed: any Triton is a fork of itself."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
from infini.backends.vendors import fork, metax_tables as metax
from infini.backends.vendors.fork import TritonFork
from infini.compiler.triton import emit
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import Target, amd, nvidia
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from tests.tile import kernels
from tools import layers, triton_versions

FORK = TritonFork(install="install it", facts=("num_stages", "nothing"))


def softmax(target: Target) -> TritonSource:
    type_ = ArrayType((8, 100), dtypes.float32)
    return emit.emit_triton(kernels.softmax.specialize([type_]), [type_], target=target)


@pytest.mark.parametrize("target", [nvidia(80), amd("gfx942")], ids=lambda t: t.name)
def test_a_kernel_by_the_installed_triton(target: Target) -> None:
    assert FORK.why_unavailable(target) is None
    with inf.config(no_cache=True):
        kernel = FORK.compile(softmax(target), target)
    assert kernel.code[:4] == b"\x7fELF" and kernel.name.startswith("softmax")
    assert kernel.parameters == ("*fp32", "*fp32") and kernel.num_hidden == 2
    assert kernel.num_warps == softmax(target).num_warps and set(kernel.facts) == {"num_stages"}


def test_a_kernel_is_compiled_once(tmp_path: Path, monkeypatch: Any) -> None:
    target = nvidia(80)
    with inf.config(cache_dir=str(tmp_path), no_cache=False):
        first = FORK.compile(softmax(target), target)
        monkeypatch.setattr(TritonFork, "_compile", None)
        assert FORK.compile(softmax(target), target) == first
        with pytest.raises(TypeError):  # for another processor it is compiled again
            FORK.compile(softmax(target), nvidia(90))


def test_a_source_that_triton_refuses_is_an_error_with_its_words() -> None:
    source = softmax(nvidia(80))
    broken = dataclasses.replace(source, text=source.text.replace("tl.exp(", "tl.explode("))
    with (
        inf.config(no_cache=True),
        pytest.raises(errors.LoweringError, match=r"(?s)for sm_80 refuses the kernel softmax.*explode"),
    ):
        FORK.compile(broken, nvidia(80))


def test_a_processor_of_another_fork_is_refused() -> None:
    reason = FORK.why_unavailable(metax.TARGET)
    assert reason is not None and "nvidia" in reason and "not for maca; install it" in reason
    with pytest.raises(
        errors.LoweringError, match="the kernel softmax_kernel for MetaX cannot be compiled here"
    ):
        FORK.compile(softmax(metax.TARGET), metax.TARGET)


def test_without_triton_the_reason_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(fork.importlib.util, "find_spec", lambda name: None)
    assert FORK.why_unavailable(nvidia(80)) == "no Triton is installed; install it"


OLD = """
import json, sys
sys.path.insert(0, sys.argv[1])
sys.path.append(sys.argv[2])  # what infini needs; Triton is this environment's
import triton
import infini
from infini.backends.vendors.fork import TritonFork
from infini.compiler.triton.target import nvidia
from tests.backends.test_vendor_fork import softmax
with infini.config(no_cache=True):
    kernel = TritonFork(install="").compile(softmax(nvidia(80)), nvidia(80))
found = kernel.code[:4] == b"\\x7fELF", kernel.parameters, kernel.num_hidden, kernel.num_warps
print(json.dumps([triton.__version__, *found]))
"""


@pytest.mark.night
@pytest.mark.parametrize(("version", "num_hidden"), [("3.0.0", 0), ("3.2.0", 0), ("3.6.0", 2)])
def test_sources_are_described_as_each_version_of_triton_wants(version: str, num_hidden: int) -> None:
    if sys.version_info[:2] > triton_versions.LAST_PYTHON.get(version, sys.version_info[:2]):
        pytest.skip(f"there is no Triton {version} for this Python")
    arguments = [str(triton_versions.environment(version)), "-c", OLD]
    arguments += [str(layers.ROOT), sysconfig.get_path("purelib")]
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    expected = [version, True, ["*fp32", "*fp32"], num_hidden, softmax(nvidia(80)).num_warps]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
