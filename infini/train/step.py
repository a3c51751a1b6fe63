"""One training step as a pure function of (state, batch, learning rate).

Runs on JAX with its imports changed, as `gpt.py` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import infini as inf
import infini.numpy as inp
from infini import Array, lax, optim, tree
from infini.train import gpt

State: TypeAlias = dict[str, Any]  # Any: a pytree of arrays
ComputeDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What the optimizer does; the learning rate is an argument of the step.

    Args:
        weight_decay: decay of matrices per step, times the learning rate; norms and biases do not decay.
        b1: decay of the running mean of gradients.
        b2: decay of the running mean of their squares.
        max_norm: gradients are scaled down to this global norm; None leaves them as they are.
        eps: added to the root of the mean of squares.
        decay_embeddings: whether the embedding table and the output projection decay, too.
    """

    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    max_norm: float | None = 1.0
    eps: float = 1e-8
    decay_embeddings: bool = True


@dataclass(frozen=True, slots=True)
class Computation:
    """How a step is computed. Parameters, the optimizer's state, loss and gradients are float32 in any case.

    Args:
        dtype: dtype of the forward and backward pass.
        num_parts: parts of the batch that are computed one after the other, which saves memory.
        is_checkpointed: whether the backward pass computes each block again, which saves memory, too.
    """

    dtype: ComputeDtype = "float32"
    num_parts: int = 1
    is_checkpointed: bool = False


PLAIN = Computation()


def optimizer(
    learning_rate: float | Array, hyper: Hyperparameters, norm: Array | None = None
) -> optim.GradientTransformation:
    """Clipping by global norm, then AdamW.

    Args:
        learning_rate: the rate.
        hyper: what it does.
        norm: the global norm, where gradients are those of a part of the model; found when absent.
    """
    adamw = optim.adamw(
        learning_rate,
        b1=hyper.b1,
        b2=hyper.b2,
        eps=hyper.eps,
        weight_decay=hyper.weight_decay,
        mask=_is_matrix if hyper.decay_embeddings else _is_inner_matrix,
    )
    # An infinite norm multiplies by one; the state has one structure either way.
    max_norm = math.inf if hyper.max_norm is None else hyper.max_norm
    clip = optim.clip_by_global_norm(max_norm)
    return optim.chain(clip if norm is None else _clip_by(norm, max_norm, clip.init), adamw)


def init_state(
    key: Array, config: gpt.Config, hyper: Hyperparameters, params: gpt.Params | None = None
) -> State:
    """Fresh optimizer state, and fresh parameters unless some are given."""
    if params is None:
        params = gpt.init(key, config)
    return {"params": params, "optimizer": optimizer(0.0, hyper).init(params)}


def step(
    state: State,
    windows: Array,
    learning_rate: Array,
    config: gpt.Config,
    hyper: Hyperparameters,
    computation: Computation = PLAIN,
) -> tuple[State, dict[str, Array]]:
    """Loss, gradients, update.

    Args:
        state: as `init_state` makes it; donate it.
        windows: integers of shape (B, T + 1).
        learning_rate: float32 of shape ().
        config: sizes of the model.
        hyper: what the optimizer does.
        computation: dtypes, and memory against time.

    Returns:
        The next state, and the loss and the gradients' global norm before clipping.
    """
    loss, gradients = _loss_and_gradients(state["params"], windows, config, computation)
    state = update(state, gradients, learning_rate, None, hyper)
    return state, {"loss": loss, "gradient_norm": optim.global_norm(gradients)}


def update(
    state: State,
    gradients: gpt.Params,
    learning_rate: Array,
    norm: Array | None,
    hyper: Hyperparameters,
) -> State:
    """The next state of a model, or of a part of one.

    Args:
        state: as `init_state` makes it; donate it.
        gradients: of its parameters.
        learning_rate: float32 of shape ().
        norm: the global norm of the gradients of all parts; None when these are all.
        hyper: what the optimizer does.
    """
    updates, optimizer_state = optimizer(learning_rate, hyper, norm).update(
        gradients, state["optimizer"], state["params"]
    )
    return {"params": optim.apply_updates(state["params"], updates), "optimizer": optimizer_state}


def evaluate(params: gpt.Params, windows: Array, config: gpt.Config, computation: Computation) -> Array:
    """The loss as training computes it, without its gradient."""
    return gpt.loss(in_dtype(computation.dtype, params), windows, config)


def num_parameters(params: gpt.Params) -> int:
    """Number of elements of all leaves."""
    return sum(leaf.size for leaf in tree.leaves(params))


def in_dtype(dtype: ComputeDtype, params: gpt.Params) -> gpt.Params:
    """Parameters as the forward pass reads them."""
    return params if dtype == "float32" else tree.map(lambda p: p.astype(dtype), params)


def _clip_by(norm: Array, max_norm: float, init: Any) -> optim.GradientTransformation:  # Any: a function
    """`optim.clip_by_global_norm` where the norm is known."""

    def scaled(updates: gpt.Params, state: Any, params: gpt.Params | None = None) -> tuple[gpt.Params, Any]:
        factor = inp.minimum(1.0, max_norm / inp.maximum(norm, 1e-16))
        return tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return optim.GradientTransformation(init, scaled)


def _loss_and_gradients(
    params: gpt.Params, windows: Array, config: gpt.Config, computation: Computation
) -> tuple[Array, gpt.Params]:
    """Means over the batch."""

    def loss(params: gpt.Params, windows: Array) -> Array:
        narrow = in_dtype(computation.dtype, params)  # its transpose makes the gradients float32 again
        return gpt.loss(narrow, windows, config, is_checkpointed=computation.is_checkpointed)

    differentiate = inf.value_and_grad(loss)
    count = computation.num_parts
    if count == 1:
        return differentiate(params, windows)
    # Every count-th row, so that a batch split over devices stays where it is.
    parts = windows.reshape(-1, count, windows.shape[-1]).swapaxes(0, 1)

    def add(sums: tuple[Array, gpt.Params], part: Array) -> tuple[tuple[Array, gpt.Params], None]:
        return tree.map(lambda a, b: a + b, sums, differentiate(params, part)), None

    zeros = (inp.zeros(()), tree.map(inp.zeros_like, params))
    sums, _ = lax.scan(add, zeros, parts)
    return tree.map(lambda total: total / count, sums)


def _is_inner_matrix(params: gpt.Params) -> Any:  # Any: a tree of bools
    tables = {name: False for name in ("embed_tokens", "lm_head") if name in params}
    return _is_matrix(params) | tables


def _is_matrix(params: gpt.Params) -> Any:  # Any: a tree of bools
    return tree.map(lambda p: p.ndim > 1, params)
