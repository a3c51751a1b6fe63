"""Training steps over a mesh of all GPUs there are, beside the same steps of one device: what `gpu_smoke`
runs in one process, and under mpirun in two.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import parallel
from infini.core import events
from infini.sharding import NamedSharding, P, make_mesh

STEPS, WIDTH, BATCH = 3, 64, 16
SPECS = {"data": (P(), P("x")), "zero3": (P("x"), P("x")), "tensor": (P(None, "x"), P())}


def step(w1: Any, w2: Any, x: Any) -> Any:  # Any: arrays
    """Loss, and weights after a step."""

    def loss(ws: Any) -> Any:  # Any: arrays
        return ((inp.tanh(x @ ws[0]) @ ws[1] - x) ** 2).mean()

    value, (g1, g2) = inf.value_and_grad(loss)((w1, w2))
    return value, w1 - 0.1 * g1, w2 - 0.1 * g2


def losses(placements: Any) -> list[float]:  # Any: a sharding for each array, or None
    """Losses of some steps."""
    rng = np.random.default_rng(0)
    shapes = ((WIDTH, WIDTH), (WIDTH, WIDTH), (BATCH, WIDTH))
    arrays: list[Any] = [(rng.standard_normal(shape) / 8).astype(np.float32) for shape in shapes]
    if placements is not None:
        arrays = [inf.device_put(a, place) for a, place in zip(arrays, placements, strict=True)]
    run, found = inf.jit(step), []
    for _ in range(STEPS):
        value, *arrays[:2] = run(*arrays)
        found.append(float(value))
    return found


def check() -> float:
    """The largest error of a loss, relative; over all GPUs in every way of splitting."""
    with inf.config(device="reference"):
        wanted = losses(None)
    worst = 0.0
    with inf.config(device="cuda"):
        mesh = make_mesh((len(inf.devices()),), ("x",))
        for weights, batch in SPECS.values():
            found = losses([NamedSharding(mesh, spec) for spec in (weights, weights, batch)])
            worst = max(worst, *(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True)))
    if not worst <= 1e-4:
        raise AssertionError(f"error {worst:.3g} is above 1e-4")
    return worst


def main() -> None:
    """What a process of the job does; the first one prints a line of JSON."""
    parallel.initialize()
    with events.record() as told:
        worst = check()
    way = next((event.message for event in told if event.code == "exchanges-by-host"), "between the GPUs")
    if parallel.process_index() == 0:
        print(json.dumps({"error": worst, "processes": parallel.process_count(), "exchanges": way}))


if __name__ == "__main__":
    main()
