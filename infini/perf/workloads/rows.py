"""Operations along rows of 64 to 32k: softmax, normalisations, logsumexp, cross-entropy, with gradients."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.perf.workload import Program, Workload, by_shape, normal


def _made(
    kind: str,
    shape: tuple[int, int],
    program: Any,  # Any: see Workload
    torch: Any,
    *,
    wrt: tuple[int, ...] = (0,),
    extra: Any = lambda rng: (),
    is_gradient: bool,
    is_quick: bool,
) -> Workload:
    return Workload(
        name=f"{kind}/{by_shape(shape)}" + ("/grad" if is_gradient else ""),
        family="rows",
        arguments=lambda rng: (normal(rng, *shape), *extra(rng)),
        program=program,
        torch=torch,
        gradient=wrt if is_gradient else (),
        is_quick=is_quick,
    )


def softmax(shape: tuple[int, int], *, is_gradient: bool, is_quick: bool = False) -> Workload:
    """Along rows."""
    return _made(
        "softmax",
        shape,
        lambda ns: lambda x: ns.nn.softmax(x, axis=-1),
        lambda torch: lambda x: torch.softmax(x, -1),
        is_gradient=is_gradient,
        is_quick=is_quick,
    )


def logsumexp(shape: tuple[int, int], *, is_gradient: bool, is_quick: bool = False) -> Workload:
    """Along rows."""
    return _made(
        "logsumexp",
        shape,
        lambda ns: lambda x: ns.nn.logsumexp(x, axis=-1),
        lambda torch: lambda x: torch.logsumexp(x, -1),
        is_gradient=is_gradient,
        is_quick=is_quick,
    )


def layer_norm(shape: tuple[int, int], *, is_gradient: bool, is_quick: bool = False) -> Workload:
    """With weight and bias, whose gradients are sums over rows."""

    def program(ns: Any) -> Program:  # Any: Namespace
        def run(x: Any, weight: Any, bias: Any) -> Any:
            mean = ns.numpy.mean(x, axis=-1, keepdims=True)
            centered = x - mean
            variance = ns.numpy.mean(ns.numpy.square(centered), axis=-1, keepdims=True)
            return centered * ns.lax.rsqrt(variance + 1e-5) * weight + bias

        return run

    return _made(
        "layer_norm",
        shape,
        program,
        lambda torch: lambda x, w, b: torch.nn.functional.layer_norm(x, (shape[1],), w, b, 1e-5),
        wrt=(0, 1, 2),
        extra=lambda rng: (1 + normal(rng, shape[1], scale=0.1), normal(rng, shape[1])),
        is_gradient=is_gradient,
        is_quick=is_quick,
    )


def rms_norm(shape: tuple[int, int], *, is_gradient: bool, is_quick: bool = False) -> Workload:
    """With weight."""

    def program(ns: Any) -> Program:  # Any: Namespace
        def run(x: Any, weight: Any) -> Any:
            scale = ns.lax.rsqrt(ns.numpy.mean(ns.numpy.square(x), axis=-1, keepdims=True) + 1e-6)
            return x * scale * weight

        return run

    return _made(
        "rms_norm",
        shape,
        program,
        lambda torch: lambda x, w: torch.nn.functional.rms_norm(x, (shape[1],), w, 1e-6),
        wrt=(0, 1),
        extra=lambda rng: (1 + normal(rng, shape[1], scale=0.1),),
        is_gradient=is_gradient,
        is_quick=is_quick,
    )


def cross_entropy(shape: tuple[int, int], *, is_gradient: bool, is_quick: bool = False) -> Workload:
    """Mean over rows of minus the log-probability of each row's label."""

    def program(ns: Any) -> Program:  # Any: Namespace
        def run(logits: Any, labels: Any) -> Any:
            chosen = ns.numpy.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
            return ns.numpy.mean(ns.nn.logsumexp(logits, axis=-1) - chosen)

        return run

    return _made(
        "cross_entropy",
        shape,
        program,
        lambda torch: torch.nn.functional.cross_entropy,
        extra=lambda rng: (rng.integers(0, shape[1], shape[0], dtype=np.int32),),
        is_gradient=is_gradient,
        is_quick=is_quick,
    )


_SHAPES: Final = ((65536, 64), (16384, 256), (4096, 1024), (1000, 777), (1024, 4096), (128, 32768))
_QUICK: Final = ((65536, 64), (4096, 1024), (128, 32768))
_CLASSES: Final = ((4096, 1000), (512, 32768))

WORKLOADS: Final = (
    *(
        kind(shape, is_gradient=is_gradient, is_quick=shape in _QUICK)
        for kind in (softmax, layer_norm, rms_norm, logsumexp)
        for is_gradient in (False, True)
        for shape in _SHAPES
    ),
    *(
        cross_entropy(shape, is_gradient=is_gradient, is_quick=True)
        for is_gradient in (False, True)
        for shape in _CLASSES
    ),
)
TINY: Final = tuple(
    kind((6, 10), is_gradient=is_gradient)
    for kind in (softmax, layer_norm, rms_norm, logsumexp, cross_entropy)
    for is_gradient in (False, True)
)
