"""One linear layer: `x @ w.T` for weights of every kind and few or many rows, beside ggml's product and the
limits of the machine.

Shapes are those of a LLaMA of 1.1 billion parameters. A turn goes through as many different weights as fill
more than the caches, since a model does not find them there either; contenders take turns in one process,
with a pause in between, in an order that alternates.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

import infini
from infini import lax, quantization
from infini.backends.cpu.limits import Limits
from infini.core import config, dtypes
from infini.perf import ggml as ggml_
from infini.quantization import QuantizedArray, Scheme

SHAPES: Final = ((2048, 2048), (5632, 2048), (2048, 5632), (32000, 2048))  # outputs, inputs
ROWS: Final = (1, 2, 4, 8, 32, 512)
KINDS: Final = ("f32", "bf16", "f16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "int8")
FAR_BYTES: Final = 160 << 20  # of the weights of a turn: more than the caches hold
MAX_WEIGHTS: Final = 24
PAUSE_S: Final = 0.02
_FLOATS: Final = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}


@dataclass(frozen=True, slots=True)
class Case:
    """A layer: kind of the weight, outputs and inputs, rows of activations."""

    kind: str
    shape: tuple[int, int]
    rows: int

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"{self.kind}/{self.shape[0]}x{self.shape[1]}/{self.rows}"

    @property
    def flops(self) -> float:
        """Operations of one product."""
        return 2.0 * self.rows * self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class Found:
    """Seconds of one product, by contender and turn, and how far results are from the exact product."""

    case: Case
    weight_bytes: int
    seconds: dict[str, list[float]]
    errors: dict[str, float]

    def best_s(self, name: str) -> float:
        """The median of the turns of a contender."""
        return statistics.median(self.seconds[name])

    def row(self, limits: Limits) -> dict[str, float]:
        """The line of the table: rates and shares of infini, and ratios to its peers."""
        own = self.best_s("infini")
        far = limits.read_bytes_per_s[max(limits.read_bytes_per_s)]
        found = {
            "infini_us": own * 1e6,
            "gb_per_s": self.weight_bytes / own * 1e-9,
            "share_of_bandwidth": self.weight_bytes / own / far,
            "gflop_per_s": self.case.flops / own * 1e-9,
            "share_of_peak": self.case.flops / own / limits.flops_per_s,
            "error": self.errors["infini"],
        }
        for name in self.seconds:
            if name != "infini":
                found[f"{name}_us"] = self.best_s(name) * 1e6
                found[f"{name}_over_infini"] = self.best_s(name) / own
                found[f"{name}_error"] = self.errors[name]
        return found


def measure(
    case: Case,
    *,
    library: ggml_.Ggml | None = None,
    turns: int = 5,
    budget_s: float = 0.1,
    activations: str = "int8",
    dtype: str = "",
    is_arranged: bool = True,
) -> Found:
    """Measure one case.

    Args:
        case: the layer.
        library: ggml, when it takes part.
        turns: turns of each contender.
        budget_s: about how long a turn computes.
        activations: how quantized products take their activations.
        dtype: dtype of the activations; that of the weight, or float32 for quantized ones, when empty.
        is_arranged: whether quantized weights are arranged for the processor before.
    """
    rng = np.random.default_rng(0)
    n, k = case.shape
    one = weight(case.kind, n, k, rng)
    nbytes = one.nbytes
    count = max(1, min(MAX_WEIGHTS, FAR_BYTES // nbytes)) if case.rows <= 32 else 1
    weights = [one, *(weight(case.kind, n, k, rng) for _ in range(count - 1))]
    x = rng.standard_normal((case.rows, k), dtype=np.float32)
    x_dtype = dtypes.canonical(dtype) if dtype else dtypes.canonical(_FLOATS.get(case.kind, np.float32))
    own_x = infini.device_put(x.astype(x_dtype))
    given, plain = [own_x] * count, weights
    if is_arranged:
        weights = [w.arranged() if isinstance(w, QuantizedArray) else w for w in weights]
    run = _program(activations)
    first = np.asarray(run(given, weights)[0]).astype(np.float32)
    exact = x @ numbers(one).T
    scale = float(np.abs(exact).max())
    errors = {"infini": float(np.abs(first - exact).max()) / scale}
    contenders: dict[str, Callable[[], object]] = {
        "infini": lambda: infini.block_until_ready(run(given, weights))
    }
    if library is not None and case.kind in ggml_.TYPES:
        for name, is_repacked in (("ggml", False), ("repacked", True)):
            products = [library.product(case.kind, rows_of(w), x, repacked=is_repacked) for w in plain]
            made = [p for p in products if p is not None]
            if len(made) < len(products):
                continue
            contenders[name] = lambda made=made: [p.run() for p in made]  # type: ignore[misc]  # a default
            made[0].run()
            errors[name] = float(np.abs(made[0].result() - exact).max()) / scale
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        names = list(contenders)
        for name in names if turn % 2 == 0 else names[::-1]:
            time.sleep(PAUSE_S)
            seconds[name].append(_time(contenders[name], budget_s) / count)
    return Found(case, nbytes, seconds, errors)


def _time(call: Callable[[], object], budget_s: float) -> float:
    """Seconds of a call: the shorter half of those that fit, so that what others did counts little."""
    call()
    found: list[float] = []
    until = time.perf_counter() + budget_s
    while not found or (time.perf_counter() < until and len(found) < 1000):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(sorted(found)[: max(1, len(found) // 2)])


def _program(activations: str) -> Any:  # Any: a jitted function
    def product(x: Any, w: Any) -> Any:  # Any: arrays
        if isinstance(w, QuantizedArray):
            return lax.quantized_matmul(x, w, activations=activations)  # type: ignore[arg-type]  # checked there
        return lax.dot_general(x, w, (((1,), (1,)), ((), ())))

    return infini.jit(lambda xs, ws: [product(x, w) for x, w in zip(xs, ws, strict=True)])


def weight(kind: str, n: int, k: int, rng: np.random.Generator) -> Any:  # Any: an array of either class
    """A weight (N, K) with numbers of about 0.02."""
    if kind in _FLOATS:
        found = rng.standard_normal((n, k), dtype=np.float32) * np.float32(0.02)
        return infini.device_put(found.astype(_FLOATS[kind]))
    scheme = quantization.int8() if kind == "int8" else getattr(quantization, kind)
    known: Scheme = scheme.for_row(k)
    groups = k // known.group  # type: ignore[operator]  # known for a row
    rows = (n, groups)
    size = 0.02 * 4 / 2**known.bits / (1 if not known.part else 8 if known.bits == 2 else 32)
    scales = (rng.random(rows, dtype=np.float32) + 0.5) * np.float32(size)
    planes: dict[str, Any] = {
        "blocks": rng.integers(0, 256, (*rows, known.nbytes_of_group), dtype=np.uint8),
        "scales": scales.astype(known.scale_dtype),
    }
    if known.beside == "minimum":
        planes["minima"] = (-scales if not known.part else scales).astype(known.scale_dtype)
    if known.part:
        planes["sub_scales"] = rng.integers(0, 256, (*rows, known.sub_scales), dtype=np.uint8)
    return QuantizedArray(**{name: infini.device_put(p) for name, p in planes.items()}, scheme=known)


def numbers(w: Any) -> np.ndarray:  # Any: an array of either class
    """The numbers of a weight as float32."""
    return np.asarray(w.dequantize() if isinstance(w, QuantizedArray) else w).astype(np.float32)


def rows_of(w: Any) -> np.ndarray:  # Any: an array of either class
    """The bytes of a weight as ggml has them, (N, bytes of a row)."""
    if isinstance(w, QuantizedArray):
        return np.asarray(w.to_ggml())
    return np.asarray(w).view(np.uint8)


def cases(
    kinds: Sequence[str] = KINDS,
    rows: Sequence[int] = ROWS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> list[Case]:
    """Every case of some kinds, rows and shapes."""
    return [Case(kind, shape, m) for kind in kinds for shape in shapes for m in rows]


def library(path: Path | None, num_threads: int) -> ggml_.Ggml | None:
    """ggml from a path, if there is one; and so many threads for infini."""
    config.config.update("num_threads", num_threads)
    return None if path is None else ggml_.Ggml(path, num_threads)
