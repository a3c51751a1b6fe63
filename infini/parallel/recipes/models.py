"""Recipes that split the model, by the names of weights in the layout (out, in) of PyTorch and Hugging
Face."""

from __future__ import annotations

from typing import Final

from infini.parallel.recipes.placing import OF_BATCH, Recipe, Rule

# Ends of the paths of weights whose outputs, and of those whose inputs are split.
COLUMNS: Final = r"((q|k|v|qkv|gate|up)_proj|fc1|w1|w3|lm_head|embed_tokens|embed)$"
ROWS: Final = r"((o|down)_proj|fc2|w2)$"


def tensor(axis: str = "tp", *, columns: str = COLUMNS, rows: str = ROWS) -> Recipe:
    """Tensor parallelism: the first of two products is split by columns and the second by rows, so one sum
    per pair is all that is sent (Megatron, arXiv:1909.08053). Embedding and logits are split by vocabulary.

    Memory: 1 / n of the split weights. Sent per layer and device: two sums of the activations (B, T, M)
        forwards and two backwards; one forwards for the embedding and one backwards for the logits; in the
        loss a maximum and a sum of one number per token.

    Args:
        axis: mesh axis.
        columns: weights (..., out, in) split by `out`, with their biases.
        rows: weights split by `in`.
    """
    biases = columns.removesuffix("$") + "_bias$"
    return Recipe((Rule(axis, columns, -2), Rule(axis, rows, -1), Rule(axis, biases, -1)))


def sequence(axis: str = "tp") -> Recipe:
    """Sequence parallelism, beside `tensor` on the same axis: between its pairs of products activations are
    split by tokens, so each sum becomes a reduce_scatter and an all_gather of as many bytes, and norms and
    residuals take 1 / n of the memory (arXiv:2205.05198). The model names these values "residual", and what
    products read "normed".

    Sent per layer and device: two gathers and two scatters of the activations (B, T, M) forwards and as many
        backwards, which is as much as the four sums of `tensor`; and what the backward pass of attention
        fetches, the output projection and 1 / n of the rows of heads.

    Args:
        axis: the axis of `tensor`.
    """
    return Recipe(named={"residual": (OF_BATCH, (axis,)), "normed": (OF_BATCH, ())})


def experts(axis: str = "ep", *, pattern: str = r"experts/") -> Recipe:
    """Expert parallelism: each device has some experts, and sequences are split as well; before and after the
    experts all_to_all hands rows over (GShard, arXiv:2006.16668).

    Memory: 1 / n of the experts. Sent per layer and device: (n - 1) / n of its rows of experts, twice
        forwards and twice backwards.

    Args:
        axis: mesh axis.
        pattern: paths of weights (expert, out, in).
    """
    named = {"experts": ((axis,), OF_BATCH), "sequences": (OF_BATCH,)}
    return Recipe((Rule(axis, pattern, -3),), batch=((axis,),), named=named)
