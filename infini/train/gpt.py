"""A decoder of LLaMA's family as pure functions of (params, tokens), with the names of Hugging Face's files.

Biases, norms of queries and keys, sliding windows and scaled rotary embeddings make it Mistral and Qwen, too;
experts in place of the feed-forward layer make it Mixtral and Qwen3-MoE.

The stream that every block adds to is named "residual" and what its layers read "normed", for
`shard(..., named=)` and policies of checkpoints.
Every name used is one JAX has too: with its imports changed this file runs on JAX, which is how it is
tested. Weights have the layout (out, in); rotary embeddings pair the first half of a head with its second.

Shapes: B sequences, T tokens, S slots of the cache, M model width, H query heads, K key-value heads,
G = H / K, D head width.
References: LLaMA (arXiv:2302.13971), grouped queries (arXiv:2305.13245), SwiGLU (arXiv:2002.05202), RMSNorm
(arXiv:1910.07467), sliding windows (arXiv:2310.06825), norms of queries and keys (arXiv:2505.09388).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import infini.numpy as inp
from infini import Array, checkpoint, lax, random
from infini.ad_checkpoint import checkpoint_name
from infini.train import experts, rotary

Params: TypeAlias = dict[str, Any]  # Any: arrays, and dictionaries and lists of them
Cache: TypeAlias = list[dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of the model; hashable, so it can be a static argument.

    Args:
        vocab_size: number of token ids.
        hidden_size: model width M.
        intermediate_size: width of the feed-forward layer.
        num_layers: number of blocks.
        num_heads: query heads H.
        num_kv_heads: key-value heads K, a divisor of H.
        head_dim: head width D, even.
        max_length: longest sequence the model was made for.
        rope_theta: base of the rotary frequencies.
        norm_epsilon: added to the mean square in RMSNorm.
        tie_embeddings: whether the output projection is the embedding table.
        rope_scaling: how the rotary frequencies are changed for long texts.
        qkv_bias: whether the projections to queries, keys and values have biases.
        output_bias: whether the projection after attention has one.
        mlp_bias: whether the projections of the feed-forward layer have biases.
        qk_norm: whether every query and key is normalised by RMSNorm.
        sliding_window: how many of the last tokens, its own included, a token looks at; None for all.
        full_layers: numbers of the blocks that look at all tokens although there is a window.
        num_experts: feed-forward layers of a block among which a router chooses; 0 for one without a router.
        experts_per_token: how many of them compute a token.
        is_router_normalized: whether the weights of a token's experts sum to 1.
        capacity_factor: places of an expert in a sequence, in multiples of an equal share; what finds no
            place is dropped. None for no limit.
        balance_weight: weight of the loss that keeps experts equally busy.
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_length: int = 512
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = False
    rope_scaling: rotary.Scaling = rotary.UNSCALED
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    num_experts: int = 0
    experts_per_token: int = 2
    is_router_normalized: bool = True
    capacity_factor: float | None = None
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        # What JSON makes of a configuration is taken too, so that files of measurements can be read back.
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", rotary.Scaling(**self.rope_scaling))
        object.__setattr__(self, "full_layers", tuple(self.full_layers))


def init(key: Array, config: Config) -> Params:
    """Random parameters: normal of deviation 0.02, less for projections onto the residual stream.

    Args:
        key: a key of `random.key` or `random.PRNGKey`.
        config: sizes.

    Returns:
        float32 arrays under the names of Hugging Face's LLaMA, `layers` as a list.
    """
    keys = iter(random.split(key, (7 + bool(config.num_experts)) * config.num_layers + 2))
    width, hidden = config.hidden_size, config.intermediate_size
    query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    residual = 0.02 / (2 * config.num_layers) ** 0.5

    def normal(rows: int, columns: int, deviation: float = 0.02, copies: tuple[int, ...] = ()) -> Array:
        return random.normal(next(keys), (*copies, rows, columns)) * deviation

    def layer() -> Params:
        attention = {
            "q_proj": normal(query_width, width),
            "k_proj": normal(kv_width, width),
            "v_proj": normal(kv_width, width),
            "o_proj": normal(width, query_width, residual),
        }
        copies = (config.num_experts,) if config.num_experts else ()
        mlp: Params = {
            "gate_proj": normal(hidden, width, copies=copies),
            "up_proj": normal(hidden, width, copies=copies),
            "down_proj": normal(width, hidden, residual, copies=copies),
        }
        if config.qkv_bias:
            attention |= _biases(attention, "q_proj", "k_proj", "v_proj")
        if config.output_bias:
            attention |= _biases(attention, "o_proj")
        if config.qk_norm:
            attention |= {"q_norm": inp.ones(config.head_dim), "k_norm": inp.ones(config.head_dim)}
        if config.num_experts:
            mlp = {"gate": normal(config.num_experts, width), "experts": mlp}
        elif config.mlp_bias:
            mlp |= _biases(mlp, "gate_proj", "up_proj", "down_proj")
        return {
            "input_layernorm": inp.ones(width),
            "self_attn": attention,
            "post_attention_layernorm": inp.ones(width),
            "mlp": mlp,
        }

    params = {
        "embed_tokens": normal(config.vocab_size, width),
        "layers": [layer() for _ in range(config.num_layers)],
        "norm": inp.ones(width),
    }
    if not config.tie_embeddings:
        params["lm_head"] = normal(config.vocab_size, width)
    return params


def forward(params: Params, tokens: Array, config: Config, *, is_checkpointed: bool = False) -> Array:
    """Logits for the token after each token.

    Args:
        params: as `init` makes them.
        tokens: integers of shape (B, T).
        config: sizes.
        is_checkpointed: whether the backward pass computes each block again instead of keeping what is in it.

    Returns:
        float32 of shape (B, T, vocabulary).
    """
    return _forward(params, tokens, config, is_checkpointed=is_checkpointed)[0]


def _forward(
    params: Params, tokens: Array, config: Config, *, is_checkpointed: bool
) -> tuple[Array, list[experts.Routing]]:
    """Logits, and what the routers said."""
    x, routings = blocks(params["layers"], embedded(params, tokens), config, is_checkpointed=is_checkpointed)
    return logits(params, x, config), routings


def embedded(params: Params, tokens: Array) -> Array:
    """Tokens as the first block takes them, of shape (B, T, M)."""
    return checkpoint_name(params["embed_tokens"][tokens], "residual")


def blocks(
    layers: list[Params], x: Array, config: Config, *, first: int = 0, is_checkpointed: bool = False
) -> tuple[Array, list[experts.Routing]]:
    """Some blocks of the model, one after the other.

    Args:
        layers: their parameters.
        x: what the block before gave, of shape (B, T, M).
        config: sizes.
        first: number of the first of them.
        is_checkpointed: as for `forward`.

    Returns:
        What the next block takes, and what the routers said.
    """
    length = x.shape[1]
    positions = inp.arange(length)
    rotation = _rotation(positions, length, config)
    allowed = _Allowed(positions, positions, config)  # (T, T)

    def block(
        layer: Params, x: Array, rotation: tuple[Array, Array], mask: Array
    ) -> tuple[Array, experts.Routing | None]:
        query, key, value = _project(layer, x, rotation, config)
        return _finish(layer, x, _attend(query, key, value, mask), config)

    run = checkpoint(block) if is_checkpointed else block
    routings = []
    for number, layer in enumerate(layers, first):
        x, routing = run(layer, x, rotation, allowed.of(number))
        if routing is not None:
            routings.append(routing)
    return x, routings


def logits(params: Params, x: Array, config: Config) -> Array:
    """Logits, float32 of shape (B, T, vocabulary), of what the last block gave."""
    x = checkpoint_name(_rms_norm(x, params["norm"], config), "normed")
    table = params["embed_tokens"] if config.tie_embeddings else params["lm_head"]
    return lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=inp.float32)


def loss(params: Params, windows: Array, config: Config, *, is_checkpointed: bool = False) -> Array:
    """Mean cross-entropy of each token given those before it, in nats; with experts, plus the loss that
    balances them.

    Args:
        params: as `init` makes them.
        windows: integers of shape (B, T + 1).
        config: sizes.
        is_checkpointed: as for `forward`.
    """
    scores, routings = _forward(params, windows[:, :-1], config, is_checkpointed=is_checkpointed)
    found = inp.mean(cross_entropy(scores, windows[:, 1:]))
    return found + config.balance_weight * experts.balance(routings) if routings else found


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Minus the log-probability of each target, in float32.

    Args:
        logits: floats of shape (..., vocabulary).
        targets: integers of shape (...).
    """
    logits = logits.astype(inp.float32)
    largest = lax.stop_gradient(inp.max(logits, axis=-1, keepdims=True))
    shifted = logits - largest
    normalizer = inp.log(inp.sum(inp.exp(shifted), axis=-1))
    chosen = inp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    return normalizer - chosen


