"""Whole models: training steps of a GPT and of a CNN, an LSTM of 256 steps, a decoding step with a cache."""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from infini.perf.workload import Namespace, Program, Tree, Workload, by_shape, normal
from infini.perf.workloads import torch_gpt, torch_images
from infini.train import gpt


def config(layers: int, width: int, *, vocabulary: int = 4096, heads: int | None = None) -> gpt.Config:
    """A model with heads of 64, half as many for keys and values, and three times the width inside."""
    num_heads = heads or width // 64
    return gpt.Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_layers=layers,
        num_heads=num_heads,
        num_kv_heads=num_heads // 2,
        head_dim=width // num_heads,
    )


def gpt_step(size: gpt.Config, batch: int, length: int, *, is_quick: bool = False) -> Workload:
    """Loss, gradients, clipping and AdamW."""

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        windows = rng.integers(0, size.vocab_size, (batch, length + 1), dtype=np.int32)
        return torch_gpt.params(rng, size), windows, np.float32(1e-3)

    def program(ns: Namespace) -> tuple[Program, Program]:
        step = ns.own("train.step")
        hyper = step.Hyperparameters()

        def run(state: Any, windows: Any, learning_rate: Any) -> Any:
            state, metrics = step.step(state, windows, learning_rate, size, hyper)
            return state, metrics["loss"]

        return lambda params: step.init_state(None, size, hyper, params), run

    return Workload(
        name=f"gpt_step/l{size.num_layers}_m{size.hidden_size}_b{batch}_t{length}",
        family="models",
        arguments=arguments,
        program=program,
        torch=functools.partial(torch_gpt.train_step, config=size),
        is_step=True,
        flops=3 * torch_gpt.flops(size, batch, length),
        num_bytes=0.0,
        is_quick=is_quick,
        tolerance=1e-3,
    )


def decode(size: gpt.Config, slots: int, start: int, *, is_quick: bool = False) -> Workload:
    """One token of one sequence after `start` others, with a donated cache."""

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        shape = (1, size.num_kv_heads, slots, size.head_dim)
        cache = [{"key": normal(rng, *shape), "value": normal(rng, *shape)} for _ in range(size.num_layers)]
        tokens = rng.integers(0, size.vocab_size, (1, 1), dtype=np.int32)
        return cache, torch_gpt.params(rng, size), tokens, np.int32(start)

    def program(ns: Namespace) -> tuple[Program, Program]:
        own = ns.own("train.gpt")

        def run(cache: Any, params: Any, tokens: Any, start: Any) -> Any:
            logits, cache = own.forward_cached(params, cache, tokens, start, size)
            return cache, logits

        return lambda cache: cache, run

    weights = torch_gpt.flops(size, 1, 1) / 2
    return Workload(
        name=f"decode/l{size.num_layers}_m{size.hidden_size}_s{slots}",
        family="models",
        arguments=arguments,
        program=program,
        torch=functools.partial(torch_gpt.decode_step, config=size, start=start),
        is_step=True,
        # Every weight is read once, and the filled part of the cache.
        num_bytes=4.0 * (weights + 2 * size.num_layers * size.num_kv_heads * size.head_dim * start),
        is_quick=is_quick,
    )


def lstm(length: int, batch: int, width: int, *, is_quick: bool = False) -> Workload:
    """An LSTM by scan, forward and gradient; PyTorch has its fused one."""

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        params = {
            "input": normal(rng, 4 * width, width, scale=width**-0.5),
            "hidden": normal(rng, 4 * width, width, scale=width**-0.5),
            "bias": normal(rng, 4 * width, scale=0.1),
        }
        return normal(rng, length, batch, width), params

    def program(ns: Namespace) -> Program:
        numpy, nn = ns.numpy, ns.nn

        def run(x: Any, p: Any) -> Any:
            inputs = x @ p["input"].T + p["bias"]

            def cell(carry: Any, gates: Any) -> Any:
                hidden, memory = carry
                gates = gates + hidden @ p["hidden"].T
                i, f, g, o = numpy.split(gates, 4, axis=-1)
                memory = nn.sigmoid(f) * memory + nn.sigmoid(i) * numpy.tanh(g)
                hidden = nn.sigmoid(o) * numpy.tanh(memory)
                return (hidden, memory), hidden

            zeros = numpy.zeros((batch, width))
            _, hidden = ns.lax.scan(cell, (zeros, zeros), inputs)
            return numpy.mean(numpy.square(hidden))

        return run

    def in_torch(torch: Any) -> Program:  # Any: the module
        zeros = torch.zeros(1, batch, width)
        no_bias = torch.zeros(4 * width)

        def run(x: Any, p: Any) -> Any:
            weights = [p["input"], p["hidden"], p["bias"], no_bias]
            hidden, _, _ = torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, False, False, False)
            return hidden.square().mean()

        return run

    return Workload(
        name=f"lstm/{by_shape((length, batch, width))}/grad",
        family="models",
        arguments=arguments,
        program=program,
        torch=in_torch,
        gradient=(1,),
        flops=3 * 2.0 * length * batch * 8 * width * width,
        num_bytes=0.0,
        is_quick=is_quick,
        tolerance=1e-3,
    )


