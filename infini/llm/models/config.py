"""What a model is, as one hashable value: a static argument of its programs.

A family's file makes it from a config.json; the decoder reads nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from infini.llm.models.rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, slots=True)
class Experts:
    """Feed-forward layers of a block among which a router chooses.

    Args:
        count: how many there are.
        per_token: how many compute a token.
        width: width of one.
        shared_width: width of the one that computes every token beside them; 0 for none.
        layers: numbers of the blocks that have experts.
        scoring: what makes scores of the router's products.
        has_correction: whether a bias is added to the scores that choose, and not to those that weigh.
        num_groups: groups into which experts are divided; 1 for no groups.
        groups_per_token: how many groups a token's experts may come from.
        group_score: what a group counts: its best expert, or the sum of its best two.
        is_normalized: whether the weights of a token's experts sum to 1.
        scale: what these weights are multiplied by.
        num_places: devices of which each has a part of the experts whole; 1 where experts are not divided so.
    """

    count: int
    per_token: int
    width: int
    shared_width: int = 0
    layers: tuple[int, ...] = ()
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    has_correction: bool = False
    num_groups: int = 1
    groups_per_token: int = 1
    group_score: Literal["best", "best two"] = "best"
    is_normalized: bool = True
    scale: float = 1.0
    num_places: int = 1


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention over a compressed cache (MLA): one vector per token from which every head makes its keys and
    values.

    Args:
        query_rank: width through which queries are made; None for directly.
        rank: width of the vector of a token.
        plain_dim: width of the part of a head's query that is not rotated.
        rope_dim: width of the part that is.
        value_dim: width of a head's values.
    """

    query_rank: int | None
    rank: int
    plain_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes and kinds of a model.

    Args:
        family: name of the family that made it; see `infini.llm.models.registry`.
        vocab_size: number of token ids.
        hidden_size: model width M.
        intermediate_size: width of the feed-forward layer.
        num_layers: number of blocks.
        num_heads: query heads H.
        num_kv_heads: key-value heads K, a divisor of H.
        head_dim: head width D.
        max_length: longest sequence the model was made for.
        served_length: longest sequence it is used for, by which long rotary embeddings are chosen; None for
            `max_length`.
        norm: root mean square or mean and deviation.
        norm_epsilon: added to the mean square.
        is_norm_offset: whether norms multiply by 1 + weight.
        has_output_norms: whether what attention and the feed-forward layer give is normalised, too.
        activation: of the feed-forward layer.
        is_gated: whether the feed-forward layer has a gate beside its product.
        rope: rotary embeddings; None where positions are learned.
        windows: for each block how many of the last tokens, its own included, a token looks at; None for all.
            Empty where no block has a window.
        attention_scale: what scores are multiplied by; None for 1 / sqrt(D).
        attention_cap: scores become cap * tanh(score / cap).
        logits_cap: the same for logits.
        embedding_scale: what embeddings are multiplied by.
        residual_scale: what each layer's result is multiplied by before it is added.
        logits_scale: what logits are multiplied by.
        qk_norm: whether every query and key is normalised.
        qkv_bias: whether the projections to queries, keys and values have biases.
        output_bias: whether the projection after attention has one.
        mlp_bias: whether the projections of the feed-forward layer have biases.
        head_bias: whether the projection to logits has one.
        tie_embeddings: whether the projection to logits is the embedding table.
        experts: the mixture of experts, where there is one.
        latent: attention over a compressed cache, where it is such.
        quantized_activations: how products with matrices in few bits take their other operand: as it is, or
            rounded to bytes with a scale for every 32 of them, which is several times faster.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    served_length: int | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-6
    is_norm_offset: bool = False
    has_output_norms: bool = False
    activation: Activation = "silu"
    is_gated: bool = True
    rope: Rope | None = None
    windows: tuple[int | None, ...] = ()
    attention_scale: float | None = None
    attention_cap: float | None = None
    logits_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tie_embeddings: bool = False
    experts: Experts | None = None
    latent: Latent | None = None
    quantized_activations: Literal["exact", "int8"] = "int8"

    def window_of(self, layer: int) -> int | None:
        """How many of the last tokens a token looks at in a block; None for all."""
        return self.windows[layer] if self.windows else None

    def has_experts(self, layer: int) -> bool:
        """Whether a block has experts."""
        return self.experts is not None and layer in self.experts.layers

    def served(self, length: int) -> Config:
        """The same model for sequences up to `length`: an engine says so once, before it compiles programs.

        Only `dynamic` and `longrope` rotary embeddings look at it. All sequences, short ones too, are then
        computed with the embeddings for that length, so that keys in a cache go together whatever their
        sequence grows to.
        """
        return replace(self, served_length=length)