def init_cache(
    config: Config, batch_size: int, num_slots: int, dtype: Any = inp.float32
) -> Cache:  # Any: a dtype
    """An empty cache of keys and values for `num_slots` tokens."""
    shape = (batch_size, config.num_kv_heads, num_slots, config.head_dim)
    return [
        {"key": inp.zeros(shape, dtype), "value": inp.zeros(shape, dtype)} for _ in range(config.num_layers)
    ]


def forward_cached(
    params: Params,
    cache: Cache,
    tokens: Array,
    start: Array | int,
    config: Config,
    *,
    num_tokens: Array | int | None = None,
) -> tuple[Array, Cache]:
    """Logits for new tokens that follow those in the cache, and the cache with the new ones in it.

    Slots beyond `start + T` are neither read nor changed, so a prompt may be padded at its end.

    Args:
        params: as `init` makes them.
        cache: as `init_cache` makes it; donate it, and it is updated in place.
        tokens: integers of shape (B, T).
        start: number of tokens before them, at most S - T.
        config: sizes.
        num_tokens: length of the text without padding, `start + T` when absent; only dynamic rotary
            embeddings ask for it.

    Returns:
        Logits, float32 of shape (B, T, vocabulary), and the cache.
    """
    positions = start + inp.arange(tokens.shape[1])
    slots = inp.arange(cache[0]["key"].shape[2])
    rotation = _rotation(positions, start + tokens.shape[1] if num_tokens is None else num_tokens, config)
    allowed = _Allowed(positions, slots, config)  # (T, S)
    x = params["embed_tokens"][tokens]  # (B, T, M)
    after = []
    for number, (layer, before) in enumerate(zip(params["layers"], cache, strict=True)):
        query, key, value = _project(layer, x, rotation, config)
        entry = {
            "key": lax.dynamic_update_slice(before["key"], key, (0, 0, start, 0)),
            "value": lax.dynamic_update_slice(before["value"], value, (0, 0, start, 0)),
        }
        after.append(entry)
        x, _ = _finish(layer, x, _attend(query, entry["key"], entry["value"], allowed.of(number)), config)
    return logits(params, x, config), after


