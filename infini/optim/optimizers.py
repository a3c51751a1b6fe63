"""Optimizers: chains of the transformations, with optax's names, arguments and defaults.

Each takes a learning rate that is a number, an array or a schedule; the other arguments are those of the
transformation that the optimizer is made of.
"""

from __future__ import annotations

import infini.numpy as inp
from infini import Array, tree
from infini.optim import adam as adam_, adaptive as adaptive_, factored as factored_, moments, scaling
from infini.optim.base import (
    DType,
    GradientTransformation,
    GradientTransformationExtraArgs,
    Mask,
    Params,
    Rate,
    chain,
    identity,
)
from infini.optim.masking import masked, partition

Optimizer = GradientTransformationExtraArgs


def sgd(
    learning_rate: Rate,
    momentum: float | Array | None = None,
    nesterov: bool = False,
    accumulator_dtype: DType | None = None,
) -> Optimizer:
    """Gradient descent, with momentum when one is given.

    Args:
        learning_rate: number, array or schedule.
        momentum: decay of the sum of gradients.
        nesterov: look one step ahead.
        accumulator_dtype: dtype of the sum.
    """
    first = identity() if momentum is None else moments.trace(momentum, nesterov, accumulator_dtype)
    return chain(first, scaling.scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = False,
) -> Optimizer:
    """Adam (arXiv:1412.6980); arguments as of `scale_by_adam`."""
    return chain(
        adam_.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scaling.scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = True,
) -> Optimizer:
    """Adam with Nesterov's momentum; arguments as of `scale_by_adam`."""
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


def adamw(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    mu_dtype: DType | None = None,
    weight_decay: Rate = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101).

    Args:
        learning_rate: number, array or schedule.
        b1: decay of the running mean.
        b2: decay of the running mean of squares.
        eps: added to the root, against division by zero.
        eps_root: added below the root.
        mu_dtype: dtype of the mean.
        weight_decay: share of a parameter taken away per step, times the learning rate.
        mask: which parameters decay: a pytree of bools, or a function of the parameters to one; all when
            absent.
        nesterov: look one step ahead.
    """
    return chain(
        adam_.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scaling.add_decayed_weights(weight_decay, mask),
        scaling.scale_by_learning_rate(learning_rate),
    )


def nadamw(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    mu_dtype: DType | None = None,
    weight_decay: Rate = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = True,
) -> Optimizer:
    """`adamw` with Nesterov's momentum."""
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)


def amsgrad(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    mu_dtype: DType | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Optimizer:
    """Adam with the largest mean of squares so far; arguments as of `scale_by_amsgrad`."""
    return chain(
        adam_.scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu),
        scaling.scale_by_learning_rate(learning_rate),
    )


def adamax(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
) -> Optimizer:
    """Adam by the maximum norm (arXiv:1412.6980, section 7)."""
    return chain(adam_.scale_by_adamax(b1, b2, eps), scaling.scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Mask | None = None,
) -> Optimizer:
    """`adamax` with decoupled weight decay."""
    return chain(
        adam_.scale_by_adamax(b1, b2, eps),
        scaling.add_decayed_weights(weight_decay, mask),
        scaling.scale_by_learning_rate(learning_rate),
    )


def adabelief(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-16,
    eps_root: float | Array = 1e-16,
    *,
    nesterov: bool = False,
) -> Optimizer:
    """AdaBelief (arXiv:2010.07468)."""
    return chain(
        adam_.scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov),
        scaling.scale_by_learning_rate(learning_rate),
    )


def yogi(
    learning_rate: Rate, b1: float | Array = 0.9, b2: float | Array = 0.999, eps: float | Array = 1e-3
) -> Optimizer:
    """Yogi (Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018)."""
    return chain(adam_.scale_by_yogi(b1, b2, eps), scaling.scale_by_learning_rate(learning_rate))


