"""Recurrent layers with PyTorch's constructors, keys and gate order, run by `lax.scan`.

Shapes: L steps, N batch, I inputs, H hidden size, G gates (1, 4 or 3). Products with the inputs are made for
all steps at once, outside the scan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import infini.numpy as inp
from infini import random
from infini.core import errors
from infini.core.value import Value
from infini.lax import loops
from infini.nn import dropout as dropout_, parameters, recurrent_cells
from infini.nn.module import Module, field
from infini.nn.recurrent_cells import Carry, Step
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random.keys import KeyLike


@dataclass(frozen=True, slots=True)
class Layout:
    """What RNN, LSTM and GRU have in common: the arguments of their constructors."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    gates: int
    proj_size: int = 0

    @property
    def num_directions(self) -> int:
        """1, or 2 of a bidirectional layer."""
        return 2 if self.bidirectional else 1

    @property
    def out_size(self) -> int:
        """Size of what a direction gives out."""
        return self.proj_size or self.hidden_size

    def names(self) -> list[str]:
        """Endings of the keys, layer by layer, forwards first."""
        ways = ("", "_reverse")[: self.num_directions]
        return [f"l{layer}{way}" for layer in range(self.num_layers) for way in ways]

    def weights(self, make: parameters.Maker, key: KeyLike) -> dict[str, Value]:
        """Initial parameters, uniform within `1 / sqrt(hidden_size)` of zero."""
        shapes: dict[str, tuple[int, ...]] = {}
        for number, name in enumerate(self.names()):
            layer = number // self.num_directions
            rows = self.gates * self.hidden_size
            columns = self.out_size * self.num_directions if layer else self.input_size
            shapes |= {f"weight_ih_{name}": (rows, columns), f"weight_hh_{name}": (rows, self.out_size)}
            if self.bias:
                shapes |= {f"bias_ih_{name}": (rows,), f"bias_hh_{name}": (rows,)}
            if self.proj_size:
                shapes[f"weight_hr_{name}"] = (self.proj_size, self.hidden_size)
        bound = 1 / math.sqrt(self.hidden_size)
        keys = random.split(key, len(shapes))
        return {name: make.uniform(keys[i], shape, bound) for i, (name, shape) in enumerate(shapes.items())}

    def run(
        self,
        name: str,
        weights: dict[str, Value],
        step: Step,
        x: ArrayLike,
        carries: Carry | None,
        key: KeyLike | None,
        training: bool | None,
    ) -> tuple[Value, Carry]:
        """All layers over all steps.

        Args:
            name: of the layer, for messages.
            weights: parameters by key.
            step: one step of the cell.
            x: (L, N, I), (N, L, I) with `batch_first`, or (L, I).
            carries: hidden values (layers * directions, N, H), and cells of an LSTM; zeros when absent.
            key: a key for the dropout between layers.
            training: as of `Dropout`.
        """
        value = parameters.operand(name, x, self.input_size)
        if value.ndim not in (2, 3):
            raise errors.TypeMismatchError(
                f"{name}: the operand has another number of dimensions",
                got=str(value.type),
                expected="(L, I), (L, N, I), or (N, L, I) with batch_first=True",
            )
        is_single, is_turned = value.ndim == 2, value.ndim == 3 and self.batch_first
        value = (
            value[:, None] if is_single else inp.swapaxes(value, 0, 1) if is_turned else value
        )  # (L, N, I)
        carries = self._initial(name, value, carries, is_single)
        drop = dropout_.Dropout(self.dropout)
        keys = None if key is None else random.split(key, self.num_layers)
        last: list[Carry] = []
        for layer in range(self.num_layers):
            ways = []
            for way in range(self.num_directions):
                number = layer * self.num_directions + way
                carry = tuple(c[number] for c in carries)
                carry, out = self._scan(self.names()[number], weights, step, value, carry, way == 1)
                ways.append(out)
                last.append(carry)
            value = ways[0] if len(ways) == 1 else inp.concatenate(ways, -1)
            if layer + 1 < self.num_layers and self.dropout:
                value = drop(value, key=None if keys is None else keys[layer], training=training)
        ends = tuple(inp.stack(parts) for parts in zip(*last, strict=True))
        if is_single:
            return value[:, 0], tuple(end[:, 0] for end in ends)
        return inp.swapaxes(value, 0, 1) if is_turned else value, ends

    def _initial(self, name: str, value: Value, carries: Carry | None, is_single: bool) -> Carry:
        count, batch = self.num_layers * self.num_directions, value.shape[1]
        sizes = (self.out_size, self.hidden_size)[: 2 if self.gates == 4 else 1]
        if carries is None:
            return tuple(inp.zeros((count, batch, size), value.dtype) for size in sizes)
        given = tuple(c[:, None] if is_single else c for c in carries)
        expected = [(count, batch, size) for size in sizes]
        if [c.shape for c in given] != expected:
            raise errors.TypeMismatchError(
                f"{name}: the initial hidden values have another shape",
                got=", ".join(str(c.type) for c in given),
                expected=", ".join(map(str, expected)),
            )
        return given

    def _scan(
        self, name: str, weights: dict[str, Value], step: Step, x: Value, carry: Carry, is_reversed: bool
    ) -> tuple[Carry, Value]:
        of_inputs = recurrent_cells.product(
            x, weights[f"weight_ih_{name}"], weights.get(f"bias_ih_{name}")
        )  # (L, N, G * H)
        weight, bias = weights[f"weight_hh_{name}"], weights.get(f"bias_hh_{name}")
        projection = weights.get(f"weight_hr_{name}")

        def advance(before: Carry, of_input: Value) -> tuple[Carry, Value]:
            after = step(of_input, recurrent_cells.product(before[0], weight, bias), before)
            if projection is not None:
                after = (recurrent_cells.product(after[0], projection, None), *after[1:])
            return after, after[0]

        return loops.scan(advance, carry, of_inputs, reverse=is_reversed)