class _Allowed:
    """Which keys a query looks at, (T, S): those up to it, in most layouts of blocks all of them."""

    def __init__(self, positions: Array, slots: Array, config: Config) -> None:
        query, key = positions[:, None], slots[None, :]
        self._config = config
        self._all = query >= key
        self._near = self._all
        if config.sliding_window is not None:
            self._near = self._all & (query - key < config.sliding_window)

    def of(self, layer: int) -> Array:
        """The mask of a block."""
        return self._all if layer in self._config.full_layers else self._near


def _biases(weights: Params, *names: str) -> Params:
    return {f"{name}_bias": inp.zeros(weights[name].shape[0]) for name in names}


def _project(
    layer: Params, x: Array, rotation: tuple[Array, Array], config: Config
) -> tuple[Array, Array, Array]:
    """Queries (B, H, T, D), keys and values (B, K, T, D) of a block."""
    weights = layer["self_attn"]
    x = checkpoint_name(_rms_norm(x, layer["input_layernorm"], config), "normed")
    query = _heads(_linear(x, weights, "q_proj"), config)
    key = _heads(_linear(x, weights, "k_proj"), config)
    value = _heads(_linear(x, weights, "v_proj"), config)
    if config.qk_norm:
        query = _rms_norm(query, weights["q_norm"], config)
        key = _rms_norm(key, weights["k_norm"], config)
    return rotary.rotate(query, rotation), rotary.rotate(key, rotation), value


