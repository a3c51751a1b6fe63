"""Recipes that split the model, by the names of weights in the layout (out, in) of PyTorch and Hugging
Face."""

from __future__ import annotations

from typing import Final, Literal

from infini.core import errors
from infini.lax.checkpoint_policies import GRADIENT_OF
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


def experts(
    axis: str = "ep",
    *,
    dispatch: Literal["all_to_all", "all_gather"] = "all_to_all",
    pattern: str = r"experts/",
) -> Recipe:
    """Expert parallelism: each device has some experts, and sequences are split as well.

    `all_to_all` hands rows over before and after the experts (GShard, arXiv:2006.16668); it is for layers
    with a capacity. `all_gather` gives every device all tokens of its group, of which it computes what its
    experts were given, and adds up what all made of them; it needs no capacity.

    Memory: 1 / n of the experts; with `all_gather` the tokens of all n devices in each layer. Sent per layer
        and device, twice forwards and twice backwards, where n devices have T tokens: (n - 1) / n of
        T k c / n rows of model width with `all_to_all`, for k experts per token and a capacity factor of c;
        (n - 1) / n of T with `all_gather`, which is less when k c > n.

    Args:
        axis: mesh axis.
        dispatch: how tokens come to their experts and back.
        pattern: paths of weights (expert, out, in).

    Raises:
        ValueMismatchError: there is no such dispatch.
    """
    rules, batch = (Rule(axis, pattern, -3),), ((axis,),)
    rows = {"experts": ((axis,), OF_BATCH)}
    if dispatch == "all_to_all":
        return Recipe(rules, batch, {**rows, "sequences": (OF_BATCH,)})
    if dispatch == "all_gather":
        read = ("tokens", "choices", GRADIENT_OF + "mixed")
        added = ("mixed", GRADIENT_OF + "tokens", GRADIENT_OF + "choices")
        named = rows | dict.fromkeys((*read, *added), (OF_BATCH,))
        over = (axis,)
        return Recipe(rules, batch, named, dict.fromkeys(read, over), dict.fromkeys(added, over))
    raise errors.ValueMismatchError(
        f"experts: there is no dispatch called {dispatch!r}",
        got=f"dispatch={dispatch!r}",
        expected="'all_to_all' or 'all_gather'",
        fix="leave it out for all_to_all",
    )
