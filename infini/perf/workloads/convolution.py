"""Convolutions of two dimensions, forward and gradients, and a training step of ResNet-18.

Images are (batch, height, width, channels) and filters (height, width, in, out), the layout that is best for
JAX; PyTorch gets the same memory as tensors of its format `channels_last`, which is best for it. Kinds that
end in `_nchw` are in PyTorch's own layout on every side.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from infini.perf.workload import Namespace, Program, Tree, Workload, normal
from infini.perf.workloads import torch_images

_NHWC: Final = ("NHWC", "HWIO", "NHWC")
_NCHW: Final = ("NCHW", "OIHW", "NCHW")


def conv(  # noqa: PLR0913  # a convolution has as many sizes
    kind: str,
    batch: int,
    size: int,
    channels: int,
    features: int,
    *,
    window: int = 3,
    stride: int = 1,
    groups: int = 1,
    is_nchw: bool = False,
    is_gradient: bool,
    is_quick: bool = False,
) -> Workload:
    """One convolution with windows of odd size, padded so that a stride of 1 keeps the size."""
    padding = window // 2

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        scale = (window * window * channels / groups) ** -0.5
        if is_nchw:
            filters = normal(rng, features, channels // groups, window, window, scale=scale)
            return normal(rng, batch, channels, size, size), filters
        filters = normal(rng, window, window, channels // groups, features, scale=scale)
        return normal(rng, batch, size, size, channels), filters

    def program(ns: Namespace) -> Program:
        return lambda x, w: ns.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            ((padding, padding), (padding, padding)),
            dimension_numbers=_NCHW if is_nchw else _NHWC,
            feature_group_count=groups,
        )

    def in_torch(torch: Any) -> Program:  # Any: the module
        run = torch.nn.functional.conv2d
        options = {"stride": stride, "padding": padding, "groups": groups}
        if is_nchw:
            return lambda x, w: run(x, w, **options)

        def channels_last(x: Any, w: Any) -> Any:
            y = run(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), **options)
            return y.permute(0, 2, 3, 1)

        return channels_last

    outputs = batch * (-(-size // stride)) ** 2 * features
    shape = f"{batch}x{size}x{size}x{channels}to{features}"
    return Workload(
        name=f"{kind}{'_nchw' if is_nchw else ''}/{shape}" + ("/grad" if is_gradient else ""),
        family="convolution",
        arguments=arguments,
        program=program,
        torch=in_torch,
        gradient=(0, 1) if is_gradient else (),
        flops=2.0 * outputs * window**2 * channels / groups * (3 if is_gradient else 1),
        is_quick=is_quick,
    )


# --- ResNet-18 ----------------------------------------------------------------------------

Stages = tuple[tuple[int, int], ...]  # of each stage: times the width, and blocks
_STAGES: Final[Stages] = ((1, 2), (2, 2), (4, 2), (8, 2))


def resnet(
    batch: int,
    size: int,
    *,
    stages: Stages = _STAGES,
    width: int = 64,
    classes: int = 1000,
    is_quick: bool = False,
) -> Workload:
    """A training step of ResNet-18 with batch normalisation and momentum.

    Fewer stages make a smaller network of the same kind.
    Reference: Deep residual learning (arXiv:1512.03385).
    """

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        labels = rng.integers(0, classes, batch, dtype=np.int32)
        return _resnet_params(rng, stages, width, classes), normal(rng, batch, size, size, 3), labels

    def program(ns: Namespace) -> tuple[Program, Program]:
        optim = ns.own("optim")
        optimizer = optim.sgd(0.01, momentum=0.9)

        def loss(params: Any, images: Any, labels: Any) -> Any:
            return _cross_entropy(ns, _resnet(ns, params, images), labels)

        def step(state: Any, images: Any, labels: Any) -> Any:
            params, inner = state
            value, gradients = ns.root.value_and_grad(loss)(params, images, labels)
            updates, inner = optimizer.update(gradients, inner, params)
            return (optim.apply_updates(params, updates), inner), value

        return lambda params: (params, optimizer.init(params)), step

    return Workload(
        name=f"resnet18/{batch}x{size}x{size}_w{width}",
        family="convolution",
        arguments=arguments,
        program=program,
        torch=_torch_resnet,
        is_step=True,
        num_bytes=0.0,
        flops=3 * _resnet_flops(batch, size, stages, width, classes),
        is_quick=is_quick,
        tolerance=1e-3,
    )


def _resnet_params(rng: np.random.Generator, stages: Stages, width: int, classes: int) -> dict[str, Any]:
    def layer(window: int, channels: int, features: int) -> dict[str, np.ndarray]:
        return {
            "filters": normal(
                rng, window, window, channels, features, scale=(2 / (window * window * channels)) ** 0.5
            ),
            "scale": np.ones(features, np.float32),
            "bias": np.zeros(features, np.float32),
        }

    blocks = []
    channels = width
    for stage, num_blocks in stages:
        features = stage * width
        for number in range(num_blocks):
            block = {"conv1": layer(3, channels, features), "conv2": layer(3, features, features)}
            if number == 0 and stage > 1:
                block["shortcut"] = layer(1, channels, features)
            blocks.append(block)
            channels = features
    head = {"weight": normal(rng, channels, classes, scale=0.01), "bias": np.zeros(classes, np.float32)}
    return {"stem": layer(7, 3, width), "blocks": blocks, "head": head}


def _resnet_flops(batch: int, size: int, stages: Stages, width: int, classes: int) -> float:
    def conv_flops(extent: int, window: int, channels: int, features: int) -> float:
        return 2.0 * batch * extent**2 * window**2 * channels * features

    extent = size // 2
    total = conv_flops(extent, 7, 3, width)
    extent, channels = extent // 2, width
    for stage, num_blocks in stages:
        features = stage * width
        if stage > 1:
            extent = -(-extent // 2)
            total += conv_flops(extent, 1, channels, features)
        total += conv_flops(extent, 3, channels, features)
        total += (2 * num_blocks - 1) * conv_flops(extent, 3, features, features)
        channels = features
    return total + 2.0 * batch * channels * classes


def _resnet(ns: Namespace, params: Any, x: Any) -> Any:  # Any: pytrees and arrays of either library
    numpy, lax, relu = ns.numpy, ns.lax, ns.nn.relu

    def layer(p: Any, x: Any, stride: int = 1) -> Any:
        pad = p["filters"].shape[0] // 2
        x = lax.conv_general_dilated(
            x, p["filters"], (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=_NHWC
        )
        mean = numpy.mean(x, axis=(0, 1, 2))
        variance = numpy.mean(numpy.square(x - mean), axis=(0, 1, 2))
        return (x - mean) * (lax.rsqrt(variance + 1e-5) * p["scale"]) + p["bias"]

    x = relu(layer(params["stem"], x, 2))
    x = lax.reduce_window(
        x, -numpy.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    for block in params["blocks"]:
        stride = 2 if "shortcut" in block else 1
        shortcut = layer(block["shortcut"], x, 2) if "shortcut" in block else x
        inner = relu(layer(block["conv1"], x, stride))
        x = relu(layer(block["conv2"], inner) + shortcut)
    x = numpy.mean(x, axis=(1, 2))
    return x @ params["head"]["weight"] + params["head"]["bias"]


def _cross_entropy(ns: Namespace, logits: Any, labels: Any) -> Any:  # Any: arrays of either library
    chosen = ns.numpy.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return ns.numpy.mean(ns.nn.logsumexp(logits, axis=-1) - chosen)


def _torch_resnet(torch: Any) -> Any:  # Any: the module
    functional = torch.nn.functional

    def layer(p: Any, x: Any, stride: int = 1) -> Any:
        x = functional.conv2d(x, p["filters"], stride=stride, padding=p["filters"].shape[-1] // 2)
        return functional.batch_norm(x, None, None, p["scale"], p["bias"], training=True, eps=1e-5)

    def loss(params: Any, x: Any, labels: Any) -> Any:
        x = functional.relu(layer(params["stem"], x, 2))
        x = functional.max_pool2d(x, 3, 2, 1)
        for block in params["blocks"]:
            stride = 2 if "shortcut" in block else 1
            shortcut = layer(block["shortcut"], x, 2) if "shortcut" in block else x
            inner = functional.relu(layer(block["conv1"], x, stride))
            x = functional.relu(layer(block["conv2"], inner) + shortcut)
        x = x.mean((2, 3))
        return functional.cross_entropy(
            torch.addmm(params["head"]["bias"], x, params["head"]["weight"]), labels
        )

    sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, fused=True)
    return torch_images.train_step(torch, loss, sgd)


def _kinds(*, is_gradient: bool) -> tuple[Workload, ...]:
    return (
        conv("conv1x1", 8, 28, 128, 256, window=1, is_gradient=is_gradient, is_quick=True),
        conv("conv1x1", 32, 7, 512, 512, window=1, is_gradient=is_gradient),
        conv("conv3x3", 8, 32, 64, 64, is_gradient=is_gradient, is_quick=True),
        conv("conv3x3", 8, 14, 256, 256, is_gradient=is_gradient),
        conv("conv3x3", 4, 64, 3, 64, is_gradient=is_gradient),
        conv("conv3x3", 8, 32, 64, 64, is_nchw=True, is_gradient=is_gradient, is_quick=True),
        conv(
            "conv7x7s2", 8, 64, 3, 64, window=7, stride=2, is_gradient=is_gradient, is_quick=not is_gradient
        ),
        conv("conv3x3s2", 8, 32, 64, 128, stride=2, is_gradient=is_gradient, is_quick=True),
        conv("depthwise", 8, 32, 128, 128, groups=128, is_gradient=is_gradient, is_quick=True),
        conv("grouped", 8, 28, 128, 128, groups=8, is_gradient=is_gradient),
        conv("few_features", 4, 64, 64, 3, is_gradient=is_gradient),
        conv("conv3x3", 4, 64, 3, 64, is_nchw=True, is_gradient=is_gradient),
    )


WORKLOADS: Final = (
    *_kinds(is_gradient=False),
    *_kinds(is_gradient=True),
    # Their gradients take JAX seconds.
    conv("narrow_groups", 8, 28, 128, 128, groups=32, is_gradient=False),
    conv("multiplied", 8, 32, 32, 128, groups=32, is_gradient=False),
    resnet(8, 64, is_quick=True),
)
TINY: Final = (
    *(
        workload
        for is_gradient in (False, True)
        for workload in (
            conv("conv1x1", 2, 5, 3, 4, window=1, is_gradient=is_gradient),
            conv("conv3x3", 2, 5, 3, 4, is_gradient=is_gradient),
            conv("conv3x3", 2, 5, 3, 4, is_nchw=True, is_gradient=is_gradient),
            conv("conv7x7s2", 1, 8, 3, 4, window=7, stride=2, is_gradient=is_gradient),
            conv("conv3x3s2", 2, 6, 3, 4, stride=2, is_gradient=is_gradient),
            conv("depthwise", 2, 5, 4, 4, groups=4, is_gradient=is_gradient),
            conv("grouped", 2, 5, 4, 6, groups=2, is_gradient=is_gradient),
            conv("narrow_groups", 2, 5, 8, 8, groups=4, is_gradient=is_gradient),
            conv("multiplied", 2, 5, 4, 12, groups=4, is_gradient=is_gradient),
            conv("few_features", 2, 5, 16, 3, is_gradient=is_gradient),
        )
    ),
    resnet(2, 16, stages=((1, 1), (2, 1)), width=4, classes=5),
)
