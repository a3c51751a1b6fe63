"""Programs read nothing before or behind their operands: these lie against pages that nobody may touch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAMS = """
import numpy as np
import infini as inf, infini.numpy as inp
from infini import lax
from tests.compiler.fences import fenced

rng = np.random.default_rng(0)

def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)

def windows(x, k):
    padded, total = lax.pad(x, np.float32(0), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0))), 0.0
    for i in range(3):
        for j in range(3):
            total = total + padded[:, i : i + x.shape[1], j : j + x.shape[2], :, None] * k[i, j]
    return total

CASES = {
    "windows": (windows, normal(2, 8, 8, 16), normal(3, 3, 16, 2)),
    "windows_of_odd_images": (windows, normal(1, 7, 5, 3), normal(3, 3, 3, 5)),
    "shifted": (lambda x: lax.pad(x, np.float32(1), ((3, -2, 0), (-1, 4, 1))) * 2, normal(9, 13)),
    "concatenate": (lambda x, y: inp.tanh(inp.concatenate([x, y[:, :3], x], 1)), normal(5, 16), normal(5, 4)),
    "roll": (lambda x: inp.roll(x, 3, 1) + x * inp.roll(x, -2, 0), normal(7, 16)),
    "rows": (lambda x: x / (1 + inp.abs(x).sum(-1, keepdims=True)), normal(3, 17)),
    "columns": (lambda x: (x - x.mean(0)) / (1 + x.var(0)), normal(17, 19)),
    "product": (lambda x, y: inp.maximum(x @ y + 1, 0), normal(13, 37), normal(37, 29)),
    "product_of_transposed": (lambda x, y: x.T @ y.T, normal(37, 13), normal(29, 37)),
    "few_rows": (lambda x, y: x @ y, normal(9, 48), normal(48, 80)),
    "convolution": (lambda x, k: lax.conv(x, k, (1, 1), "SAME"), normal(1, 3, 9, 7), normal(5, 3, 3, 3)),
    "take": (lambda x: inp.take(x, inp.array([0, 4, 2, 4]), axis=0) + x[::-1][:4], normal(5, 33)),
    "take_along": (lambda x: inp.take_along_axis(x, inp.argsort(x, 1), 1), normal(6, 33)),
    "cumulative": (lambda x: inp.cumsum(x, 1) + inp.cumsum(x, 0), normal(6, 33)),
    "top": (lambda x: lax.top_k(x, 3)[0], normal(6, 35)),
    "pooled": (lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 3), (1, 2), "SAME"), normal(6, 35)),
    "triangle": (lambda x: inp.where(inp.tril(inp.ones(x.shape, bool)), x, -1).sum(1), normal(17, 17)),
}

for name, (function, *arguments) in CASES.items():
    expected = np.asarray(inf.jit(function)(*arguments))
    gradient = inf.jit(inf.grad(lambda *xs: (function(*xs) ** 2).sum()))
    for at_end in (False, True):
        print(name, at_end, flush=True)
        given = [fenced(x, at_end=at_end) for x in arguments]
        np.testing.assert_array_equal(np.asarray(inf.jit(function)(*given)), expected)
        gradient(*given)
print("all in bounds")
"""


# The examples of the kernel language, whose tiles overrun their arrays.
KERNELS = """
import numpy as np
import infini as inf
from tests.compiler.fences import fenced
from tests.tile.example_kernels import CASES

for case in CASES:
    for dtype in map(np.dtype, ("float32", "float16")):
        operands = case.operands(np.random.default_rng(0), dtype)
        run = inf.jit(lambda *xs: case.kernel(*xs, **case.static))
        expected = np.asarray(run(*operands))
        for at_end in (False, True):
            print(case, dtype, at_end, flush=True)
            given = [fenced(x, at_end=at_end) for x in operands]
            np.testing.assert_array_equal(np.asarray(run(*given)), expected)
print("all in bounds")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the flags of mmap are Linux's")
@pytest.mark.parametrize("programs", [PROGRAMS, KERNELS], ids=["fused", "written"])
def test_programs_read_only_their_operands(programs: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", programs], capture_output=True, text=True, timeout=300,
        env={**os.environ, "INFINI_DEVICE": "cpu", "INFINI_NUM_THREADS": "2"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"after {lines[-1:]}: {done.stderr[-2000:]}"
    assert lines[-1] == "all in bounds"
