"""The model of `infini.train.gpt` in idiomatic PyTorch: fused attention, fused AdamW, parameters by name.

It imports nothing of infini, so that a process whose memory is measured has PyTorch alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from infini.train import gpt

Tree: TypeAlias = Any  # Any: dictionaries and lists of arrays


def params(rng: np.random.Generator, config: gpt.Config) -> dict[str, Any]:
    """Parameters as `gpt.init` makes them, from NumPy's generator, so that every contender has the same."""
    width, hidden = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def weight(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)

    def layer() -> dict[str, Any]:
        return {
            "input_layernorm": np.ones(width, np.float32),
            "self_attn": {
                "q_proj": weight(query, width),
                "k_proj": weight(kv, width),
                "v_proj": weight(kv, width),
                "o_proj": weight(width, query),
            },
            "post_attention_layernorm": np.ones(width, np.float32),
            "mlp": {
                "gate_proj": weight(hidden, width),
                "up_proj": weight(hidden, width),
                "down_proj": weight(width, hidden),
            },
        }

    return {
        "embed_tokens": weight(config.vocab_size, width),
        "layers": [layer() for _ in range(config.num_layers)],
        "norm": np.ones(width, np.float32),
        "lm_head": weight(config.vocab_size, width),
    }


def flops(config: gpt.Config, batch: int, length: int) -> float:
    """Of one forward pass: products with weights, and attention over the tokens before each."""
    width, head = config.hidden_size, config.head_dim
    heads = config.num_heads + 2 * config.num_kv_heads
    layer = width * head * heads + config.num_heads * head * width + 3 * width * config.intermediate_size
    weights = config.num_layers * layer + config.vocab_size * width
    pairs = config.num_layers * config.num_heads * head * length * (length + 1)
    return 2.0 * batch * length * weights + 2.0 * batch * pairs


class Model:
    """The forward pass over a dictionary of parameters."""

    def __init__(self, torch: Any, config: gpt.Config) -> None:  # Any: the module
        self.torch, self.functional, self.config = torch, torch.nn.functional, config

    def rotation(self, start: int, length: int, device: Any) -> tuple[Any, Any]:
        """Cosines and sines (T, D) of the positions from `start` on."""
        torch, config = self.torch, self.config
        numbers = functools.partial(torch.arange, dtype=torch.float32, device=device)
        half = config.head_dim // 2
        frequencies = config.rope_theta ** (-numbers(half) / half)
        angles = numbers(start, start + length)[:, None] * frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    def project(self, layer: Tree, x: Any, rotation: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        """Queries (B, H, T, D), keys and values (B, K, T, D)."""
        functional, config, weights = self.functional, self.config, layer["self_attn"]
        x = self.norm(x, layer["input_layernorm"])

        def heads(name: str) -> Any:
            y = functional.linear(x, weights[name])
            return y.view(*y.shape[:-1], -1, config.head_dim).transpose(1, 2)

        cosines, sines = rotation

        def rotate(y: Any) -> Any:
            first, second = y.chunk(2, -1)
            return y * cosines + self.torch.cat([-second, first], -1) * sines

        return rotate(heads("q_proj")), rotate(heads("k_proj")), heads("v_proj")

    def norm(self, x: Any, weight: Any) -> Any:
        """RMSNorm."""
        return self.functional.rms_norm(x, (x.shape[-1],), weight, self.config.norm_epsilon)

    def finish(self, layer: Tree, x: Any, mixed: Any) -> Any:
        """The rest of a block after attention."""
        linear, weights = self.functional.linear, layer["mlp"]
        x = x + linear(mixed.transpose(1, 2).flatten(2), layer["self_attn"]["o_proj"])
        inner = self.norm(x, layer["post_attention_layernorm"])
        hidden = self.functional.silu(linear(inner, weights["gate_proj"])) * linear(inner, weights["up_proj"])
        return x + linear(hidden, weights["down_proj"])

    def loss(self, params: Tree, rotation: tuple[Any, Any], windows: Any) -> Any:
        """Mean cross-entropy of each token given those before it."""
        functional = self.functional
        x = functional.embedding(windows[:, :-1], params["embed_tokens"])
        for layer in params["layers"]:
            query, key, value = self.project(layer, x, rotation)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=self.config.num_kv_heads < self.config.num_heads
            )
            x = self.finish(layer, x, mixed)
        logits = functional.linear(self.norm(x, params["norm"]), params["lm_head"])
        return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    def decode(self, params: Tree, cache: Any, rotation: tuple[Any, Any], tokens: Any, start: int) -> Any:
        """Logits of one more token; its keys and values go into the cache in place."""
        functional = self.functional
        end = start + tokens.shape[1]
        x = functional.embedding(tokens, params["embed_tokens"])
        for layer, entry in zip(params["layers"], cache, strict=True):
            query, key, value = self.project(layer, x, rotation)
            entry["key"][:, :, start:end] = key
            entry["value"][:, :, start:end] = value
            mixed = functional.scaled_dot_product_attention(
                query,
                entry["key"][:, :, :end],
                entry["value"][:, :, :end],
                enable_gqa=self.config.num_kv_heads < self.config.num_heads,
            )
            x = self.finish(layer, x, mixed)
        return functional.linear(self.norm(x, params["norm"]), params["lm_head"])


def train_step(torch: Any, config: gpt.Config) -> Any:  # Any: the module
    """A function of (wrap, params, windows, learning rate) that returns one step with clipping and AdamW."""
    model = Model(torch, config)

    def made(wrap: Any, params: Tree, windows: Any, learning_rate: Any) -> Any:
        own = _map(lambda x: x.clone().requires_grad_(), params)
        leaves = list(_leaves(own))
        groups = [
            {"params": [x for x in leaves if x.ndim == 2], "weight_decay": 0.1},
            {"params": [x for x in leaves if x.ndim != 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=float(learning_rate), betas=(0.9, 0.95), eps=1e-8, fused=True
        )
        loss = wrap(model.loss)
        rotation = model.rotation(0, windows.shape[1] - 1, windows.device)

        def step() -> Any:
            optimizer.zero_grad()
            value = loss(own, rotation, windows)
            value.backward()
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            optimizer.step()
            return value.detach()

        return step

    return made


def decode_step(torch: Any, config: gpt.Config, start: int) -> Any:  # Any: the module
    """A function of (wrap, cache, params, tokens, start) that returns one step."""
    model = Model(torch, config)

    def made(wrap: Any, cache: Tree, params: Tree, tokens: Any, _start: Any) -> Any:
        cache = _map(lambda x: x.clone(), cache)
        decode = wrap(model.decode)
        rotation = model.rotation(start, 1, tokens.device)

        def step() -> Any:
            with torch.inference_mode():
                return decode(params, cache, rotation, tokens, start)

        return step

    return made


def _map(function: Any, tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {name: _map(function, part) for name, part in tree.items()}
    return [_map(function, part) for part in tree] if isinstance(tree, list) else function(tree)


def _leaves(tree: Tree) -> Any:
    if isinstance(tree, (dict, list)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)
    else:
        yield tree
