"""The programs of the core suite, written once for infini and JAX, and how long one call of each takes.

A `Framework` is a bundle of modules with equal names, so a case cannot favour one of them. A case is made
once per process (its arguments, the compiled function, a warm-up) and then asked for durations as often as
the suite likes.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias

from infini.perf import jax_twin

Name: TypeAlias = Literal["infini", "jax"]
Durations: TypeAlias = list[float]
Case: TypeAlias = Callable[[int], Durations]

CALLS_PER_SAMPLE: Final = 1000


@dataclass(frozen=True, slots=True)
class Framework:
    """One contender's modules under the names both have."""

    name: Name
    root: ModuleType
    numpy: ModuleType
    random: ModuleType
    gpt: ModuleType
    step: ModuleType


def load(name: Name) -> Framework:
    """The modules of a framework; imports nothing of the other."""
    own: Callable[[str], ModuleType] = jax_twin.load
    if name == "infini":
        own = lambda module: importlib.import_module(f"infini.{module}")  # noqa: E731
    return Framework(
        name,
        importlib.import_module(name),
        importlib.import_module(f"{name}.numpy"),
        importlib.import_module(f"{name}.random"),
        own("train.gpt"),
        own("train.step"),
    )


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The model and the batch of the training cases. The defaults are those of `make demo`."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    batch_size: int = 4
    length: int = 256


class Training:
    """The demo's train step on random tokens, with donated state.

    `first_s` is trace, compilation and the first run.
    """

    def __init__(self, framework: Framework, size: ModelSize) -> None:
        self.framework = framework
        gpt, step, random = framework.gpt, framework.step, framework.random
        self.config = gpt.Config(
            vocab_size=size.vocab_size,
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_layers=size.num_layers,
        )
        self.hyper = step.Hyperparameters()
        self.step = framework.root.jit(step.step, static_argnums=(3, 4), donate_argnums=(0,))
        self.state = step.init_state(random.PRNGKey(0), self.config, self.hyper)
        self.learning_rate = framework.numpy.float32(1e-3)
        shape = (size.batch_size, size.length + 1)
        self.windows = random.randint(random.PRNGKey(1), shape, 0, size.vocab_size)
        framework.root.block_until_ready((self.state, self.windows))
        self.first_s = self.run_once()

    def run_once(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        self.state, metrics = self.step(self.state, self.windows, self.learning_rate, self.config, self.hyper)
        metrics["loss"].block_until_ready()
        return time.perf_counter() - started

    def __call__(self, count: int) -> Durations:
        return [self.run_once() for _ in range(count)]


def small_call(framework: Framework) -> Case:
    """A jitted function of three arrays of 64 elements: what a call costs beside the work."""
    numpy = framework.numpy
    chain = framework.root.jit(lambda x, w, b: numpy.tanh(x * w + b))
    arguments = [numpy.linspace(0.0, 1.0, 64) * (i + 1) for i in range(3)]
    return _per_call(framework, lambda: chain(*arguments))


def tree_call(framework: Framework) -> Case:
    """A jitted function of a pytree with 64 leaves that touches one of them: what flattening costs."""
    numpy = framework.numpy
    leaves = {f"layer_{i:02}": {"weight": numpy.ones(8), "bias": numpy.zeros(8)} for i in range(32)}
    function = framework.root.jit(lambda tree: tree["layer_00"]["weight"] * 2.0)
    return _per_call(framework, lambda: function(leaves))


def eager_call(framework: Framework) -> Case:
    """One addition of two arrays of 64 elements without jit."""
    x = framework.numpy.linspace(0.0, 1.0, 64)
    y = x * 2.0
    return _per_call(framework, lambda: x + y)


def _per_call(framework: Framework, call: Callable[[], Any]) -> Case:  # Any: an array of either framework
    def sample(count: int) -> Durations:
        durations = []
        for _ in range(count):
            started = time.perf_counter()
            for _ in range(CALLS_PER_SAMPLE):
                result = call()
            framework.root.block_until_ready(result)
            durations.append((time.perf_counter() - started) / CALLS_PER_SAMPLE)
        return durations

    sample(1)
    return sample


CASES: Final[dict[str, Callable[[Framework], Case]]] = {
    "small_call": small_call,
    "tree_call": tree_call,
    "eager_call": eager_call,
}
