"""Recipes that split the batch: every group of devices computes its rows with all the weights."""

from __future__ import annotations

from infini.parallel.recipes.placing import Recipe, Rule


def data(axis: str = "dp") -> Recipe:
    """Data parallelism: weights whole everywhere, gradients summed.

    Memory for P parameters of 4 bytes with Adam: 16 P bytes on each device (weights, gradients, two moments).
    Sent per step and device, by a ring: 2 (n - 1) / n of the gradients.
    """
    return Recipe(batch=((axis,),))


def zero1(axis: str = "dp") -> Recipe:
    """Data parallelism with the optimizer's state split: each device updates its part of the weights, which
    are gathered after that (ZeRO stage 1, arXiv:1910.02054).

    Memory: 4 P + 8 P / n bytes, and the gradients that are not scattered yet. Sent: as much as `data`, a
        reduce_scatter and an all_gather in place of the sum.
    """
    return Recipe((Rule(axis, kinds=("optimizer",)),), batch=((axis,),))


def zero2(axis: str = "dp") -> Recipe:
    """ZeRO stage 2: gradients are split as well. A compiled step never holds all gradients whole when the
    optimizer's state is split, so this is `zero1`; the name is here for those who look for it.
    """
    return zero1(axis)


def zero3(axis: str = "dp") -> Recipe:
    """Everything split: weights are gathered where they are used and gradients scattered (ZeRO stage 3, FSDP,
    arXiv:2304.11277).

    Memory: 16 P / n bytes, and the weights of the layers in use. Sent: 3 (n - 1) / n of the weights, half as
        much again as `data`; 2 (n - 1) / n of a table that is only looked up, which the backward pass does
        not read. What fits `Collectives.window_bytes` is kept for the backward pass, and sent once less.
    """
    return Recipe((Rule(axis),), batch=((axis,),))
