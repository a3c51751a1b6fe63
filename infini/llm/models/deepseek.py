"""DeepSeek V2 and V3: attention over a compressed cache, and experts in groups beside one that is shared.

A token leaves one vector in the cache, from which every head would make its keys and values. The matrices
that make them are multiplied with the query and with the result instead (they are absorbed), so a step reads
the compressed cache once for all heads, as attention with a single key head.

References: DeepSeek-V2 (arXiv:2405.04434), DeepSeek-V3 (arXiv:2412.19437).
"""

from __future__ import annotations

import re
from typing import Final

import infini.numpy as inp
from infini import Array
from infini.core import errors
from infini.llm.models import blocks, cache as cache_, layers, llama, rope, weights
from infini.llm.models.config import Config, Experts, Latent
from infini.llm.models.family import Entry, Family, Json, Params
from infini.llm.models.weights import Weight
from infini.train import rotary

_V2: Final = {
    "num_experts_per_tok": 6,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "topk_method": "greedy",
}
_V3: Final = {
    **_V2,
    "num_experts_per_tok": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "max_position_embeddings": 4096,
}


def _v2(data: Json) -> Config:
    return _config(data, _V2)


def _v3(data: Json) -> Config:
    return _config(data, _V3)


def _config(data: Json, defaults: Json) -> Config:
    query_rank = data.get("q_lora_rank", 1536)  # null stands for queries that are made directly
    data = llama.stated(data, defaults)
    latent = Latent(
        query_rank=query_rank,
        rank=llama.size(data, "kv_lora_rank"),
        plain_dim=llama.size(data, "qk_nope_head_dim"),
        rope_dim=llama.size(data, "qk_rope_head_dim"),
        value_dim=llama.size(data, "v_head_dim"),
    )
    return llama.config(
        {**data, "num_key_value_heads": None, "head_dim": latent.plain_dim + latent.rope_dim},
        rope=rope.read(data, latent.rope_dim, is_interleaved=bool(data.get("rope_interleave", True))),
        attention_scale=_scale(data, latent.plain_dim + latent.rope_dim),
        latent=latent,
        experts=_experts(data) if llama.size(data, "n_routed_experts") else None,
    )


def _scale(data: Json, width: int) -> float:
    """What scores are multiplied by: YaRN's sharpening counts twice, once for queries and once for keys."""
    stated = {**(data.get("rope_scaling") or {}), **(data.get("rope_parameters") or {})}
    kind = stated.get("rope_type") or stated.get("type") or "default"
    share = stated.get("mscale_all_dim") or 0.0
    if kind == "default" or not share:
        return width**-0.5
    return width**-0.5 * rotary.yarn_attention_factor(float(stated["factor"]), float(share)) ** 2


def _experts(data: Json) -> Experts:
    method, width = data["topk_method"], llama.size(data, "moe_intermediate_size")
    first, every = data["first_k_dense_replace"], llama.size(data, "moe_layer_freq")
    if method not in ("greedy", "group_limited_greedy", "noaux_tc"):
        raise errors.ValueMismatchError(
            "this way to choose experts is not supported",
            got=f"topk_method = {method!r} in config.json",
            expected="'greedy', 'group_limited_greedy' or 'noaux_tc'",
        )
    is_corrected = method == "noaux_tc"
    return Experts(
        count=llama.size(data, "n_routed_experts"),
        per_token=llama.size(data, "num_experts_per_tok"),
        width=width,
        shared_width=width * int(data.get("n_shared_experts") or 0),
        layers=tuple(
            number
            for number in range(llama.size(data, "num_hidden_layers"))
            if number >= first and number % every == 0
        ),
        scoring="sigmoid" if is_corrected else "softmax",
        has_correction=is_corrected,
        num_groups=1 if method == "greedy" else llama.size(data, "n_group"),
        groups_per_token=1 if method == "greedy" else llama.size(data, "topk_group"),
        group_score="best two" if is_corrected else "best",
        is_normalized=bool(data.get("norm_topk_prob", False)) and is_corrected,
        scale=float(data.get("routed_scaling_factor", 1.0)),
    )


def _block(
    layer: Params, entry: Entry, x: Array, step: blocks.Step, number: int, config: Config
) -> tuple[Array, Entry]:
    mixed, entry = _attention(
        layer["self_attn"], entry, layers.norm(x, layer, "attention_norm", config), step, number, config
    )
    return blocks.feed_forward(layer, x + mixed, number, config), entry


