"""A GPT in four stages, each on its own device, trained as a pipeline.

Run: python examples/pipeline.py, or mpirun -n 4 python examples/pipeline.py for a process per stage.
"""

import os
from pathlib import Path

import infini as inf
from infini import nn, numpy as inp, optim, parallel, random
from infini.sharding import make_mesh

WIDTH, WIDE, HEADS, STAGES, LENGTH, BATCH, MICROBATCHES = 64, 256, 4, 4, 64, 16, 8


def init(key, size):  # one tree per stage: a block each, the letters before the first and after the last
    block = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, WIDE), "down": (WIDE, WIDTH)}
    keys = iter(random.split(key, 2 + STAGES * len(block)))
    normal = lambda shapes: {name: 0.05 * random.normal(next(keys), shape) for name, shape in shapes.items()}
    params = [normal(block) for _ in range(STAGES)]
    params[0] |= normal({"letter": (size, WIDTH), "place": (LENGTH, WIDTH)})
    params[-1] |= {"letter": params[0]["letter"]}  # the same table reads and writes
    return params


def block(params, x):
    qkv = (nn.standardize(x) @ params["qkv"]).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
    seen = nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
    x = x + seen.reshape(x.shape) @ params["out"]
    return x + nn.gelu(nn.standardize(x) @ params["up"]) @ params["down"]


def first(params, letters):
    return block(params, params["letter"][letters] + params["place"])


def last(params, x):
    return nn.standardize(block(params, x)) @ params["letter"].T


def loss(scores, letters):
    return nn.losses.cross_entropy(scores, letters).mean()


def main(steps=200, schedule="1f1b"):
    own = 1 if parallel.process_count() > 1 else STAGES  # devices of this process
    with inf.config(cpu_devices=own):
        mesh = make_mesh((STAGES,), ("pp",))
        stages = [first, *[block] * (STAGES - 2), last]
        tied = [("0/letter", f"{STAGES - 1}/letter")]
        step = parallel.pipeline(
            stages, loss, mesh=mesh, num_microbatches=MICROBATCHES, schedule=schedule, shared=tied
        )
        text = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
        alphabet = sorted(set(text))
        data = inp.asarray([alphabet.index(letter) for letter in text])
        optimizer = optim.adam(3e-3)

        @inf.jit
        def update(gradient, state, params):  # of one stage, on its device; elsewhere it does nothing
            updates, state = optimizer.update(gradient, state, params)
            return optim.apply_updates(params, updates), state

        params = step.place(init(random.key(0), len(alphabet)))
        states, losses = [inf.jit(optimizer.init)(part) for part in params], []
        for key in random.split(random.key(1), steps):
            starts = random.randint(key, (BATCH, 1), 0, len(data) - LENGTH)
            rows = data[starts + inp.arange(LENGTH + 1)]
            value, gradient = step(params, rows[:, :-1], rows[:, 1:])
            params, states = zip(*map(update, gradient, states, params), strict=True)
            losses.append(float(value))
        if parallel.process_index() == 0:
            print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; where the time of the last step went:")
            print(step.record.timeline.text(width=100))
        return losses, step


if __name__ == "__main__":
    if "PMI_SIZE" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ:  # under mpirun
        parallel.initialize()
    main()
