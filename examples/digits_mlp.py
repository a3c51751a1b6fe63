"""Handwritten digits, sorted by a small network. Run: python examples/digits_mlp.py

The whole recipe of deep learning in one page: data, a function with parameters, a loss, its gradient, a loop.
The data are 1797 images of 8 by 8 pixels that scikit-learn brings along: pip install scikit-learn
"""

import numpy as np
from sklearn.datasets import load_digits

import infini as inf
import infini.numpy as inp
from infini import nn, optim, random


def images_and_digits():
    """Images as rows of 64 numbers from 0 to 1 and the digits they show; a fifth is kept to test on."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, digits = images[order].astype(np.float32) / 16, digits[order].astype(np.int32)
    num_test = len(images) // 5
    return (images[num_test:], digits[num_test:]), (images[:num_test], digits[:num_test])


def init(key, sizes):
    """A list of layers. Weights start small and random, so that no two neurons are alike."""
    keys = random.split(key, len(sizes) - 1)
    return [
        {"weight": random.normal(k, (before, after)) * (2 / before) ** 0.5, "bias": inp.zeros(after)}
        for k, before, after in zip(keys, sizes, sizes[1:], strict=False)
    ]


def scores(params, images):
    """Ten numbers for each image: how much it looks like each digit."""
    *hidden, last = params
    x = images
    for layer in hidden:
        x = nn.relu(x @ layer["weight"] + layer["bias"])
    return x @ last["weight"] + last["bias"]


def loss(params, images, digits):
    """Large when the right digit's score is not the highest. `grad` finds out how to make it smaller."""
    return nn.losses.cross_entropy(scores(params, images), digits).mean()


@inf.jit  # traced once, compiled to machine code, then fast
def share_right(params, images, digits):
    return (scores(params, images).argmax(-1) == digits).mean()


def main(epochs=30, batch_size=64):
    (images, digits), test = images_and_digits()
    params = init(random.key(0), [64, 128, 64, 10])
    optimizer = optim.adamw(3e-3, weight_decay=0.01)
    state = optimizer.init(params)

    @inf.jit
    def step(params, state, images, digits):
        value, gradient = inf.value_and_grad(loss)(params, images, digits)
        updates, state = optimizer.update(gradient, state, params)
        return optim.apply_updates(params, updates), state, value

    shuffle = np.random.default_rng(1)
    for epoch in range(1, epochs + 1):
        order = shuffle.permutation(len(images))
        for at in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[at : at + batch_size]
            params, state, value = step(params, state, images[chosen], digits[chosen])
        if epoch % 5 == 0 or epoch == epochs:
            print(f"epoch {epoch:3}  loss {float(value):.4f}  right {float(share_right(params, *test)):.1%}")
    return float(share_right(params, *test))


if __name__ == "__main__":
    main()