def radam(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> Optimizer:
    """Rectified Adam (arXiv:1908.03265)."""
    return chain(
        adam_.scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        scaling.scale_by_learning_rate(learning_rate),
    )


def adan(
    learning_rate: Rate,
    b1: float | Array = 0.98,
    b2: float | Array = 0.92,
    b3: float | Array = 0.99,
    eps: float | Array = 1e-8,
    eps_root: float | Array = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
) -> Optimizer:
    """Adan (arXiv:2208.06677)."""
    return chain(
        adam_.scale_by_adan(b1, b2, b3, eps, eps_root),
        scaling.add_decayed_weights(weight_decay, mask),
        scaling.scale_by_learning_rate(learning_rate),
    )


def lion(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.99,
    mu_dtype: DType | None = None,
    weight_decay: Rate = 1e-3,
    mask: Mask | None = None,
) -> Optimizer:
    """Lion (arXiv:2302.06675)."""
    return chain(
        adaptive_.scale_by_lion(b1, b2, mu_dtype),
        scaling.add_decayed_weights(weight_decay, mask),
        scaling.scale_by_learning_rate(learning_rate),
    )


def adagrad(learning_rate: Rate, initial_accumulator_value: float = 0.1, eps: float = 1e-7) -> Optimizer:
    """Adagrad (Duchi et al., JMLR 12, 2011)."""
    return chain(
        adaptive_.scale_by_rss(initial_accumulator_value, eps), scaling.scale_by_learning_rate(learning_rate)
    )


def rmsprop(
    learning_rate: Rate,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Optimizer:
    """RMSProp, by the variance when `centered`, with momentum when one is given.

    PyTorch's is the one with `eps_in_sqrt=False`.
    """
    by = adaptive_.scale_by_stddev if centered else adaptive_.scale_by_rms
    return chain(
        by(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scaling.scale_by_learning_rate(learning_rate),
        identity() if momentum is None else moments.trace(momentum, nesterov),
    )


def adadelta(
    learning_rate: Rate | None = None,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
) -> Optimizer:
    """Adadelta (arXiv:1212.5701)."""
    return chain(
        scaling.add_decayed_weights(weight_decay, weight_decay_mask),
        adaptive_.scale_by_adadelta(rho, eps),
        scaling.scale_by_learning_rate(learning_rate),
    )


def novograd(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """NovoGrad (arXiv:1905.11286)."""
    return chain(
        adaptive_.scale_by_novograd(b1, b2, eps, eps_root, weight_decay),
        scaling.scale_by_learning_rate(learning_rate),
    )


def lamb(
    learning_rate: Rate,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-6,
    eps_root: float | Array = 0.0,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
) -> Optimizer:
    """Adam with a trust ratio per leaf, for large batches (arXiv:1904.00962)."""
    return chain(
        adam_.scale_by_adam(b1, b2, eps, eps_root),
        scaling.add_decayed_weights(weight_decay, mask),
        scaling.scale_by_trust_ratio(),
        scaling.scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: Rate,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> Optimizer:
    """Momentum with a trust ratio per leaf, for large batches (arXiv:1708.03888)."""
    return chain(
        scaling.add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scaling.scale_by_trust_ratio(0.0, trust_coefficient, eps), trust_ratio_mask),
        scaling.scale_by_learning_rate(learning_rate),
        moments.trace(momentum, nesterov),
    )


def fromage(learning_rate: float, min_norm: float = 1e-6) -> Optimizer:
    """Fromage (arXiv:2002.03432)."""
    factor = 1 / (1 + learning_rate**2) ** 0.5
    return chain(
        scaling.scale_by_trust_ratio(min_norm),
        scaling.scale_by_learning_rate(learning_rate * factor),
        scaling.add_decayed_weights(factor - 1),
    )


def sign_sgd(learning_rate: Rate) -> Optimizer:
    """Steps by the sign of the gradient."""
    return chain(scaling.scale_by_sign(), scaling.scale_by_learning_rate(learning_rate))


def signum(learning_rate: Rate, beta: float = 0.9, accumulator_dtype: DType | None = None) -> Optimizer:
    """Steps by the sign of the running mean of gradients (arXiv:1802.04434)."""
    return chain(
        moments.ema(beta, debias=False, accumulator_dtype=accumulator_dtype),
        scaling.scale_by_sign(),
        scaling.scale_by_learning_rate(learning_rate),
    )


def noisy_sgd(learning_rate: Rate, eta: float = 0.01, gamma: float = 0.55, key: Array | int = 0) -> Optimizer:
    """Gradient descent with normal noise that decays (arXiv:1511.06807)."""
    return chain(scaling.add_noise(eta, gamma, key), scaling.scale_by_learning_rate(learning_rate))


def adafactor(
    learning_rate: Rate | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    dtype_momentum: DType = inp.float32,
    weight_decay_rate: float | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
) -> Optimizer:
    """Adafactor, whose state of a matrix is a row and a column (arXiv:1804.04235).

    Args:
        learning_rate: number, array or schedule; none when absent, which suits the scale of parameters.
        min_dim_size_to_factor: leaves whose second largest dimension is smaller are kept whole.
        decay_rate: at step t the mean of squares keeps `1 - t**-decay_rate` of itself.
        decay_offset: subtracted from t.
        multiply_by_parameter_scale: scale each leaf by the root mean square of its parameters.
        clipping_threshold: largest root mean square of a leaf of updates.
        momentum: decay of a running mean of the steps.
        dtype_momentum: its dtype.
        weight_decay_rate: share of the parameters taken away per step.
        eps: added to squares.
        factored: whether states are factored at all.
        weight_decay_mask: which parameters decay.
    """
    parts: list[GradientTransformation] = [
        factored_.scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)
    ]
    if clipping_threshold is not None:
        parts.append(scaling.clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        parts.append(scaling.scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(scaling.scale_by_param_block_rms())
    if momentum is not None:
        parts.append(moments.ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
    if weight_decay_rate is not None:
        parts.append(scaling.add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*parts, scaling.scale(-1))


def muon(
    learning_rate: Rate,
    ns_coeffs: tuple[float, float, float] = factored_.MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: Rate = 0.0,
    adam_learning_rate: Rate | None = None,
    consistent_rms: float | None = None,
) -> Optimizer:
    """Muon for matrices, `adamw` for all others.

    Args:
        learning_rate: number, array or schedule.
        ns_coeffs: coefficients of the Newton-Schulz iteration.
        ns_steps: number of iterations.
        beta: decay of the running mean.
        eps: added to norms.
        weight_decay: share of a matrix taken away per step, times the learning rate.
        weight_decay_mask: which matrices decay.
        mu_dtype: dtype of the mean.
        nesterov: look one step ahead.
        adaptive: scale the step by its inner product with the mean.
        adam_b1: decay of the mean for the others.
        adam_b2: decay of the mean of squares for the others.
        adam_eps_root: added below their root.
        adam_weight_decay: their weight decay.
        adam_learning_rate: their learning rate, that of the matrices when absent.
        consistent_rms: scale steps to this root mean square instead of by the widths.

    Source: K. Jordan et al., https://kellerjordan.github.io/posts/muon. A matrix counts as (inputs,
    outputs), as in optax; for PyTorch's layout, pass `consistent_rms`.
    """
    of_matrices = chain(
        factored_.scale_by_muon(
            ns_coeffs, ns_steps, beta, eps, mu_dtype, nesterov=nesterov, adaptive=adaptive
        ),
        factored_.scale_by_shape(consistent_rms),
        scaling.add_decayed_weights(weight_decay, weight_decay_mask),
        scaling.scale_by_learning_rate(learning_rate),
    )
    of_others = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, adam_weight_decay, nesterov=nesterov,
    )  # fmt: skip

    def labels(params: Params) -> Params:
        return tree.map(lambda p: "muon" if p.ndim == 2 else "adam", params)

    return partition({"muon": of_matrices, "adam": of_others}, labels)
