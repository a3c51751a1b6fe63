"""Recurrent cells with PyTorch's constructors, keys and gate order, and the steps that layers share.

Shapes: N batch, I inputs, H hidden size, G gates (1, 4 or 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import infini.numpy as inp
from infini import random
from infini.core import errors
from infini.core.value import Value
from infini.nn import activations, parameters
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random.keys import KeyLike

Carry: TypeAlias = tuple[Value, ...]  # hidden, and cell of an LSTM
# From products with inputs and hidden values, each (N, G * H), and the carry to the next one.
Step: TypeAlias = Callable[[Value, Value, Carry], Carry]


def plain(activation: Callable[[Value], Value]) -> Step:
    """Of an activation of the sum."""
    return lambda of_input, of_hidden, carry: (activation(of_input + of_hidden),)


def lstm(of_input: Value, of_hidden: Value, carry: Carry) -> Carry:
    """Gates in the order into, forget, new, out."""
    into, forget, new, out = inp.split(of_input + of_hidden, 4, -1)
    cell = activations.sigmoid(forget) * carry[1] + activations.sigmoid(into) * inp.tanh(new)
    return activations.sigmoid(out) * inp.tanh(cell), cell


def gru(of_input: Value, of_hidden: Value, carry: Carry) -> Carry:
    """Gates in the order reset, update, new."""
    input_reset, input_update, input_new = inp.split(of_input, 3, -1)
    hidden_reset, hidden_update, hidden_new = inp.split(of_hidden, 3, -1)
    reset = activations.sigmoid(input_reset + hidden_reset)
    update = activations.sigmoid(input_update + hidden_update)
    new = inp.tanh(input_new + reset * hidden_new)
    return ((1 - update) * new + update * carry[0],)


def nonlinearity_of(name: str) -> Callable[[Value], Value]:
    """The activation of an RNN by its name."""
    if name not in ("tanh", "relu"):
        raise errors.ValueMismatchError(
            "RNN: unknown nonlinearity", got=repr(name), expected="'tanh' or 'relu'"
        )
    return activations.tanh if name == "tanh" else activations.relu


def _cell_weights(
    input_size: int, hidden_size: int, bias: bool, gates: int, make: parameters.Maker, key: KeyLike
) -> dict[str, Value]:
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (gates * hidden_size, input_size),
        "weight_hh": (gates * hidden_size, hidden_size),
    }
    if bias:
        shapes |= {"bias_ih": (gates * hidden_size,), "bias_hh": (gates * hidden_size,)}
    bound = 1 / math.sqrt(hidden_size) if hidden_size else 0.0
    keys = random.split(key, len(shapes))
    return {name: make.uniform(keys[i], shape, bound) for i, (name, shape) in enumerate(shapes.items())}


def _run_cell(name: str, cell: Any, step: Step, x: ArrayLike, carry: Carry | None, count: int) -> Carry:
    """One step of a cell on (N, I) or (I,)."""
    value = parameters.operand(name, x, cell.input_size)
    if carry is None:
        carry = (inp.zeros((*value.shape[:-1], cell.hidden_size), value.dtype),) * count
    weights = cell.weights
    of_input = product(value, weights["weight_ih"], weights.get("bias_ih"))
    return step(of_input, product(carry[0], weights["weight_hh"], weights.get("bias_hh")), carry)


def product(x: Value, weight: Value, bias: Value | None) -> Value:
    """`x @ weight.T + bias`."""
    result = inp.matmul(x, inp.swapaxes(weight, -1, -2))
    return result if bias is None else result + bias


class RNNCell(Module):
    """`tanh(W_ih x + b_ih + W_hh h + b_hh)`, or with relu.

    Args:
        input_size: size of the last dimension of `x`.
        hidden_size: size of the hidden vector.
        bias: whether there are biases.
        nonlinearity: `tanh` or `relu`.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, uniform within `1 / sqrt(hidden_size)` of zero.
    """

    weights: dict[str, Value] = field(inline=True)
    input_size: int = field(static=True)
    hidden_size: int = field(static=True)
    nonlinearity: str = field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        nonlinearity_of(nonlinearity)
        self.weights = _cell_weights(input_size, hidden_size, bias, 1, parameters.maker(device, dtype), key)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.nonlinearity = nonlinearity

    def __call__(self, x: ArrayLike, hx: ArrayLike | None = None) -> Value:
        """The next hidden vector, (..., H), from (..., I) and the last one, zeros when absent."""
        carry = None if hx is None else (as_value("RNNCell", hx),)
        return _run_cell("RNNCell", self, plain(nonlinearity_of(self.nonlinearity)), x, carry, 1)[0]


class LSTMCell(Module):
    """One step of an LSTM.

    Args:
        input_size: size of the last dimension of `x`.
        hidden_size: size of the hidden vector.
        bias: whether there are biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, uniform within `1 / sqrt(hidden_size)` of zero.
    """

    weights: dict[str, Value] = field(inline=True)
    input_size: int = field(static=True)
    hidden_size: int = field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        self.weights = _cell_weights(input_size, hidden_size, bias, 4, parameters.maker(device, dtype), key)
        self.input_size = input_size
        self.hidden_size = hidden_size

    def __call__(self, x: ArrayLike, hx: tuple[ArrayLike, ArrayLike] | None = None) -> tuple[Value, Value]:
        """The next hidden vector and cell from (..., I) and the last two, zeros when absent."""
        carry = None if hx is None else tuple(as_value("LSTMCell", h) for h in hx)
        hidden, cell = _run_cell("LSTMCell", self, lstm, x, carry, 2)
        return hidden, cell


class GRUCell(Module):
    """One step of a GRU.

    Args:
        input_size: size of the last dimension of `x`.
        hidden_size: size of the hidden vector.
        bias: whether there are biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, uniform within `1 / sqrt(hidden_size)` of zero.
    """

    weights: dict[str, Value] = field(inline=True)
    input_size: int = field(static=True)
    hidden_size: int = field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        self.weights = _cell_weights(input_size, hidden_size, bias, 3, parameters.maker(device, dtype), key)
        self.input_size = input_size
        self.hidden_size = hidden_size

    def __call__(self, x: ArrayLike, hx: ArrayLike | None = None) -> Value:
        """The next hidden vector, (..., H), from (..., I) and the last one, zeros when absent."""
        carry = None if hx is None else (as_value("GRUCell", hx),)
        return _run_cell("GRUCell", self, gru, x, carry, 1)[0]
