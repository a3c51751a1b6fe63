"""A recurrent network with `lax.scan`, taught to remember. Run: python examples/recurrent_network.py

The task: a sequence of random numbers, two of which are marked. The answer is the sum of the two, so the
network must carry the first one along until it meets the second, and ignore the rest. Answering 1 every time,
the mean, gives a squared error of 0.167.

`lax.scan` runs a function over the first axis of an array and hands a state from one call to the next. The
loop is one program, however long the sequence: it is traced once, compiled once, and differentiated like any
other function.
"""

import infini as inf
import infini.numpy as inp
from infini import lax, nn, optim, random


def sequences(key, count, length):
    """Inputs (length, count, 2), numbers and marks, and the sum of the marked numbers (count,)."""
    number_key, first_key, second_key = random.split(key, 3)
    numbers = random.uniform(number_key, (length, count))
    half = length // 2  # one mark in each half
    first = random.randint(first_key, (count,), 0, half)
    second = random.randint(second_key, (count,), half, length)
    places = inp.arange(length)[:, None]
    marks = ((places == first) | (places == second)).astype(inp.float32)
    return inp.stack([numbers, marks], axis=-1), (numbers * marks).sum(0)


def init(key, width):
    """A gated recurrent unit (arXiv:1406.1078), and a projection to the answer."""
    keys = random.split(key, 3)
    matrix = lambda key, rows, columns: random.normal(key, (rows, columns)) / rows**0.5
    return {
        "gates": matrix(keys[0], 2 + width, 2 * width),
        "gates_bias": inp.zeros(2 * width),
        "candidate": matrix(keys[1], 2 + width, width),
        "candidate_bias": inp.zeros(width),
        "answer": matrix(keys[2], width, 1),
    }


def cell(params, state, inputs):
    """One step: how much of the memory to use, how much of it to keep, and what to write instead."""
    both = inp.concatenate([inputs, state], axis=-1)
    gates = nn.sigmoid(both @ params["gates"] + params["gates_bias"])
    use, keep = inp.split(gates, 2, axis=-1)
    both = inp.concatenate([inputs, use * state], axis=-1)
    candidate = inp.tanh(both @ params["candidate"] + params["candidate_bias"])
    return keep * state + (1 - keep) * candidate


def answers(params, inputs):
    """The memory after the last step, as a number."""
    width = params["answer"].shape[0]

    def body(state, at):
        return cell(params, state, at), None  # the new state, and nothing to keep of this step

    start = inp.zeros((inputs.shape[1], width))
    state, _ = lax.scan(body, start, inputs)
    return (state @ params["answer"])[:, 0]


def loss(params, inputs, targets):
    return inp.square(answers(params, inputs) - targets).mean()


def main(steps=600, length=20, width=32, batch_size=64):
    params = init(random.key(0), width)
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(5e-3))
    state = optimizer.init(params)

    @inf.jit
    def step(params, state, key):
        value, gradient = inf.value_and_grad(loss)(params, *sequences(key, batch_size, length))
        updates, state = optimizer.update(gradient, state, params)
        return optim.apply_updates(params, updates), state, value

    for number, key in enumerate(random.split(random.key(1), steps), 1):
        params, state, value = step(params, state, key)
        if number % 100 == 0:
            print(f"step {number:4}  squared error {float(value):.4f}")
    error = float(inf.jit(loss)(params, *sequences(random.key(2), 512, length)))
    print(f"on new sequences: {error:.4f}; answering 1 gives 0.167")
    return error


if __name__ == "__main__":
    main()
