"""Models over two devices: weights go straight to their parts, and logits are those of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import config
from infini.llm import checkpoints, models
from infini.parallel import recipes
from infini.quantization import QuantizedArray
from tests.llm.checkpoints.folders import CONFIG, tensors_of, write

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {
        "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
        "v_head_dim": 32, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def step(params: Any, cache: Any, batch: models.Batch, config: models.Config) -> Any:
    hidden, cache = models.forward(params, cache, batch, config)
    return models.logits(params, hidden[batch.last], config), cache


def logits(found: checkpoints.Checkpoint, cache: Any) -> np.ndarray:
    batch = models.make_batch([models.Rows([3, 1, 4, 1, 5], 0, [1])], block_size=16, num_blocks=2)
    return np.asarray(inf.jit(step, static_argnames="config")(found.params, cache, batch, found.config)[0])


@pytest.mark.parametrize("kind, scheme", [
    ("llama", None), ("llama", "q8_0"), ("mixtral", None), ("deepseek_v3", None),
])  # fmt: skip
def test_two_devices_give_the_logits_of_one(tmp_path: Path, kind: str, scheme: str | None) -> None:
    settings = CONFIG | {"model_type": kind} | KINDS[kind]
    folder = write(tmp_path, settings, tensors_of(settings))
    one = checkpoints.load(folder, quantization=scheme)
    expected = logits(one, models.init_cache(one.config, 2, 16))
    with config(cpu_devices=2):
        mesh = inf.make_mesh((2,), ("tp",))
        rules = checkpoints.by_recipe(recipes.tensor(), mesh)
        two = checkpoints.load(folder, quantization=scheme, sharding=rules)
        heads = inf.NamedSharding(mesh, inf.P(None, "tp") if kind != "deepseek_v3" else inf.P())
        cache = inf.tree.map(lambda x: inf.device_put(x, heads), models.init_cache(two.config, 2, 16))
        np.testing.assert_allclose(logits(two, cache), expected, atol=1e-6)
        weight = two.params["layers"][0]["self_attn"]["o_proj"]
        part = weight.blocks if isinstance(weight, QuantizedArray) else weight
        assert part.addressable_shards[0].data.nbytes == part.nbytes // 2


def test_groups_that_cannot_be_split_evenly_stay_whole(tmp_path: Path) -> None:
    settings = CONFIG | {"intermediate_size": 96}  # three groups of 32
    with config(cpu_devices=2):
        mesh = inf.make_mesh((2,), ("tp",))
        rules = checkpoints.by_recipe(recipes.tensor(), mesh)
        folder = write(tmp_path, settings, tensors_of(settings))
        mlp = checkpoints.load(folder, quantization="q8_0", sharding=rules).params["layers"][0]["mlp"]
        assert mlp["down_proj"].blocks.sharding.spec == inf.P(None, None, None)
        assert mlp["up_proj"].blocks.sharding.spec[0] == "tp"
