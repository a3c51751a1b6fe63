"""One training step as a pure function of (state, batch, learning rate).

Runs on JAX with its imports changed, as `gpt.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import infini as inf
from infini import Array, optim, tree
from infini.train import gpt

State: TypeAlias = dict[str, Any]  # Any: a pytree of arrays


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What the optimizer does; the learning rate is an argument of the step.

    Args:
        weight_decay: decay of matrices per step, times the learning rate; norms do not decay.
        b1: decay of the running mean of gradients.
        b2: decay of the running mean of their squares.
        max_norm: gradients are scaled down to this global norm.
    """

    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    max_norm: float = 1.0


def optimizer(learning_rate: float | Array, hyper: Hyperparameters) -> optim.GradientTransformation:
    """Clipping by global norm, then AdamW."""
    return optim.chain(
        optim.clip_by_global_norm(hyper.max_norm),
        optim.adamw(
            learning_rate, b1=hyper.b1, b2=hyper.b2, weight_decay=hyper.weight_decay, mask=_is_matrix
        ),
    )


def init_state(key: Array, config: gpt.Config, hyper: Hyperparameters) -> State:
    """Fresh parameters and optimizer state."""
    params = gpt.init(key, config)
    return {"params": params, "optimizer": optimizer(0.0, hyper).init(params)}


def step(
    state: State, windows: Array, learning_rate: Array, config: gpt.Config, hyper: Hyperparameters
) -> tuple[State, dict[str, Array]]:
    """Loss, gradients, update.

    Args:
        state: as `init_state` makes it; donate it.
        windows: integers of shape (B, T + 1).
        learning_rate: float32 of shape ().
        config: sizes of the model.
        hyper: what the optimizer does.

    Returns:
        The next state, and the loss and the gradients' global norm before clipping.
    """
    loss, gradients = inf.value_and_grad(gpt.loss)(state["params"], windows, config)
    updates, optimizer_state = optimizer(learning_rate, hyper).update(
        gradients, state["optimizer"], state["params"]
    )
    params = optim.apply_updates(state["params"], updates)
    metrics = {"loss": loss, "gradient_norm": optim.global_norm(gradients)}
    return {"params": params, "optimizer": optimizer_state}, metrics


def num_parameters(params: gpt.Params) -> int:
    """Number of elements of all leaves."""
    return sum(leaf.size for leaf in tree.leaves(params))


def _is_matrix(params: gpt.Params) -> Any:  # Any: a tree of bools
    return tree.map(lambda p: p.ndim > 1, params)
