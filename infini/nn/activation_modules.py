"""Activations as modules, with PyTorch's names and constructors. Those that PyTorch can do in place accept
`inplace` and ignore it: arrays never change."""

from __future__ import annotations

from typing import Any, Literal

import infini.numpy as inp
from infini.core import errors
from infini.core.value import Value
from infini.nn import activations, parameters
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike, DTypeLike


class ReLU(Module):
    """`max(x, 0)`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def __call__(self, x: ArrayLike) -> Value:
        return activations.relu(x)


class ReLU6(Module):
    """`min(max(x, 0), 6)`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def __call__(self, x: ArrayLike) -> Value:
        return activations.relu6(x)


class LeakyReLU(Module):
    """`x` where it is positive, `negative_slope * x` elsewhere."""

    negative_slope: float = field(static=True)

    def __init__(self, negative_slope: float = 1e-2, inplace: bool = False) -> None:
        self.negative_slope = negative_slope

    def __call__(self, x: ArrayLike) -> Value:
        return activations.leaky_relu(x, self.negative_slope)


class PReLU(Module):
    """`x` where it is positive, `weight * x` elsewhere, with one weight, or one per channel of (N, C, ...).

    Args:
        num_parameters: 1 or C.
        init: initial value.
        device: where the parameter lives.
        dtype: dtype of the parameter, float32 when absent.
    """

    weight: Value
    num_parameters: int = field(static=True)

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
    ) -> None:
        self.weight = parameters.maker(device, dtype).full((num_parameters,), init)
        self.num_parameters = num_parameters

    def __call__(self, x: ArrayLike) -> Value:
        value = parameters.operand("PReLU", x)
        slope = self.weight
        if self.num_parameters > 1:
            value = parameters.operand("PReLU", x, self.num_parameters, min(1, value.ndim - 1))
            slope = inp.reshape(slope, (-1, *(1,) * (value.ndim - 2)))
        return inp.where(value > 0, value, slope * value)


class ELU(Module):
    """`x` where it is positive, `alpha * (exp(x) - 1)` elsewhere."""

    alpha: float = field(static=True)

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = alpha

    def __call__(self, x: ArrayLike) -> Value:
        return activations.elu(x, self.alpha)


class CELU(Module):
    """`max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))`."""

    alpha: float = field(static=True)

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = alpha

    def __call__(self, x: ArrayLike) -> Value:
        return activations.celu(x, self.alpha)


class SELU(Module):
    """Scaled `ELU` that keeps mean 0 and variance 1."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def __call__(self, x: ArrayLike) -> Value:
        return activations.selu(x)


class GELU(Module):
    """`x` times the normal distribution function of `x`.

    Args:
        approximate: `none`, or `tanh` for the approximation that GPT-2 uses.
    """

    approximate: str = field(static=True)

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise errors.ValueMismatchError(
                "GELU: unknown approximation", got=repr(approximate), expected="'none' or 'tanh'"
            )
        self.approximate = approximate

    def __call__(self, x: ArrayLike) -> Value:
        return activations.gelu(x, self.approximate == "tanh")


class NewGELU(Module):
    """`GELU` by tanh, as in GPT-2."""

    def __call__(self, x: ArrayLike) -> Value:
        return activations.gelu(x, True)


class SiLU(Module):
    """`x * sigmoid(x)`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def __call__(self, x: ArrayLike) -> Value:
        return activations.silu(x)


class Mish(Module):
    """`x * tanh(softplus(x))`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def __call__(self, x: ArrayLike) -> Value:
        return activations.mish(x)


class Sigmoid(Module):
    """`1 / (1 + exp(-x))`."""

    def __call__(self, x: ArrayLike) -> Value:
        return activations.sigmoid(x)


class LogSigmoid(Module):
    """`log(sigmoid(x))`."""

    def __call__(self, x: ArrayLike) -> Value:
        return activations.log_sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def __call__(self, x: ArrayLike) -> Value:
        return activations.tanh(x)


class Tanhshrink(Module):
    """`x - tanh(x)`."""

    def __call__(self, x: ArrayLike) -> Value:
        return inp.subtract(x, activations.tanh(x))


class Softsign(Module):
    """`x / (|x| + 1)`."""

    def __call__(self, x: ArrayLike) -> Value:
        return activations.soft_sign(x)


class Softplus(Module):
    """`log(1 + exp(beta * x)) / beta`.

    Args:
        beta: sharpness of the bend.
        threshold: accepted for PyTorch's sake; nothing overflows, and above it the two agree to rounding.
    """

    beta: float = field(static=True)

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta = beta

    def __call__(self, x: ArrayLike) -> Value:
        return activations.softplus(inp.multiply(x, self.beta)) / self.beta


class Hardtanh(Module):
    """`x` limited to a range."""

    min_val: float = field(static=True)
    max_val: float = field(static=True)

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        if not min_val < max_val:
            raise errors.ValueMismatchError("Hardtanh: the range is empty", got=f"{min_val} to {max_val}")
        self.min_val = min_val
        self.max_val = max_val

    def __call__(self, x: ArrayLike) -> Value:
        return inp.clip(x, self.min_val, self.max_val)


class Hardsigmoid(Module):
    """`relu6(x + 3) / 6`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def __call__(self, x: ArrayLike) -> Value:
        return activations.hard_sigmoid(x)


class Hardswish(Module):
    """`x * hard_sigmoid(x)`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def __call__(self, x: ArrayLike) -> Value:
        return activations.hard_silu(x)


class Hardshrink(Module):
    """`x` where it is farther than `lambd` from 0, 0 elsewhere."""

    lambd: float = field(static=True)

    def __init__(self, lambd: float = 0.5) -> None:
        self.lambd = lambd

    def __call__(self, x: ArrayLike) -> Value:
        return inp.where(inp.abs(x) > self.lambd, x, 0)


class Softshrink(Module):
    """`x` moved by `lambd` towards 0, and 0 where it would cross."""

    lambd: float = field(static=True)

    def __init__(self, lambd: float = 0.5) -> None:
        self.lambd = lambd

    def __call__(self, x: ArrayLike) -> Value:
        value = parameters.operand("Softshrink", x)
        moved = inp.where(value > 0, value - self.lambd, value + self.lambd)
        return inp.where(inp.abs(value) > self.lambd, moved, 0)


class Threshold(Module):
    """`x` where it is above a threshold, a value elsewhere."""

    threshold: float = field(static=True)
    value: float = field(static=True)

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        self.threshold = threshold
        self.value = value

    def __call__(self, x: ArrayLike) -> Value:
        return inp.where(inp.greater(x, self.threshold), x, self.value)


class GLU(Module):
    """One half of a dimension times the sigmoid of the other."""

    dim: int = field(static=True)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def __call__(self, x: ArrayLike) -> Value:
        return activations.glu(x, self.dim)


class Softmax(Module):
    """`exp(x) / sum(exp(x))` over a dimension."""

    dim: int = field(static=True)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def __call__(self, x: ArrayLike) -> Value:
        return activations.softmax(x, self.dim)


class Softmin(Module):
    """`softmax(-x)` over a dimension."""

    dim: int = field(static=True)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def __call__(self, x: ArrayLike) -> Value:
        return activations.softmax(inp.negative(x), self.dim)


class LogSoftmax(Module):
    """`log(softmax(x))` over a dimension."""

    dim: int = field(static=True)

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def __call__(self, x: ArrayLike) -> Value:
        return activations.log_softmax(x, self.dim)
