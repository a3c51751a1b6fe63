"""The recipe that splits sequences: every group of devices computes some tokens of its rows with all the
weights."""

from __future__ import annotations

from typing import Literal, TypeAlias

from infini.parallel.recipes.placing import OF_BATCH, Recipe

Form: TypeAlias = Literal["ring", "gather", "all_to_all"]


def context(axis: str = "cp", form: Form | None = None) -> Recipe:
    """Context parallelism: all activations are split by tokens, and attention is the one place where tokens
    meet; of experts with a capacity the places in it are split. The model names what lies between layers
    "residual" and what layers read "normed". Weights are whole and their gradients summed, as under `data`.

    Memory: 1 / n of the activations. Sent per layer and device for queries and keys of Q and K bytes on a
        device, in float32: by `gather` and by `ring` 6 (n - 1) K, of which a ring holds one block at a time
        and computes meanwhile (arXiv:2310.01889); by `all_to_all` (n - 1) / n (4 Q + 4 K) and one number per
        query and head, and n has to divide the heads of the keys (arXiv:2309.14509).

    Args:
        axis: mesh axis.
        form: how attention reads the keys of other devices; None for the cheapest where it is.
    """
    tokens = (OF_BATCH, (axis,))
    # Experts compute rows (expert, sequence, place, M): by place, or every device would compute all of them.
    places = {"experts": ((), OF_BATCH, (axis,)), "sequences": (OF_BATCH, (), (axis,))}
    named = {"residual": tokens, "normed": tokens, **places}
    return Recipe(named=named, strategies={} if form is None else {"attention": form})
