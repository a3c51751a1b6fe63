"""The compile step of vendors on the Triton that is installed: any Triton is a fork of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
from infini.backends.vendors import fork, metax
from infini.backends.vendors.fork import TritonFork
from infini.compiler.triton import emit
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import Target, amd, nvidia
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from tests.tile import kernels

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
    with pytest.raises(errors.LoweringError, match="kernels for MetaX cannot be compiled here"):
        FORK.compile(softmax(metax.TARGET), metax.TARGET)


def test_without_triton_the_reason_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(fork.importlib.util, "find_spec", lambda name: None)
    assert FORK.why_unavailable(nvidia(80)) == "no Triton is installed; install it"
