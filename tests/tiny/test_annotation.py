"""Sentence 4: parallelism is annotation. One model, unsharded, on two lockstep devices, and under mpirun."""

import subprocess
import sys

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.sharding import P

SPECS = {"up": P(None, "model"), "down": P("model")}


def train(*names):
    x = np.sin(np.arange(96, dtype=np.float32)).reshape(12, 8)
    params = {"up": np.cos(np.ones((8, 16), np.float32).cumsum(1)), "down": np.ones((16, 1), np.float32)}
    step = infini.value_and_grad(lambda p: ((inp.tanh(x @ p["up"]) @ p["down"] - 1) ** 2).mean())
    step = infini.shard(step, mesh=infini.make_mesh((2,), names), in_specs=(SPECS,)) if names else step
    losses = []
    for _ in range(3):
        value, gradient = step(params)
        params = infini.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
        losses.append(float(value))
    return losses


@pytest.mark.multi
def test_losses_are_equal_unsharded_in_lockstep_and_under_mpirun(mpirun_path):
    with infini.config(cpu_devices=2):
        np.testing.assert_allclose(train("model"), train(), rtol=1e-5)
    script = (
        "import infini.parallel as p; p.initialize(); import runpy, sys; m = runpy.run_path(sys.argv[1])\n"
    )
    script += "losses = m['train']('model')\nif p.process_index() == 0: print(*losses)"
    command = [mpirun_path, "-n", "2", sys.executable, "-c", script, __file__]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(np.array(out.split(), float), train(), rtol=1e-5)
