"""The kernels of `examples/tile` with operands to run them on and what they should give, in float64."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.testing.tolerances import Kind

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tile"
FLOATS = (dtypes.float32, dtypes.float16, dtypes.bfloat16)


@functools.cache
def module(name: str) -> ModuleType:
    """One example."""
    spec = importlib.util.spec_from_file_location(f"example_tile_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@dataclass(frozen=True, slots=True)
class Case:
    """One way to call one example.

    Args:
        name: the example.
        shapes: of the arrays; the scalars come after them.
        definition: the same function of float64 arrays.
        kind: row of the table of tolerances.
        scalars: numbers, float32 operands.
        static: keyword arguments.
        blocks: block sizes.
        label: of the case, where an example has several.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    definition: Callable[..., np.ndarray]
    kind: Kind
    scalars: tuple[float, ...] = ()
    static: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return self.name + self.label

    @property
    def kernel(self) -> Any:  # Any: a KernelFunction
        """The kernel at the block sizes of the case."""
        kernel = getattr(module(self.name), self.name)
        return kernel.configure(**self.blocks) if self.blocks else kernel

    def operands(self, rng: np.random.Generator, dtype: np.dtype) -> list[np.ndarray]:
        """Random arrays, and the scalars."""
        arrays = [rng.uniform(-2, 2, shape).astype(dtype) for shape in self.shapes]
        return [*arrays, *(np.asarray(x, np.float32) for x in self.scalars)]

    def wanted(self, *operands: np.ndarray) -> np.ndarray:
        """What the kernel should give."""
        return self.definition(*(x.astype(np.float64) for x in operands), **self.static)

    def types(self, dtype: np.dtype) -> list[ArrayType]:
        """Types of the operands."""
        scalars = [ArrayType((), dtypes.float32)] * len(self.scalars)
        return [*(ArrayType(shape, dtype) for shape in self.shapes), *scalars]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    return p / p.sum(-1, keepdims=True)


def _rms_norm(x: np.ndarray, eps: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def _conv2d(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    return np.einsum("nchwrs,kcrs->nkhw", windows, w)


def _max_pool2d(x: np.ndarray) -> np.ndarray:
    n, c, height, width = x.shape
    edges = ((0, 0), (0, 0), (0, -height % 3), (0, -width % 3))
    whole = np.pad(x, edges, constant_values=-np.inf)
    return whole.reshape(n, c, whole.shape[2] // 3, 3, whole.shape[3] // 3, 3).max((3, 5))


def _rotary(x: np.ndarray, sin: np.ndarray, cos: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, -1)
    sin, cos = sin[:, None], cos[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, is_causal: bool = False) -> np.ndarray:
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    if is_causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    return _softmax(scores) @ v


_LINE = {"BLOCK": 256}
_PRODUCT = {"BM": 32, "BN": 16, "BK": 16}
_ROWS = ((5, 37),)
CASES = (
    Case("add", ((1003,), (1003,)), np.add, "elementwise", blocks=_LINE),
    Case("silu", ((1003,),), lambda x: x * _sigmoid(x), "elementwise", blocks=_LINE),
    Case("swiglu", ((1003,), (1003,)), lambda a, b: a * b * _sigmoid(b), "elementwise", blocks=_LINE),
    Case("softmax", _ROWS, _softmax, "reduction"),
    Case("rms_norm", _ROWS, _rms_norm, "reduction", scalars=(0.5,)),
    Case(
        "fused_rms_norm", (*_ROWS, (37,)), lambda x, w, eps: _rms_norm(x, eps) * w, "reduction",
        scalars=(0.5,),
    ),
    Case("mm", ((37, 50), (50, 21)), np.matmul, "contraction", blocks=_PRODUCT),
    Case(
        "addmm", ((37, 21), (37, 50), (50, 21)), lambda c, a, b, beta, alpha: beta * c + alpha * (a @ b),
        "contraction", scalars=(0.5, 2.0), blocks=_PRODUCT,
    ),
    Case("bmm", ((3, 37, 50), (3, 50, 21)), np.matmul, "contraction", blocks=_PRODUCT),
    Case(
        "conv2d", ((2, 19, 3, 21), (17, 19, 2, 3)), _conv2d, "contraction",
        blocks={"BK": 16, "BC": 16, "BQ": 16},
    ),
    Case("max_pool2d", ((2, 3, 7, 65),), _max_pool2d, "exact", blocks={"BLOCK": 16}),
    Case("rotary_position_embedding", ((2, 3, 5, 24), (3, 12), (3, 12)), _rotary, "elementwise"),
    Case(
        "scaled_dot_product_attention", ((2, 3, 37, 20), (2, 3, 45, 20), (2, 3, 45, 20)), _attention,
        "reduction", blocks={"BM": 16, "BN": 32},
    ),
    Case(
        "scaled_dot_product_attention", ((1, 2, 37, 32),) * 3, _attention, "reduction",
        static={"is_causal": True}, blocks={"BM": 32, "BN": 16}, label="-causal",
    ),
)  # fmt: skip
EMPTY = (
    Case("add", ((0,), (0,)), np.add, "exact"),
    Case("silu", ((0,),), np.array, "exact"),
    Case("swiglu", ((0,), (0,)), np.add, "exact"),
    Case("softmax", ((0, 37),), _softmax, "exact"),
    Case("softmax", ((5, 0),), _softmax, "exact", label="-columns"),
    Case("rms_norm", ((0, 37),), np.add, "exact", scalars=(0.5,)),
    Case("rms_norm", ((5, 0),), np.add, "exact", scalars=(0.5,), label="-columns"),
    Case("fused_rms_norm", ((0, 37), (37,)), lambda x, w, eps: x, "exact", scalars=(0.5,)),
    Case("mm", ((0, 50), (50, 21)), np.matmul, "exact"),
    Case("mm", ((37, 0), (0, 21)), np.matmul, "exact", label="-inner"),
    Case("addmm", ((37, 0), (37, 50), (50, 0)), lambda c, *rest: c, "exact", scalars=(0.5, 2.0)),
    Case(
        "addmm", ((37, 21), (37, 0), (0, 21)), lambda c, a, b, beta, alpha: beta * c, "elementwise",
        scalars=(0.5, 2.0), label="-inner",
    ),
    Case("bmm", ((0, 37, 50), (0, 50, 21)), np.matmul, "exact"),
    Case("conv2d", ((0, 19, 6, 21), (17, 19, 3, 2)), _conv2d, "exact"),
    Case("conv2d", ((2, 0, 6, 21), (17, 0, 3, 2)), _conv2d, "exact", label="-channels"),
    Case("max_pool2d", ((0, 3, 7, 65),), _max_pool2d, "exact"),
    Case("rotary_position_embedding", ((2, 0, 5, 24), (0, 12), (0, 12)), _rotary, "exact"),
    Case("scaled_dot_product_attention", ((2, 3, 0, 16),) + ((2, 3, 45, 16),) * 2, _attention, "exact"),
)  # fmt: skip
