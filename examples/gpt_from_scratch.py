"""A GPT in plain functions, letters in and letters out. Run: python examples/gpt_from_scratch.py"""

from pathlib import Path

import infini as inf
from infini import nn, numpy as inp, optim, random

WIDTH, WIDE, HEADS, LAYERS, LENGTH, BATCH = 64, 256, 4, 2, 64, 16


def init(key, size):  # one table of vectors for letters, one for places, and matrices for the blocks
    tables = {"letter": (size, WIDTH), "place": (LENGTH, WIDTH), "head": (WIDTH, size)}
    block = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, WIDE), "down": (WIDE, WIDTH)}
    keys = iter(random.split(key, len(tables) + LAYERS * len(block)))
    normal = lambda shapes: {name: 0.05 * random.normal(next(keys), shape) for name, shape in shapes.items()}
    return normal(tables) | {"blocks": [normal(block) for _ in range(LAYERS)]}


def forward(params, letters):  # (batch, length) -> (batch, length, size): scores of what comes next
    x = params["letter"][letters] + params["place"][: letters.shape[1]]
    for block in params["blocks"]:  # letters look back at those before them, then each thinks for itself
        qkv = (nn.standardize(x) @ block["qkv"]).reshape(*letters.shape, 3, HEADS, WIDTH // HEADS)
        seen = nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
        x = x + seen.reshape(x.shape) @ block["out"]
        x = x + nn.gelu(nn.standardize(x) @ block["up"]) @ block["down"]
    return nn.standardize(x) @ params["head"]


def loss(params, letters):  # how surprising is each letter, given those before it?
    return nn.losses.cross_entropy(forward(params, letters[:, :-1]), letters[:, 1:]).mean()


def main(steps=1000, num_written=300):
    text = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
    alphabet = sorted(set(text))
    data = inp.asarray([alphabet.index(letter) for letter in text])
    params, optimizer = init(random.key(0), len(alphabet)), optim.adam(3e-3)
    state, losses = optimizer.init(params), []

    @inf.jit
    def step(params, state, key):
        starts = random.randint(key, (BATCH, 1), 0, len(data) - LENGTH)
        value, gradient = inf.value_and_grad(loss)(params, data[starts + inp.arange(LENGTH + 1)])
        updates, state = optimizer.update(gradient, state, params)
        return optim.apply_updates(params, updates), state, value

    for key in random.split(random.key(1), steps):
        params, state, value = step(params, state, key)
        losses.append(float(value))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; and now it writes:")
    predict, written = inf.jit(forward), data[None, :LENGTH]
    for key in random.split(random.key(2), num_written):
        letter = random.categorical(key, predict(params, written)[:, -1] / 0.7)
        written = inp.concatenate([written[:, 1:], letter[:, None].astype(written.dtype)], axis=1)
        print(alphabet[int(letter[0])], end="", flush=True)
    return losses


if __name__ == "__main__":
    main()
