"""Losses as modules, with PyTorch's names, arguments and defaults: the mean, and classes in dimension 1."""

from __future__ import annotations

import infini.numpy as inp
from infini.core.value import Value
from infini.nn import losses
from infini.nn.losses import Reduction
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike, as_value


def _array(x: ArrayLike | None) -> Value | None:
    return None if x is None else inp.asarray(x)


class CrossEntropyLoss(Module):
    """`losses.cross_entropy` of (N, C, ...) or (C,) scores.

    Args:
        weight: (C,) factors of the classes.
        ignore_index: examples with this label do not count.
        reduction: `mean`, `sum` or `none`.
        label_smoothing: share of the probability that is spread evenly over all classes.
    """

    weight: Value | None
    ignore_index: int = field(static=True)
    reduction: Reduction = field(static=True)
    label_smoothing: float = field(static=True)

    def __init__(
        self,
        weight: ArrayLike | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight = _array(weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        scores = as_value("CrossEntropyLoss", input)
        return losses.cross_entropy(
            scores, target, self.weight, axis=min(1, scores.ndim - 1), ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing, reduction=self.reduction,
        )  # fmt: skip


class NLLLoss(Module):
    """`losses.nll` of (N, C, ...) or (C,) log probabilities.

    Args:
        weight: (C,) factors of the classes.
        ignore_index: examples with this label do not count.
        reduction: `mean`, `sum` or `none`.
    """

    weight: Value | None
    ignore_index: int = field(static=True)
    reduction: Reduction = field(static=True)

    def __init__(
        self, weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> None:
        self.weight = _array(weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        scores = as_value("NLLLoss", input)
        return losses.nll(
            scores, target, self.weight, axis=min(1, scores.ndim - 1), ignore_index=self.ignore_index,
            reduction=self.reduction,
        )  # fmt: skip


class BCELoss(Module):
    """`losses.binary_cross_entropy`."""

    weight: Value | None
    reduction: Reduction = field(static=True)

    def __init__(self, weight: ArrayLike | None = None, reduction: Reduction = "mean") -> None:
        self.weight = _array(weight)
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(Module):
    """`losses.binary_cross_entropy_with_logits`."""

    weight: Value | None
    pos_weight: Value | None
    reduction: Reduction = field(static=True)

    def __init__(
        self,
        weight: ArrayLike | None = None,
        reduction: Reduction = "mean",
        pos_weight: ArrayLike | None = None,
    ) -> None:
        self.weight = _array(weight)
        self.pos_weight = _array(pos_weight)
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class KLDivLoss(Module):
    """`losses.kl_div`; `reduction` may also be `batchmean`."""

    reduction: losses.BatchReduction = field(static=True)
    log_target: bool = field(static=True)

    def __init__(self, reduction: losses.BatchReduction = "mean", log_target: bool = False) -> None:
        self.reduction = reduction
        self.log_target = log_target

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.kl_div(input, target, log_target=self.log_target, reduction=self.reduction)


class MSELoss(Module):
    """`losses.mse`."""

    reduction: Reduction = field(static=True)

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.mse(input, target, reduction=self.reduction)


class L1Loss(Module):
    """`losses.l1`."""

    reduction: Reduction = field(static=True)

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.l1(input, target, reduction=self.reduction)


class SmoothL1Loss(Module):
    """`losses.smooth_l1`."""

    reduction: Reduction = field(static=True)
    beta: float = field(static=True)

    def __init__(self, reduction: Reduction = "mean", beta: float = 1.0) -> None:
        self.reduction = reduction
        self.beta = beta

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.smooth_l1(input, target, beta=self.beta, reduction=self.reduction)


class HuberLoss(Module):
    """`losses.huber`."""

    reduction: Reduction = field(static=True)
    delta: float = field(static=True)

    def __init__(self, reduction: Reduction = "mean", delta: float = 1.0) -> None:
        self.reduction = reduction
        self.delta = delta

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.huber(input, target, delta=self.delta, reduction=self.reduction)


class PoissonNLLLoss(Module):
    """`losses.poisson_nll`."""

    log_input: bool = field(static=True)
    full: bool = field(static=True)
    eps: float = field(static=True)
    reduction: Reduction = field(static=True)

    def __init__(
        self, log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: Reduction = "mean"
    ) -> None:
        self.log_input = log_input
        self.full = full
        self.eps = eps
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.poisson_nll(
            input, target, log_input=self.log_input, full=self.full, eps=self.eps, reduction=self.reduction
        )


class GaussianNLLLoss(Module):
    """`losses.gaussian_nll`, called with the variances as third argument."""

    full: bool = field(static=True)
    eps: float = field(static=True)
    reduction: Reduction = field(static=True)

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: Reduction = "mean") -> None:
        self.full = full
        self.eps = eps
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike, var: ArrayLike) -> Value:  # noqa: A002  # PyTorch's
        return losses.gaussian_nll(input, target, var, full=self.full, eps=self.eps, reduction=self.reduction)


class CosineEmbeddingLoss(Module):
    """`losses.cosine_embedding`."""

    margin: float = field(static=True)
    reduction: Reduction = field(static=True)

    def __init__(self, margin: float = 0.0, reduction: Reduction = "mean") -> None:
        self.margin = margin
        self.reduction = reduction

    def __call__(self, input1: ArrayLike, input2: ArrayLike, target: ArrayLike) -> Value:
        return losses.cosine_embedding(input1, input2, target, margin=self.margin, reduction=self.reduction)


class MarginRankingLoss(Module):
    """`losses.margin_ranking`."""

    margin: float = field(static=True)
    reduction: Reduction = field(static=True)

    def __init__(self, margin: float = 0.0, reduction: Reduction = "mean") -> None:
        self.margin = margin
        self.reduction = reduction

    def __call__(self, input1: ArrayLike, input2: ArrayLike, target: ArrayLike) -> Value:
        return losses.margin_ranking(input1, input2, target, margin=self.margin, reduction=self.reduction)


class HingeEmbeddingLoss(Module):
    """`losses.hinge_embedding`."""

    margin: float = field(static=True)
    reduction: Reduction = field(static=True)

    def __init__(self, margin: float = 1.0, reduction: Reduction = "mean") -> None:
        self.margin = margin
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.hinge_embedding(input, target, margin=self.margin, reduction=self.reduction)


class SoftMarginLoss(Module):
    """`losses.soft_margin`."""

    reduction: Reduction = field(static=True)

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction = reduction

    def __call__(self, input: ArrayLike, target: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        return losses.soft_margin(input, target, reduction=self.reduction)


class TripletMarginLoss(Module):
    """`losses.triplet_margin`."""

    margin: float = field(static=True)
    p: float = field(static=True)
    eps: float = field(static=True)
    swap: bool = field(static=True)
    reduction: Reduction = field(static=True)

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        self.margin = margin
        self.p = p
        self.eps = eps
        self.swap = swap
        self.reduction = reduction

    def __call__(self, anchor: ArrayLike, positive: ArrayLike, negative: ArrayLike) -> Value:
        return losses.triplet_margin(
            anchor, positive, negative, margin=self.margin, p=self.p, eps=self.eps, swap=self.swap,
            reduction=self.reduction,
        )  # fmt: skip
