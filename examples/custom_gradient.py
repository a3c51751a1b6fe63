"""Gradients of your own with `custom_vjp`. Run: python examples/custom_gradient.py

`grad` differentiates what a function computes, step by step. Twice that is not what you want:

1. The steps have no useful derivative. Rounding is flat, so its derivative is 0 almost everywhere and what
   comes before it never learns; the *straight-through* trick passes the gradient on as if it were not there.
2. The derivative is known, and simpler than the steps. A solver that iterates until it converges cannot be
   walked backwards, and need not be: the equation it solves gives the derivative of its solution.

A custom rule is a pair: `forward` gives the result and whatever `backward` needs; `backward` turns the
gradient of the result into gradients of the arguments.
"""

import infini as inf
import infini.numpy as inp
from infini import lax, random

# --- 1. straight through --------------------------------------------------------------------


@inf.custom_vjp
def rounded(x):
    return inp.round(x)


def rounded_forward(x):
    return rounded(x), None  # backward needs nothing


def rounded_backward(_, gradient):
    return (gradient,)


rounded.defvjp(rounded_forward, rounded_backward)


def learn_whole_numbers(round_, steps=60):
    """Find whole numbers whose weighted sum is 11 by gradient descent through a rounding function."""
    weights = inp.asarray([1.0, 2.0, 3.0])
    error = lambda x: inp.square(weights @ round_(x) - 11.0)
    descend = inf.jit(lambda x: x - 0.02 * inf.grad(error)(x))
    x = inp.asarray([0.2, 0.1, 0.3])
    for _ in range(steps):
        x = descend(x)
    return inp.round(x), float(error(x))


# --- 2. the solution of an equation ---------------------------------------------------------


@inf.custom_vjp
def square_root(a):
    """Newton's iteration for x * x = a, until it no longer moves: a `while` of unknown length."""
    is_moving = lambda xs: inp.abs(xs[0] - xs[1]) > 1e-6 * xs[0]
    improve = lambda xs: (0.5 * (xs[0] + a / xs[0]), xs[0])
    return lax.while_loop(is_moving, improve, (a, inp.zeros_like(a)))[0]


def square_root_forward(a):
    x = square_root(a)
    return x, x


def square_root_backward(x, gradient):
    # x * x = a, so 2 x dx = da: the derivative needs the solution, not the way to it.
    return (gradient / (2 * x),)


square_root.defvjp(square_root_forward, square_root_backward)


def main():
    for name, round_ in (("as it is", inp.round), ("straight through", rounded)):
        x, error = learn_whole_numbers(round_)
        print(f"rounding, {name}: {x.tolist()}, squared error {error:.1f}")

    # The rule works together with every other transformation.
    values = random.uniform(random.key(0), (4,), minval=0.5, maxval=9.0)
    found = inf.jit(inf.vmap(inf.grad(square_root)))(values)
    expected = 0.5 / inp.sqrt(values)
    print(f"derivatives of the square root: off by {float(inp.abs(found - expected).max()):.1e}")
    return error, float(inp.abs(found - expected).max())


if __name__ == "__main__":
    main()
