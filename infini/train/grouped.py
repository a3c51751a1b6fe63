"""The layer of experts without a capacity by names that JAX has: what `lax.expert_layer` means, and what
stands for it where this folder runs on JAX.
"""

from __future__ import annotations

import infini.numpy as inp
from infini import Array, lax


def expert_layer(x: Array, chosen: Array, amounts: Array, gate: Array, up: Array, down: Array) -> Array:
    """As `infini.lax.expert_layer`, for numbers of experts that exist.

    Args:
        x: tokens (t, d).
        chosen: experts of each (t, k).
        amounts: what each counts (t, k).
        gate: weights (e, f, d).
        up: weights (e, f, d).
        down: weights (e, d, f).
    """
    num_chosen, num_experts = chosen.shape[-1], gate.shape[0]
    experts = chosen.reshape(-1)  # choice i is one of token i // k
    order = inp.argsort(experts)
    sizes = inp.sum(experts[:, None] == inp.arange(num_experts), axis=0).astype(inp.int32)
    rows = x[order // num_chosen]
    gates = lax.ragged_dot(rows, inp.swapaxes(gate, 1, 2), sizes)
    hidden = gates * lax.logistic(gates) * lax.ragged_dot(rows, inp.swapaxes(up, 1, 2), sizes)
    rows = lax.ragged_dot(hidden, inp.swapaxes(down, 1, 2), sizes)
    back = inp.argsort(order)  # where each choice went
    return inp.sum(rows[back].reshape(*chosen.shape, -1) * amounts[..., None], axis=1)