def cnn_step(batch: int, size: int, *, width: int = 32, is_quick: bool = False) -> Workload:
    """A small convolutional classifier: two convolutions with pooling, two dense layers, Adam."""
    inner, classes = (size // 4) ** 2 * 2 * width, 10

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        params = {
            "conv1": normal(rng, 3, 3, 3, width, scale=0.2),
            "conv2": normal(rng, 3, 3, width, 2 * width, scale=(9 * width) ** -0.5),
            "dense1": normal(rng, inner, 4 * width, scale=inner**-0.5),
            "dense2": normal(rng, 4 * width, classes, scale=(4 * width) ** -0.5),
        }
        labels = rng.integers(0, classes, batch, dtype=np.int32)
        return params, normal(rng, batch, size, size, 3), labels

    def program(ns: Namespace) -> tuple[Program, Program]:
        numpy, lax, nn = ns.numpy, ns.lax, ns.nn
        optim = ns.own("optim")
        optimizer = optim.adam(1e-3)

        def layer(x: Any, filters: Any) -> Any:
            y = lax.conv_general_dilated(
                x, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return lax.reduce_window(nn.relu(y), -numpy.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

        def loss(params: Any, images: Any, labels: Any) -> Any:
            x = layer(layer(images, params["conv1"]), params["conv2"])
            x = nn.relu(x.reshape(batch, inner) @ params["dense1"])
            logits = x @ params["dense2"]
            chosen = numpy.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
            return numpy.mean(nn.logsumexp(logits, axis=-1) - chosen)

        def step(state: Any, images: Any, labels: Any) -> Any:
            params, own = state
            value, gradients = ns.root.value_and_grad(loss)(params, images, labels)
            updates, own = optimizer.update(gradients, own, params)
            return (optim.apply_updates(params, updates), own), value

        return lambda params: (params, optimizer.init(params)), step

    convs = 2.0 * batch * 9 * (size**2 * 3 * width + (size // 2) ** 2 * width * 2 * width)
    return Workload(
        name=f"cnn_step/{batch}x{size}x{size}_w{width}",
        family="models",
        arguments=arguments,
        program=program,
        torch=_torch_cnn,
        is_step=True,
        flops=3 * (convs + 2.0 * batch * 4 * width * (inner + classes)),
        num_bytes=0.0,
        is_quick=is_quick,
        tolerance=1e-3,
    )


def _torch_cnn(torch: Any) -> Any:  # Any: the module
    functional = torch.nn.functional

    def loss(p: Any, x: Any, labels: Any) -> Any:
        for name in ("conv1", "conv2"):
            x = functional.max_pool2d(functional.relu(functional.conv2d(x, p[name], padding=1)), 2)
        # The dense layer takes the channels last, as the other contenders' does.
        x = functional.relu(x.permute(0, 2, 3, 1).flatten(1) @ p["dense1"])
        return functional.cross_entropy(x @ p["dense2"], labels)

    adam = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)
    return torch_images.train_step(torch, loss, adam)


WORKLOADS: Final = (
    gpt_step(config(4, 256), 4, 256, is_quick=True),
    gpt_step(config(6, 512), 4, 256),
    gpt_step(config(12, 768), 2, 256),
    decode(config(4, 256), 512, 300, is_quick=True),
    decode(config(12, 768), 1024, 600, is_quick=True),
    lstm(256, 32, 256, is_quick=True),
    cnn_step(64, 32, is_quick=True),
)
TINY: Final = (
    gpt_step(config(1, 16, vocabulary=11, heads=2), 2, 6),
    decode(config(1, 16, vocabulary=11, heads=2), 8, 5),
    lstm(4, 3, 5),
    cnn_step(2, 8, width=3),
)