class RNN(Module):
    """Elman's recurrent layers, `h = tanh(W_ih x + b_ih + W_hh h + b_hh)`.

    Args:
        input_size: size of the last dimension of `x`.
        hidden_size: size of the hidden vector.
        num_layers: layers on top of each other.
        nonlinearity: `tanh` or `relu`.
        bias: whether there are biases.
        batch_first: operands are (N, L, I) instead of (L, N, I).
        dropout: probability of dropping elements between layers, when a key is given.
        bidirectional: run backwards as well; results are concatenated.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    weights: dict[str, Value] = field(inline=True)
    layout: Layout = field(static=True)
    nonlinearity: str = field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        recurrent_cells.nonlinearity_of(nonlinearity)
        self.layout = Layout(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, gates=1
        )
        self.weights = self.layout.weights(parameters.maker(device, dtype), key)
        self.nonlinearity = nonlinearity

    def __call__(
        self,
        x: ArrayLike,
        hx: ArrayLike | None = None,
        *,
        key: KeyLike | None = None,
        training: bool | None = None,
    ) -> tuple[Value, Value]:
        """Hidden values of the last layer at all steps, and of all layers at the last one.

        Args:
            x: (L, N, I), (N, L, I) with `batch_first`, or (L, I).
            hx: (layers * directions, N, H), zeros when absent.
            key: a key for dropout.
            training: as of `Dropout`.
        """
        step = recurrent_cells.plain(recurrent_cells.nonlinearity_of(self.nonlinearity))
        carry = None if hx is None else (as_value("RNN", hx),)
        out, (hidden,) = self.layout.run("RNN", self.weights, step, x, carry, key, training)
        return out, hidden


class LSTM(Module):
    """Long short-term memory layers.

    Args:
        input_size: size of the last dimension of `x`.
        hidden_size: size of the hidden vector and the cell.
        num_layers: layers on top of each other.
        bias: whether there are biases.
        batch_first: operands are (N, L, I) instead of (L, N, I).
        dropout: probability of dropping elements between layers, when a key is given.
        bidirectional: run backwards as well; results are concatenated.
        proj_size: hidden vectors are projected to this size when it is not 0.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    weights: dict[str, Value] = field(inline=True)
    layout: Layout = field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        self.layout = Layout(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, gates=4,
            proj_size=proj_size,
        )  # fmt: skip
        self.weights = self.layout.weights(parameters.maker(device, dtype), key)

    def __call__(
        self,
        x: ArrayLike,
        hx: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        key: KeyLike | None = None,
        training: bool | None = None,
    ) -> tuple[Value, tuple[Value, Value]]:
        """Hidden values of the last layer at all steps; those and the cells of all layers at the last one.

        Args:
            x: (L, N, I), (N, L, I) with `batch_first`, or (L, I).
            hx: hidden values and cells, each (layers * directions, N, H), zeros when absent.
            key: a key for dropout.
            training: as of `Dropout`.
        """
        carry = None if hx is None else tuple(as_value("LSTM", h) for h in hx)
        out, (hidden, cell) = self.layout.run(
            "LSTM", self.weights, recurrent_cells.lstm, x, carry, key, training
        )
        return out, (hidden, cell)


class GRU(Module):
    """Gated recurrent layers.

    Args:
        input_size: size of the last dimension of `x`.
        hidden_size: size of the hidden vector.
        num_layers: layers on top of each other.
        bias: whether there are biases.
        batch_first: operands are (N, L, I) instead of (L, N, I).
        dropout: probability of dropping elements between layers, when a key is given.
        bidirectional: run backwards as well; results are concatenated.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    weights: dict[str, Value] = field(inline=True)
    layout: Layout = field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        self.layout = Layout(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, gates=3
        )
        self.weights = self.layout.weights(parameters.maker(device, dtype), key)

    def __call__(
        self,
        x: ArrayLike,
        hx: ArrayLike | None = None,
        *,
        key: KeyLike | None = None,
        training: bool | None = None,
    ) -> tuple[Value, Value]:
        """Hidden values of the last layer at all steps, and of all layers at the last one.

        Args:
            x: (L, N, I), (N, L, I) with `batch_first`, or (L, I).
            hx: (layers * directions, N, H), zeros when absent.
            key: a key for dropout.
            training: as of `Dropout`.
        """
        carry = None if hx is None else (as_value("GRU", hx),)
        out, (hidden,) = self.layout.run("GRU", self.weights, recurrent_cells.gru, x, carry, key, training)
        return out, hidden
