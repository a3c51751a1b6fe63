"""Losses as functions. They give one loss per example or element, whose mean is taken for training;
`reduction` does so with PyTorch's names and meaning.

Losses of 16-bit floats are computed in float32.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import infini.numpy as inp
from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.nn import activations
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, as_value, convert, inexact_operands

Reduction: TypeAlias = Literal["none", "mean", "sum"]
BatchReduction: TypeAlias = Literal["none", "mean", "sum", "batchmean"]


def reduced(name: str, loss: Value, reduction: str) -> Value:
    """Losses as they are, or their mean or sum.

    Raises:
        ValueMismatchError: the reduction is another one.
    """
    if reduction == "none":
        return loss
    if reduction not in ("mean", "sum"):
        raise errors.ValueMismatchError(
            f"{name}: unknown reduction", got=repr(reduction), expected="'none', 'mean' or 'sum'"
        )
    return inp.mean(loss) if reduction == "mean" else inp.sum(loss)


def _pair(name: str, *given: ArrayLike) -> list[Value]:
    """Operands as floats of at least 32 bits."""
    values = inexact_operands(name, *given)
    return [_wide(x) for x in values]


def _wide(x: Value) -> Value:
    return convert(x, x.dtype if x.dtype.itemsize > 4 else dtypes.float32)


# --- of classes -------------------------------------------------------------------------------


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "none",
) -> Value:
    """Negative log probability of the labels under `softmax(logits)`, computed in float32 or wider.

    Args:
        logits: (..., V) floats.
        labels: (...) integers in [0, V), or (..., V) probabilities.
        weight: (V,) factors of the classes.
        axis: dimension of the classes; PyTorch's is 1.
        ignore_index: examples with this label have loss 0 and do not count in the mean.
        label_smoothing: share of the probability that is spread evenly over all classes.
        reduction: `none`, `mean` (by the weights of the examples that count) or `sum`.

    Returns:
        (...) losses, float32, or float64 for float64 logits; a scalar when reduced.

    Raises:
        TypeMismatchError: shapes do not fit, or the labels are not integers.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn
        >>> nn.losses.cross_entropy(inp.zeros((2, 4)), inp.asarray([1, 3])).shape
        (2,)
    """
    scores, chosen = as_value("cross_entropy", logits), as_value("cross_entropy", labels)
    place = _axes.one("cross_entropy", axis, scores.ndim) if scores.ndim else 0
    rest = scores.shape[:place] + scores.shape[place + 1 :]
    wide = _wide(scores)
    factors = None if weight is None else _factors(weight, scores, place)
    if scores.ndim and chosen.shape == scores.shape and chosen.dtype in dtypes.FLOATS:
        return _soft_cross_entropy(wide, chosen, factors, place, label_smoothing, reduction)
    if scores.ndim == 0 or chosen.shape != rest or chosen.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            "cross_entropy: labels do not fit the logits",
            got=f"logits {scores.type}, labels {chosen.type}",
            expected="logits (..., V) and integer labels (...), or probabilities (..., V)",
        )
    if not label_smoothing:
        picked = _picked(wide, chosen, place)
        losses = trace.bind1(e.sub_p, activations.logsumexp(wide, axis=place), picked)
    else:
        log_chances = activations.log_softmax(wide, place)
        spread = -inp.mean(log_chances if factors is None else log_chances * factors, place)
        losses = -_picked(log_chances, chosen, place)
    counts = chosen != ignore_index
    of_labels = None if weight is None else inp.take(_vector(weight), chosen, mode="clip")
    if of_labels is not None:
        losses = losses * of_labels
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    losses = inp.where(counts, losses, 0)
    return _mean_by(losses, counts, of_labels, reduction)


def _mean_by(losses: Value, counts: Value, weights: Value | None, reduction: Reduction) -> Value:
    """Reduced losses; the mean is by the weights of those that count."""
    if reduction != "mean":
        return reduced("cross_entropy", losses, reduction)
    shares = counts.astype(losses.dtype) if weights is None else inp.where(counts, weights, 0)
    return inp.sum(losses) / inp.sum(shares)


def _soft_cross_entropy(
    scores: Value, chances: Value, factors: Value | None, place: int, smoothing: float, reduction: Reduction
) -> Value:
    chances = chances.astype(scores.dtype)
    if smoothing:
        chances = chances * (1 - smoothing) + smoothing / scores.shape[place]
    terms = chances * activations.log_softmax(scores, place)
    losses = -inp.sum(terms if factors is None else terms * factors, place)
    return reduced("cross_entropy", losses, reduction)


def _picked(x: Value, labels: Value, place: int) -> Value:
    """The elements at the labels."""
    at = view.expand_dims(labels, (place,))
    return view.squeeze(inp.take_along_axis(x, at, place, mode="clip"), (place,))


def _vector(weight: ArrayLike) -> Value:
    return _wide(as_value("cross_entropy", weight))


def _factors(weight: ArrayLike, scores: Value, place: int) -> Value:
    """Factors of the classes along their dimension."""
    factors = _vector(weight)
    if factors.shape != (scores.shape[place],):
        raise errors.TypeMismatchError(
            "the weights of classes are one number per class",
            got=str(factors.type),
            expected=f"shape ({scores.shape[place]},)",
        )
    return inp.reshape(factors, [-1 if d == place else 1 for d in range(scores.ndim)])


def nll(
    log_probabilities: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    reduction: Reduction = "none",
) -> Value:
    """Negative log probability of the labels.

    Args:
        log_probabilities: (..., V) floats.
        labels: (...) integers in [0, V).
        weight: (V,) factors of the classes.
        axis: dimension of the classes; PyTorch's is 1.
        ignore_index: examples with this label have loss 0 and do not count in the mean.
        reduction: `none`, `mean` (by the weights of the examples that count) or `sum`.

    Raises:
        TypeMismatchError: shapes do not fit, or the labels are not integers.
    """
    (scores,), chosen = _pair("nll", log_probabilities), as_value("nll", labels)
    place = _axes.one("nll", axis, scores.ndim)
    rest = scores.shape[:place] + scores.shape[place + 1 :]
    if chosen.shape != rest or chosen.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            "nll: labels do not fit the log probabilities",
            got=f"log probabilities {scores.type}, labels {chosen.type}",
            expected="log probabilities (..., V) and integer labels (...)",
        )
    counts = chosen != ignore_index
    losses = -_picked(scores, chosen, place)
    of_labels = None if weight is None else inp.take(_vector(weight), chosen, mode="clip")
    if of_labels is not None:
        losses = losses * of_labels
    return _mean_by(inp.where(counts, losses, 0), counts, of_labels, reduction)


def binary_cross_entropy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: Reduction = "none",
) -> Value:
    """Negative log probability of labels between 0 and 1; logarithms are cut at -100, as in PyTorch."""
    chance, label = _pair("binary_cross_entropy", probabilities, labels)
    losses = -(label * _cut_log(chance) + (1 - label) * _cut_log(1 - chance))
    return reduced("binary_cross_entropy", _weighted(losses, weight), reduction)


def _cut_log(x: Value) -> Value:
    is_far = x > 4e-44
    # The logarithm that is not taken must not be infinite, or its derivative would be NaN.
    return inp.where(is_far, inp.maximum(inp.log(inp.where(is_far, x, 1)), -100.0), -100.0)


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    pos_weight: ArrayLike | None = None,
    reduction: Reduction = "none",
) -> Value:
    """Negative log probability of labels between 0 and 1 under `sigmoid(logits)`, without overflow.

    Args:
        logits: floats.
        labels: floats between 0 and 1 of the same shape.
        weight: factor of each loss.
        pos_weight: factor of the part of label 1; broadcasts.
        reduction: `none`, `mean` or `sum`.
    """
    score, label = _pair("binary_cross_entropy_with_logits", logits, labels)
    positive = activations.softplus(-score)
    if pos_weight is not None:
        positive = positive * (1 + (inp.asarray(pos_weight) - 1) * label)
    losses = (1 - label) * score + positive
    return reduced("binary_cross_entropy_with_logits", _weighted(losses, weight), reduction)


def _weighted(losses: Value, weight: ArrayLike | None) -> Value:
    return losses if weight is None else inp.multiply(losses, weight)


def kl_div(
    log_probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    log_target: bool = False,
    reduction: BatchReduction = "none",
) -> Value:
    """Terms of the Kullback-Leibler divergence, `target * (log(target) - log_probability)`.

    Args:
        log_probabilities: floats.
        targets: probabilities of the same shape.
        log_target: the targets are logarithms.
        reduction: `none`, `mean` over all elements, `sum`, or `batchmean`, the sum over the first size.
    """
    score, target = _pair("kl_div", log_probabilities, targets)
    if log_target:
        losses = inp.exp(target) * (target - score)
    else:
        is_possible = target > 0
        losses = target * (inp.log(inp.where(is_possible, target, 1)) - score)
        losses = inp.where(is_possible, losses, 0)
    if reduction == "batchmean":
        return inp.sum(losses) / losses.shape[0]
    return reduced("kl_div", losses, reduction)


# --- of numbers -------------------------------------------------------------------------------


def mse(predictions: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "none") -> Value:
    """Squared errors."""
    x, y = _pair("mse", predictions, targets)
    return reduced("mse", inp.square(x - y), reduction)


def l1(predictions: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "none") -> Value:
    """Absolute errors."""
    x, y = _pair("l1", predictions, targets)
    return reduced("l1", inp.abs(x - y), reduction)


def smooth_l1(
    predictions: ArrayLike, targets: ArrayLike, *, beta: float = 1.0, reduction: Reduction = "none"
) -> Value:
    """Squared errors over `2 * beta` below `beta`, absolute errors less `beta / 2` above."""
    x, y = _pair("smooth_l1", predictions, targets)
    error = inp.abs(x - y)
    losses = error if beta == 0 else inp.where(error < beta, 0.5 / beta * error * error, error - 0.5 * beta)
    return reduced("smooth_l1", losses, reduction)


def huber(
    predictions: ArrayLike, targets: ArrayLike, *, delta: float = 1.0, reduction: Reduction = "none"
) -> Value:
    """Half squared errors below `delta`, `delta` times absolute errors less `delta / 2` above."""
    x, y = _pair("huber", predictions, targets)
    error = inp.abs(x - y)
    losses = inp.where(error < delta, 0.5 * error * error, delta * (error - 0.5 * delta))
    return reduced("huber", losses, reduction)


def poisson_nll(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: Reduction = "none",
) -> Value:
    """Negative log probability of counts under a Poisson distribution.

    Args:
        predictions: logarithms of rates, or rates.
        targets: counts.
        log_input: the predictions are logarithms.
        full: add Stirling's approximation of `log(target!)` for counts above 1.
        eps: added to rates before their logarithm.
        reduction: `none`, `mean` or `sum`.
    """
    x, y = _pair("poisson_nll", predictions, targets)
    losses = inp.exp(x) - y * x if log_input else x - y * inp.log(x + eps)
    if full:
        many = inp.where(y > 1, y, 2)
        stirling = many * inp.log(many) - many + 0.5 * inp.log(2 * inp.pi * many)
        losses = losses + inp.where(y > 1, stirling, 0)
    return reduced("poisson_nll", losses, reduction)


def gaussian_nll(
    predictions: ArrayLike,
    targets: ArrayLike,
    variances: ArrayLike,
    *,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Reduction = "none",
) -> Value:
    """Negative log density under normal distributions.

    Args:
        predictions: means.
        targets: numbers.
        variances: of the shape of the predictions, or with a last size of 1, or without the last dimension.
        full: add the constant term.
        eps: smallest variance.
        reduction: `none`, `mean` or `sum`.
    """
    x, y, spread = _pair("gaussian_nll", predictions, targets, variances)
    if spread.ndim == x.ndim - 1:
        spread = spread[..., None]
    # The bound on the variance is no part of the derivative.
    safe = spread + e.stop_gradient(inp.maximum(spread, eps) - spread)
    losses = 0.5 * (inp.log(safe) + inp.square(x - y) / safe)
    if full:
        losses = losses + 0.9189385332046727  # half the logarithm of two pi
    return reduced("gaussian_nll", losses, reduction)


# --- of pairs and margins ---------------------------------------------------------------------


def cosine_embedding(
    x1: ArrayLike, x2: ArrayLike, targets: ArrayLike, *, margin: float = 0.0, reduction: Reduction = "none"
) -> Value:
    """`1 - cos(x1, x2)` where the target is 1, `max(0, cos(x1, x2) - margin)` where it is -1.

    Args:
        x1: (..., D) vectors.
        x2: (..., D) vectors.
        targets: (...) of 1 and -1.
        margin: cosine up to which vectors count as different.
        reduction: `none`, `mean` or `sum`.
    """
    x, y = _pair("cosine_embedding", x1, x2)
    epsilon = 1e-12
    lengths = (inp.sum(x * x, -1) + epsilon) * (inp.sum(y * y, -1) + epsilon)
    cosine = inp.sum(x * y, -1) / inp.sqrt(lengths)
    target = as_value("cosine_embedding", targets)
    losses = inp.where(target == 1, 1 - cosine, inp.where(target == -1, activations.relu(cosine - margin), 0))
    return reduced("cosine_embedding", losses, reduction)


def margin_ranking(
    x1: ArrayLike, x2: ArrayLike, targets: ArrayLike, *, margin: float = 0.0, reduction: Reduction = "none"
) -> Value:
    """`max(0, margin - target * (x1 - x2))`, where the target is 1 when `x1` should be larger, else -1."""
    x, y, target = _pair("margin_ranking", x1, x2, targets)
    return reduced("margin_ranking", activations.relu(margin - target * (x - y)), reduction)


def hinge_embedding(
    x: ArrayLike, targets: ArrayLike, *, margin: float = 1.0, reduction: Reduction = "none"
) -> Value:
    """`x` where the target is 1, `max(0, margin - x)` where it is -1."""
    value, target = _pair("hinge_embedding", x, targets)
    losses = inp.where(target == 1, value, inp.where(target == -1, activations.relu(margin - value), 0))
    return reduced("hinge_embedding", losses, reduction)


def soft_margin(x: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "none") -> Value:
    """`log(1 + exp(-target * x))` of targets 1 and -1."""
    value, target = _pair("soft_margin", x, targets)
    return reduced("soft_margin", activations.softplus(-target * value), reduction)


def triplet_margin(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: Reduction = "none",
) -> Value:
    """How much closer than `margin` the negative is to the anchor, compared with the positive.

    Args:
        anchor: (..., D) vectors.
        positive: (..., D) vectors.
        negative: (..., D) vectors.
        margin: wanted difference of distances.
        p: exponent of the norm.
        eps: added to differences, against a division by zero.
        swap: use the distance of positive and negative where it is smaller.
        reduction: `none`, `mean` or `sum`.
    """
    a, b, c = _pair("triplet_margin", anchor, positive, negative)
    near, far = _distance(a, b, p, eps), _distance(a, c, p, eps)
    if swap:
        far = inp.minimum(far, _distance(b, c, p, eps))
    return reduced("triplet_margin", activations.relu(near - far + margin), reduction)


def _distance(x: Value, y: Value, p: float, eps: float) -> Value:
    return inp.power(inp.sum(inp.power(inp.abs(x - y + eps), p), -1), 1 / p)
