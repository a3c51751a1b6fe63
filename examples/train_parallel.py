"""A GPT trained over a mesh: the same program for one device and for many, split as the axes say.

Run: python examples/train_parallel.py --mesh dp=2,tp=2 for four devices in this process, or
mpirun -n 4 python examples/train_parallel.py --mesh fsdp=2,tp=2 for a process each. Stages of a pipeline
are programs of their own: see examples/pipeline.py, and infini train --mesh pp=2."""

import argparse
import math
import os
import re
from functools import partial
from pathlib import Path

import infini as inf
from infini import numpy as inp, optim, parallel, random
from infini.parallel import recipes
from infini.sharding import P, make_mesh
from infini.train import gpt

# What the name of an axis stands for. Recipes that know the model come before those that take what is left.
AXES = {
    "cp": recipes.context,
    "ep": recipes.experts,
    "tp": recipes.tensor,
    "dp": recipes.data,
    "zero1": recipes.zero1,
    "fsdp": recipes.zero3,
}
SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "head_dim": 16}
LENGTH, BATCH = 32, 16


def main(axes, steps=20):
    config = gpt.Config(**SIZES, num_experts=8 * ("ep" in axes), capacity_factor=1.25)
    recipe = recipes.product(*(make(name) for name, make in AXES.items() if name in axes))
    optimizer = optim.adam(3e-3)

    def step(params, state, rows):  # written for whole arrays; nothing in it knows of devices
        loss, gradient = inf.value_and_grad(partial(gpt.loss, config=config))(params, rows)
        updates, state = optimizer.update(gradient, state, params)
        return optim.apply_updates(params, updates), state, loss

    def init(key):
        params = gpt.init(key, config)
        return params, optimizer.init(params)

    own = math.prod(axes.values()) // parallel.process_count()  # devices of this process
    with inf.config(cpu_devices=own):
        mesh = make_mesh(tuple(axes.values()), tuple(axes))
        params, state = inf.eval_shape(init, random.key(0))  # types only: where each array shall lie
        specs = recipe.params(params, mesh), recipe.optimizer(state, mesh)
        params, state = inf.shard(init, mesh=mesh, out_specs=specs)(random.key(0))  # made where they lie
        placed = {"in_specs": (*specs, recipe.of_batch()), "out_specs": (*specs, P())}
        placed |= {"named": recipe.of_names(), "strategies": recipe.strategies}
        run = inf.shard(step, mesh=mesh, donate_argnums=(0, 1), **placed)
        text = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
        data, losses = inp.asarray(list(text.encode("ascii", "replace"))), []
        for key in random.split(random.key(1), steps):
            starts = random.randint(key, (BATCH, 1), 0, len(data) - LENGTH)
            rows = data[starts + inp.arange(LENGTH + 1)]
            if not losses and parallel.process_index() == 0:
                print(parallel.explain_sharding(run, params, state, rows, memory=False).summary())
            params, state, loss = run(params, state, rows)
            losses.append(float(loss))
            if parallel.process_index() == 0:
                print(f"step {len(losses)}: loss {losses[-1]:.4f}")
        return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mesh", default="dp=2,tp=2", help=f"axes and sizes; axes: {', '.join(AXES)}")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    if not re.fullmatch(rf"(({'|'.join(AXES)})=[1-9]\d*(,(?!$)|$))+", given.mesh):
        parser.error(f"--mesh takes axes with their sizes, such as dp=2,tp=2; there are {', '.join(AXES)}")
    axes = {name: int(size) for name, size in (part.split("=") for part in given.mesh.split(","))}
    if "PMI_SIZE" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ:  # under mpirun
        parallel.initialize()
    if math.prod(axes.values()) % parallel.process_count():
        parser.error(f"{parallel.process_count()} processes cannot have as many devices each of this mesh")
    main(axes, given.steps)
