"""Mixtures of experts against transformers' Mixtral: logits, loss, gradients, with and without a capacity."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import infini as inf
from infini import random
from infini.perf import jax_twin
from infini.train import gpt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = gpt.Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_experts=4,
    experts_per_token=2,
    balance_weight=0.02,
)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 13)).astype(np.int32)
FORMS = {"dropless": None, "capacity": 2.0}  # 4 experts of which 2 are chosen: twice the share is everything


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True,
            router_aux_loss_coef=0.02, rope_theta=CONFIG.rope_theta, rms_norm_eps=CONFIG.norm_epsilon,
            initializer_range=0.3,
        )
    )  # fmt: skip
    return model.float()


def params_of(tensors: dict[str, Any]) -> gpt.Params:
    """A model's tensors as `gpt` takes them."""
    arrays = {name: x.detach().numpy() for name, x in tensors.items()}

    def layer(prefix: str) -> gpt.Params:
        gate_up = arrays[f"{prefix}.mlp.experts.gate_up_proj"]
        return {
            **{n: arrays[f"{prefix}.{n}.weight"] for n in ("input_layernorm", "post_attention_layernorm")},
            "self_attn": {
                n: arrays[f"{prefix}.self_attn.{n}.weight"] for n in ("q_proj", "k_proj", "v_proj", "o_proj")
            },
            "mlp": {
                "gate": arrays[f"{prefix}.mlp.gate.weight"],
                "experts": {
                    "gate_proj": gate_up[:, :48],
                    "up_proj": gate_up[:, 48:],
                    "down_proj": arrays[f"{prefix}.mlp.experts.down_proj"],
                },
            },
        }

    return {
        "embed_tokens": arrays["model.embed_tokens.weight"],
        "layers": [layer(f"model.layers.{i}") for i in range(2)],
        "norm": arrays["model.norm.weight"],
        "lm_head": arrays["lm_head.weight"],
    }


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_mixtrals(form: str, theirs: Any) -> None:
    config = dataclasses.replace(CONFIG, capacity_factor=FORMS[form])
    params = params_of(dict(theirs.named_parameters()))
    found = inf.jit(lambda p, t: gpt.forward(p, t, config))(params, TOKENS)
    wanted = theirs(torch.tensor(TOKENS.astype(np.int64))).logits.detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_mixtrals(form: str, theirs: Any) -> None:
    config = dataclasses.replace(CONFIG, capacity_factor=FORMS[form])
    params = params_of(dict(theirs.named_parameters()))
    value, gradients = inf.jit(inf.value_and_grad(lambda p, t: gpt.loss(p, t, config)))(params, TOKENS)
    whole = torch.tensor(TOKENS.astype(np.int64))
    theirs.zero_grad()
    said = theirs(whole[:, :-1])
    cross = torch.nn.functional.cross_entropy(said.logits.reshape(-1, 61), whole[:, 1:].reshape(-1))
    total = cross + 0.02 * transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func(
        said.router_logits, 4, 2
    )
    total.backward()
    assert float(value) == pytest.approx(float(total.detach()), rel=1e-5)
    wanted = params_of({name: p.grad for name, p in theirs.named_parameters()})
    for path, leaf in inf.tree.leaves_with_path(wanted):
        mine = dict(inf.tree.leaves_with_path(gradients))[path]
        np.testing.assert_allclose(mine, leaf, atol=1e-4 * np.abs(leaf).max(), err_msg=str(path))


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_jax(form: str) -> None:
    # Fewer places than choices: which are dropped is the same, too.
    config = dataclasses.replace(CONFIG, capacity_factor=None if form == "dropless" else 0.75)
    twin = jax_twin.load("train.gpt")
    params = inf.tree.map(np.asarray, gpt.init(random.PRNGKey(0), config))
    value, gradients = inf.jit(inf.value_and_grad(lambda p, t: gpt.loss(p, t, config)))(params, TOKENS)
    own = twin.Config(**dataclasses.asdict(config) | {"rope_scaling": twin.Config().rope_scaling})
    wanted, theirs = jax.jit(jax.value_and_grad(lambda p, t: twin.loss(p, t, own)))(params, TOKENS)
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    for mine, leaf in zip(inf.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, leaf, atol=1e-5 * np.abs(leaf).max())
