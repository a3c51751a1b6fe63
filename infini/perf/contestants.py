"""The contenders of the CPU and GPU suites: how each compiles a workload, differentiates it, calls it and
shows its result.

Every contender returns newly allocated results on every call, and results are waited for. PyTorch runs its
eager and its compiled mode as two contenders; a third calls kernels written by hand in Triton.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np

from infini import tree
from infini.perf import workload as workload_
from infini.perf.workload import Program, Tree, Workload

Name = Literal["infini", "jax", "torch", "torch_compile", "triton"]
NAMES: Final[tuple[Name, ...]] = ("infini", "jax", "torch", "torch_compile", "triton")
SEED: Final = 20
STEPS_COMPARED: Final = 3
SAMPLE: Final = 100_000  # values of a result that are compared
_SHORT_S: Final = 1e-4  # calls shorter than this are timed several at a time
_FEWEST: Final = 3
_MOST: Final = 200


class Contestant(Protocol):
    """One framework, or one mode of one."""

    @property
    def name(self) -> Name:
        """Of the contender."""

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """A function without arguments that does one call and returns the result; the first call compiles."""

    def wait(self, result: Any) -> None:
        """Return when a result is computed."""

    def to_host(self, array: Any) -> np.ndarray:
        """An array of a result for NumPy."""


@dataclass(frozen=True, slots=True)
class ArrayContestant:
    """infini or JAX."""

    name: Name
    namespace: workload_.Namespace

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        root = self.namespace.root
        arguments = tree.map(self.namespace.numpy.asarray, _arguments(workload))
        program = workload.program(self.namespace)
        if workload.is_step:
            initial, step = program
            return _Step(root, initial, step, arguments)
        if not workload.gradient:
            return _call(root.jit(program), arguments)
        shape = root.eval_shape(program, *arguments)
        cotangent = self.namespace.numpy.asarray(_cotangent(shape.shape), shape.dtype)
        run = root.jit(_with_gradient(root.vjp, program, workload.gradient))
        return _call(run, (cotangent, *arguments))

    def wait(self, result: Any) -> None:
        self.namespace.root.block_until_ready(result)

    def to_host(self, array: Any) -> np.ndarray:
        found = np.asarray(array)
        return found if found.dtype.isbuiltin else found.astype(np.float32)


@dataclass(frozen=True, slots=True)
class TorchContestant:
    """PyTorch, eager or compiled, or its tensors with kernels in Triton."""

    name: Name
    torch: Any  # Any: the module, which has no types here
    device: str = "cpu"

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        if workload.torch is None:
            raise NotImplementedError("PyTorch has nothing like it")
        if self.name == "triton":
            if workload.triton is None:
                raise NotImplementedError("nobody wrote a kernel for it")
            return self._forward(workload.triton(self.torch), tree.map(self._tensor, _arguments(workload)))
        if self.name == "torch_compile":
            self.torch._dynamo.reset()
        arguments = tree.map(self._tensor, _arguments(workload))
        made = workload.torch(self.torch)
        if workload.is_step:
            return made(self._wrap, *arguments)
        run = self._wrap(made)
        if not workload.gradient:
            return self._forward(run, arguments)
        with self.torch.no_grad():
            like = made(*arguments)
        return self._with_gradient(run, arguments, workload.gradient, like)

    def wait(self, result: Any) -> None:
        if self.device != "cpu":  # on the CPU PyTorch computes before it returns
            self.torch.cuda.synchronize()

    def to_host(self, array: Any) -> np.ndarray:
        array = array.detach().cpu()
        return (array.float() if array.dtype == self.torch.bfloat16 else array).numpy()

    def _wrap(self, function: Program) -> Program:
        return self.torch.compile(function, dynamic=False) if self.name == "torch_compile" else function

    def _tensor(self, x: np.ndarray) -> Any:
        x = np.ascontiguousarray(x)
        if x.dtype.name == "bfloat16":
            bits = self.torch.from_numpy(x.view(np.int16).copy())
            return bits.view(self.torch.bfloat16).to(self.device)
        # Places and labels are 64-bit numbers in PyTorch.
        host = self.torch.from_numpy(x.astype(np.int64) if x.dtype == np.int32 else x.copy())
        return host.to(self.device)

    def _forward(self, run: Program, arguments: tuple[Tree, ...]) -> Callable[[], Any]:
        def call() -> Any:
            with self.torch.no_grad():
                return run(*arguments)

        return call

    def _with_gradient(
        self, run: Program, arguments: tuple[Tree, ...], positions: Sequence[int], like: Any
    ) -> Callable[[], Any]:
        leaves = tree.leaves([arguments[i] for i in positions])
        for leaf in leaves:
            leaf.requires_grad_()
        cotangent = self.torch.from_numpy(_cotangent(tuple(like.shape))).to(like)

        def call() -> Any:
            result = run(*arguments)
            return result.detach(), self.torch.autograd.grad(result, leaves, cotangent)

        return call


def contestant(name: Name, num_threads: int, device: str = "cpu") -> Contestant:
    """A contender, ready in this process; imports nothing of the others. infini and JAX compute where their
    environment says.
    """
    if name in {"infini", "jax"}:
        return ArrayContestant(name, workload_.namespace("jax" if name == "jax" else "infini"))
    torch = importlib.import_module("torch")
    torch.set_num_threads(num_threads)
    return TorchContestant(name, torch, device)


class Timing:
    """A prepared workload: its result once, then durations as often as asked."""

    def __init__(self, contestant: Contestant, workload: Workload) -> None:
        self.contestant = contestant
        self.call = contestant.prepare(workload)
        started = time.perf_counter()
        results = [self._once()]
        self.first_s = time.perf_counter() - started
        results += [self._once() for _ in range(STEPS_COMPARED - 1)] if workload.is_step else []
        self.result = [contestant.to_host(x) for x in tree.leaves(results)]
        self.estimate_s = min(self._timed(1) for _ in range(2))

    def seconds(self, budget_s: float) -> list[float]:
        """Seconds per call, over about `budget_s` of calls, after one that is not counted."""
        self._once()
        batch = max(1, int(_SHORT_S / self.estimate_s))
        count = min(max(int(budget_s / (self.estimate_s * batch)), _FEWEST), _MOST)
        gc.collect()
        gc.disable()
        try:
            return [self._timed(batch) for _ in range(count)]
        finally:
            gc.enable()

    def _once(self) -> Any:
        result = self.call()
        self.contestant.wait(result)
        return result

    def _timed(self, batch: int) -> float:
        call, wait = self.call, self.contestant.wait
        started = time.perf_counter()
        for _ in range(batch):
            result = call()
        wait(result)
        return (time.perf_counter() - started) / batch


class _Step:
    """A jitted step with its donated state."""

    def __init__(self, root: Any, initial: Program, step: Program, arguments: tuple[Tree, ...]) -> None:
        first, *rest = arguments
        self.state = root.block_until_ready(root.jit(initial)(first))
        self.rest = rest
        self.step = root.jit(step, donate_argnums=(0,))

    def __call__(self) -> Any:
        self.state, result = self.step(self.state, *self.rest)
        return result


def _call(run: Program, arguments: tuple[Tree, ...]) -> Callable[[], Any]:
    return lambda: run(*arguments)


def _with_gradient(vjp: Program, program: Program, positions: Sequence[int]) -> Program:
    """A function of (cotangent, arguments) that returns the result and the gradients of some arguments."""

    def run(cotangent: Any, *arguments: Any) -> Any:
        def of(*chosen: Any) -> Any:
            every = list(arguments)
            for position, value in zip(positions, chosen, strict=True):
                every[position] = value
            return program(*every)

        result, pull = vjp(of, *(arguments[i] for i in positions))
        return result, pull(cotangent)

    return run


def _arguments(workload: Workload) -> tuple[Tree, ...]:
    return workload.arguments(np.random.default_rng(SEED))


def _cotangent(shape: Sequence[int]) -> np.ndarray:
    found = np.random.default_rng(SEED + 1).standard_normal(tuple(shape), dtype=np.float32)
    return np.asarray(found, np.float32)


# --- comparing ----------------------------------------------------------------------------


def digest(result: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """What is kept of a result: shapes, moments, and values spread evenly over each array."""
    kept: dict[str, np.ndarray] = {}
    for number, array in enumerate(result):
        flat = array.reshape(-1)
        stride = max(1, flat.size // SAMPLE) | 1  # odd, so that it does not walk along one column
        kept[f"shape{number}"] = np.array(array.shape, np.int64)
        kept[f"values{number}"] = flat[::stride].astype(np.float64)
        kept[f"moments{number}"] = np.array([flat.mean(dtype=np.float64), flat.std(dtype=np.float64)])
    return kept


def difference(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], compared: Literal["values", "moments"]
) -> float:
    """Largest difference of two digests, relative to the largest value of each array.

    Infinite when shapes differ.
    """
    worst = 0.0
    if found.keys() != expected.keys():
        return float("inf")
    for name in expected:
        if not name.startswith("shape"):
            continue
        if found[name].tolist() != expected[name].tolist():
            return float("inf")
        ours, theirs = (kept[name.replace("shape", compared)] for kept in (found, expected))
        if theirs.size:
            worst = max(worst, _relative(ours, theirs))
    return worst


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return float("inf")
    scale = float(np.abs(expected).max())
    error = float(np.abs(found - expected).max())
    return error / scale if scale else error