def _attention(
    weights: Params, entry: Entry, x: Array, step: blocks.Step, number: int, config: Config
) -> tuple[Array, Entry]:
    latent, num_tokens = config.latent, x.shape[0]
    assert latent is not None and config.rope is not None and step.rotation is not None
    if latent.query_rank is None:
        query = layers.linear(x, weights, "q_proj", config)
    else:
        query = layers.norm(layers.linear(x, weights, "q_a_proj", config), weights, "q_a_norm", config)
        query = layers.linear(query, weights, "q_b_proj", config)
    query = query.reshape(num_tokens, config.num_heads, latent.plain_dim + latent.rope_dim)
    token = layers.linear(x, weights, "kv_a_proj", config)
    vector = layers.norm(token[:, : latent.rank], weights, "kv_a_norm", config)
    turned = rope.rotate(token[:, None, latent.rank :], step.rotation, config.rope)  # (T, 1, rope_dim)
    entry = cache_.write(entry, step.batch.slots, key=inp.concatenate([vector[:, None], turned], axis=-1))
    plain = inp.einsum("thi,hio->tho", query[..., : latent.plain_dim], weights["k_up"])
    turned = rope.rotate(query[..., latent.plain_dim :], step.rotation, config.rope)
    mixed = blocks.attend(
        inp.concatenate([plain, turned], axis=-1), entry, step.batch, number, config, value_width=latent.rank
    )
    values = inp.einsum("thi,hoi->tho", mixed, weights["v_up"]).reshape(num_tokens, -1)
    return layers.linear(values, weights, "o_proj", config), entry


def _table(model: Config) -> list[Weight]:
    found = llama.ends(model)
    for number in range(model.num_layers):
        path, name = ("layers", number, "mlp"), f"model.layers.{number}.mlp"
        found += llama.norms(model, number)
        found += _attention_table(model, number)
        if model.experts is None or not model.has_experts(number):
            found += llama.feed_forward(path, name, model, model.intermediate_size)
            continue
        found += llama.router(path, f"{name}.gate", model)
        if model.experts.has_correction:
            found.append(
                Weight(
                    (*path, "correction"), (f"{name}.gate.e_score_correction_bias",), (model.experts.count,)
                )
            )
        found += llama.experts(path, name, model)
        if model.experts.shared_width:
            found += llama.feed_forward(
                (*path, "shared_experts"), f"{name}.shared_experts", model, model.experts.shared_width
            )
    return found


def _attention_table(model: Config, number: int) -> list[Weight]:
    latent, heads, width = model.latent, model.num_heads, model.hidden_size
    assert latent is not None
    path, name = ("layers", number, "self_attn"), f"model.layers.{number}.self_attn"
    queries, bias = heads * (latent.plain_dim + latent.rope_dim), model.qkv_bias
    if latent.query_rank is None:
        found = weights.linear((*path, "q_proj"), f"{name}.q_proj", queries, width)
    else:
        rank = latent.query_rank
        found = weights.linear((*path, "q_a_proj"), f"{name}.q_a_proj", rank, width, has_bias=bias)
        found += weights.norm((*path, "q_a_norm"), f"{name}.q_a_layernorm", rank)
        found += weights.linear((*path, "q_b_proj"), f"{name}.q_b_proj", queries, rank)
    found += weights.linear(
        (*path, "kv_a_proj"),
        f"{name}.kv_a_proj_with_mqa",
        latent.rank + latent.rope_dim,
        width,
        has_bias=bias,
    )
    found += weights.norm((*path, "kv_a_norm"), f"{name}.kv_a_layernorm", latent.rank)
    rows = latent.plain_dim + latent.value_dim
    for key, start, size in (("k_up", 0, latent.plain_dim), ("v_up", latent.plain_dim, latent.value_dim)):
        found.append(
            Weight(
                (*path, key),
                (f"{name}.kv_b_proj.weight",),
                (heads, size, latent.rank),
                stored_shape=(heads * rows, latent.rank),
                part=(start, start + size),
                heads=heads,
            )
        )
    return found + weights.linear(
        (*path, "o_proj"), f"{name}.o_proj", width, heads * latent.value_dim, has_bias=model.output_bias
    )


def _stored_name(name: str, model: Config) -> str | None:
    """Blocks behind the last predict further tokens, which nothing here does."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return None if found and int(found[1]) >= model.num_layers else name


V2 = Family(
    names=("deepseek_v2",),
    architectures=("DeepseekV2ForCausalLM",),
    config=_v2,
    weights=_table,
    block=_block,
    stored_name=_stored_name,
)
V3 = Family(
    names=("deepseek_v3",),
    architectures=("DeepseekV3ForCausalLM",),
    config=_v3,
    weights=_table,
    block=_block,
    stored_name=_stored_name,
)
