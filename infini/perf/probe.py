"""Measurements that need a fresh process, run by path so that a peer's process never loads infini:
`python -P probe.py KIND CONTENDER [OPTIONS]` prints one line of JSON.

    start     seconds from before the import of the framework to the first result of a small program
    compile   seconds of trace, compilation and first run of a GPT's training step, less those of a later run
    memory    largest resident memory in bytes of a process that does three of these steps

The parent decides by the environment whether caches on disk are there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main(kind: str, contender: str, options: dict[str, int]) -> dict[str, float]:
    """Run one measurement and return what was found."""
    if kind == "start":
        return {"value": _start(contender)}
    num_threads = options.pop("num_threads")
    step = _torch_step(contender, num_threads, **options) if contender.startswith("torch") else None
    started = time.perf_counter()
    if step is None:
        step, started = _array_step(contender, **options)
    losses = [step()]
    first_s = time.perf_counter() - started
    later_s = []
    for _ in range(2):
        started = time.perf_counter()
        losses.append(step())
        later_s.append(time.perf_counter() - started)
    if kind == "memory":
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "value": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit),
            "loss": losses[-1],
        }
    return {"value": first_s - min(later_s), "loss": losses[-1]}


def _start(contender: str) -> float:
    started = time.perf_counter()
    if contender == "torch":
        torch = importlib.import_module("torch")
        x = torch.linspace(0, 1, 64)
        total = float(torch.sum(torch.tanh(x * 2.0 + 1.0)))
    else:
        root, numpy = importlib.import_module(contender), importlib.import_module(f"{contender}.numpy")
        x = numpy.linspace(0.0, 1.0, 64)
        total = float(root.jit(lambda x: numpy.sum(numpy.tanh(x * 2.0 + 1.0)))(x))
    assert 55 < total < 61, total
    return time.perf_counter() - started


def _array_step(contender: str, *, layers: int, width: int, batch: int, length: int) -> tuple[Any, float]:
    """A function that does one step and returns the loss, and when tracing began."""
    root, numpy = importlib.import_module(contender), importlib.import_module(f"{contender}.numpy")
    random = importlib.import_module(f"{contender}.random")
    gpt, train = _modules(contender)
    config = gpt.Config(**_sizes(layers, width))
    hyper = train.Hyperparameters()
    state = train.init_state(random.PRNGKey(0), config, hyper)
    windows = random.randint(random.PRNGKey(1), (batch, length + 1), 0, config.vocab_size)
    root.block_until_ready((state, windows))
    run = root.jit(train.step, static_argnums=(3, 4), donate_argnums=(0,))
    rate = numpy.float32(1e-3)
    kept = [state]
    del state

    def step() -> float:
        kept[0], metrics = run(kept[0], windows, rate, config, hyper)
        return float(metrics["loss"])

    return step, time.perf_counter()


def _modules(contender: str) -> tuple[ModuleType, ModuleType]:
    if contender == "infini":
        return importlib.import_module("infini.train.gpt"), importlib.import_module("infini.train.step")
    # infini's optimizers on JAX raise infini's errors: the package is there, without what it imports.
    package = ModuleType("infini")
    package.__path__ = [str(ROOT / "infini")]
    sys.modules["infini"] = package
    twin = _by_path("jax_twin.py")
    return twin.load("train.gpt"), twin.load("train.step")


def _torch_step(contender: str, num_threads: int, *, layers: int, width: int, batch: int, length: int) -> Any:
    torch = importlib.import_module("torch")
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    models = _by_path("workloads/torch_gpt.py")
    config = SimpleNamespace(vocab_size=4096, rope_theta=10000.0, norm_epsilon=1e-5, **_sizes(layers, width))
    np = importlib.import_module("numpy")
    params = models.params(np.random.default_rng(0), config)
    tensors = _map(torch.from_numpy, params)
    del params
    windows = torch.randint(0, config.vocab_size, (batch, length + 1))
    wrap = torch.compile if contender == "torch_compile" else lambda function: function
    step = models.train_step(torch, config)(wrap, tensors, windows, 1e-3)
    return lambda: float(step())


def _map(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, part) for name, part in tree.items()}
    return [_map(function, part) for part in tree] if isinstance(tree, list) else function(tree)


def _sizes(layers: int, width: int) -> dict[str, int]:
    heads = width // 64
    return {
        "hidden_size": width, "intermediate_size": 3 * width, "num_layers": layers, "num_heads": heads,
        "num_kv_heads": heads // 2, "head_dim": 64,
    }  # fmt: skip


def _by_path(file: str) -> ModuleType:
    """A module below this folder, without its package."""
    spec = importlib.util.spec_from_file_location(f"_{Path(file).stem}", Path(__file__).parent / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity") and (chosen := os.environ.get("BENCHMARK_CPUS")):
        os.sched_setaffinity(0, [int(number) for number in chosen.split(",")])
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})))
