"""A training run of infini repeated in JAX, step by step, from the file of measurements that the run wrote.

Both take the same batches, learning rates and initial parameters; what differs is who computes. Equal text is
needed, and checked: the file names the ids that the run saw.

Training multiplies rounding errors: JAX alone, started from parameters changed in their last place, ends
elsewhere, too. How far is what `num_disturbed` measures, and the least that can be asked of the two.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infini.core import errors
from infini.data import batches, tokens
from infini.perf import jax_twin

# Single steps are noisy; curves are compared as means over this many.
WINDOW = 20
# Relative deviation of the noise in disturbed parameters: about one unit in the last place of a float32.
NOISE = 1e-7


def replay(
    metrics_file: Path,
    data: Sequence[Path] = (),
    *,
    max_steps: int | None = None,
    num_disturbed: int = 0,
) -> dict[str, float]:
    """Train in JAX as a file of measurements says infini did.

    Args:
        metrics_file: what `infini train` or `infini demo` wrote beside the model.
        data: the files and folders that the run was given; none for Python's standard library.
        max_steps: stop after so many steps; the held-out loss is then left out.
        num_disturbed: further runs of JAX, each from initial parameters with other noise in their last place.

    Returns:
        `num_steps`; `curve_difference`, the largest difference of the smoothed losses; `step_difference`, the
        largest of single losses; and, for whole runs, `held_out_loss` of both and their difference. With
        disturbed runs, the same three differences between the nth of them and JAX's first run, as
        `disturbed_<n>_...`. In nats.

    Raises:
        ValueMismatchError: the file holds no run, or the text is not the one that the run saw.
    """
    start, steps, end = _read(metrics_file)
    found = tokens.read(data, vocab_size=start["config"]["vocab_size"])
    if tokens.fingerprint(found.train, found.held_out) != start["tokens"]:
        raise errors.ValueMismatchError(
            "the text is not the one that the run saw",
            fix="name the same files, on a machine with the same Python",
        )
    steps = steps[:max_steps]
    losses, held_out_loss = _train_in_jax(start, steps, found)
    ours = np.array([step["loss"] for step in steps])
    result = {"num_steps": float(len(steps)), **_differences(ours, losses)}
    is_whole = end is not None and len(steps) == end["num_steps"]
    if end is not None and is_whole:
        result |= {
            "held_out_loss": end["held_out_loss"],
            "held_out_loss_in_jax": held_out_loss,
            "held_out_difference": abs(held_out_loss - end["held_out_loss"]),
        }
    for number in range(1, num_disturbed + 1):
        disturbed, its_held_out_loss = _train_in_jax(start, steps, found, noise_seed=number)
        differences = _differences(disturbed, losses)
        if is_whole:
            differences["held_out_difference"] = abs(its_held_out_loss - held_out_loss)
        result |= {f"disturbed_{number}_{name}": value for name, value in differences.items()}
    return result


def _differences(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    return {
        "curve_difference": float(np.abs(_smooth(a) - _smooth(b)).max()),
        "step_difference": float(np.abs(a - b).max()),
    }


def _read(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]:  # Any: JSON
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise errors.ValueMismatchError(f"{file} cannot be read", got=str(error)) from error
    by_event = {line["event"]: line for line in lines}
    steps = [line for line in lines if line["event"] == "step"]
    if "start" not in by_event or not steps:
        raise errors.ValueMismatchError(
            f"{file} holds no run", expected="the .metrics.jsonl of `infini train`"
        )
    return by_event["start"], steps, by_event.get("end")


def _train_in_jax(
    start: dict[str, Any],
    steps: list[dict[str, Any]],
    found: tokens.TokenizedCorpus,
    noise_seed: int | None = None,
) -> tuple[np.ndarray, float]:
    """Losses of the steps and the held-out loss after them; with a seed, from disturbed parameters."""
    import jax

    gpt, step = jax_twin.load("train.gpt"), jax_twin.load("train.step")
    settings = start["settings"]
    config = gpt.Config(**start["config"])
    options = {"config": config, "hyper": step.Hyperparameters(**settings["hyper"])}
    state = jax.jit(functools.partial(step.init_state, **options))(jax.random.PRNGKey(settings["seed"]))
    if noise_seed is not None:
        generator = np.random.default_rng(noise_seed)
        state["params"] = jax.tree.map(lambda x: _disturbed(np.asarray(x), generator), state["params"])
    # Files of earlier versions name neither a computation nor an order: plain and random.
    computation = step.Computation(**settings.get("computation", {}))
    run = jax.jit(functools.partial(step.step, **options, computation=computation), donate_argnums=0)
    data = batches.Batches(
        found.train,
        settings["batch_size"],
        settings["length"],
        settings["seed"],
        settings.get("order", "random"),
    )
    losses = []
    for record in steps:
        state, metrics = run(state, data.at(record["step"]), np.float32(record["learning_rate"]))
        losses.append(float(metrics["loss"]))
    measure = jax.jit(functools.partial(step.evaluate, config=config, computation=computation))
    windows = batches.spaced_windows(
        found.held_out, count=settings["num_evaluation_windows"], length=settings["length"]
    )
    held_out = [float(measure(state["params"], window[None])) for window in windows]
    return np.array(losses), float(np.mean(held_out))


def _disturbed(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return (x * (1 + NOISE * generator.standard_normal(x.shape))).astype(x.dtype)


def _smooth(losses: np.ndarray) -> np.ndarray:
    width = min(WINDOW, len(losses))
    return np.convolve(losses, np.full(width, 1.0 / width), mode="valid")