def _attend(query: Array, key: Array, value: Array, allowed: Array) -> Array:
    """Softmax attention of (B, H, T, D) over (B, K, S, D) where `allowed` (T, S), as (B, T, H * D)."""
    batch, num_heads, length, head_dim = query.shape
    num_kv_heads = key.shape[1]
    grouped = query.reshape(batch, num_kv_heads, num_heads // num_kv_heads, length, head_dim)
    scores = inp.einsum("bkgtd,bksd->bkgts", grouped, key, preferred_element_type=inp.float32)
    scores = scores * head_dim**-0.5
    scores = inp.where(allowed, scores, -1e30)
    scores = inp.exp(scores - lax.stop_gradient(inp.max(scores, axis=-1, keepdims=True)))
    weights = (scores / inp.sum(scores, axis=-1, keepdims=True)).astype(value.dtype)
    mixed = inp.einsum("bkgts,bksd->btkgd", weights, value)
    return mixed.reshape(batch, length, num_heads * head_dim)


def _finish(layer: Params, x: Array, mixed: Array, config: Config) -> tuple[Array, experts.Routing | None]:
    """The rest of a block after attention: output projection, feed-forward, and their residual additions; and
    what the router said, where there is one.
    """
    x = checkpoint_name(x + _linear(mixed, layer["self_attn"], "o_proj"), "residual")
    weights = layer["mlp"]
    inner = checkpoint_name(_rms_norm(x, layer["post_attention_layernorm"], config), "normed")
    if config.num_experts:
        added, routing = _of_experts(weights, inner, config)
        return checkpoint_name(x + added, "residual"), routing
    gate = _linear(inner, weights, "gate_proj")
    hidden = gate * lax.logistic(gate) * _linear(inner, weights, "up_proj")
    return checkpoint_name(x + _linear(hidden, weights, "down_proj"), "residual"), None


def _of_experts(weights: Params, x: Array, config: Config) -> tuple[Array, experts.Routing]:
    routing = experts.route(
        weights["gate"], x, config.experts_per_token, is_normalized=config.is_router_normalized
    )
    if config.capacity_factor is None:
        return experts.dropless(weights["experts"], x, routing), routing
    places = experts.capacity(
        x.shape[1], config.num_experts, config.experts_per_token, config.capacity_factor
    )
    return experts.with_capacity(weights["experts"], x, routing, places), routing


def _linear(x: Array, weights: Params, name: str) -> Array:
    """`x` (..., in) times the weight (out, in) of that name, plus its bias where there is one."""
    product = lax.dot_general(x, weights[name], (((x.ndim - 1,), (1,)), ((), ())))
    bias = weights.get(f"{name}_bias")
    return product if bias is None else product + bias


def _rms_norm(x: Array, weight: Array, config: Config) -> Array:
    wide = x.astype(inp.float32)
    scale = lax.rsqrt(inp.mean(inp.square(wide), axis=-1, keepdims=True) + config.norm_epsilon)
    return (wide * scale).astype(x.dtype) * weight


def _heads(x: Array, config: Config) -> Array:
    """(B, T, heads * D) as (B, heads, T, D)."""
    batch, length, width = x.shape
    return inp.swapaxes(x.reshape(batch, length, width // config.head_dim, config.head_dim), 1, 2)


def _rotation(positions: Array, num_tokens: Array | int, config: Config) -> tuple[Array, Array]:
    return rotary.rotation(
        positions,
        head_dim=config.head_dim,
        theta=config.rope_theta,
        scaling=config.rope_scaling,
        max_length=config.max_length,
        num_tokens=num_tokens,
    )
