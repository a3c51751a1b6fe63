"""Losses per example; take their mean for training."""

from __future__ import annotations

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.nn import activations
from infini.numpy import indexing, reductions
from infini.numpy._promotion import ArrayLike, as_value, convert, inexact_operands


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Value:
    """Negative log probability of the labels under `softmax(logits)`, computed in float32 or wider.

    Args:
        logits: (..., V) floats.
        labels: (...) integers in [0, V).

    Returns:
        (...) losses, float32, or float64 for float64 logits.

    Raises:
        TypeMismatchError: shapes do not fit, or the labels are not integers.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn
        >>> nn.losses.cross_entropy(inp.zeros((2, 4)), inp.asarray([1, 3])).shape
        (2,)
    """
    scores, chosen = as_value("cross_entropy", logits), as_value("cross_entropy", labels)
    if scores.ndim == 0 or chosen.shape != scores.shape[:-1] or chosen.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            "cross_entropy: labels do not fit the logits",
            got=f"logits {scores.type}, labels {chosen.type}",
            expected="logits (..., V) and integer labels (...)",
        )
    wide = convert(scores, scores.dtype if scores.dtype.itemsize > 4 else dtypes.float32)
    picked = indexing.take_along_axis(wide, view.expand_dims(chosen, (chosen.ndim,)), -1, mode="clip")
    return trace.bind1(e.sub_p, activations.logsumexp(wide, axis=-1), view.reshape(picked, chosen.shape))


def mse(predictions: ArrayLike, targets: ArrayLike) -> Value:
    """Squared error averaged over the last dimension; of scalars, the squared error."""
    x, y = inexact_operands("mse", predictions, targets)
    error = trace.bind1(e.sub_p, x, y)
    squared = trace.bind1(e.mul_p, error, error)
    return reductions.mean(squared, -1) if squared.ndim else squared
