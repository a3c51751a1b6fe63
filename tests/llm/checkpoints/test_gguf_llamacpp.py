"""Logits of our files by llama.cpp, which `record_llamacpp` recorded, and by our engine."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import infini as inf
from infini.llm import checkpoints, models
from tests.llm.checkpoints import record_llamacpp

# llama.cpp looks GELU up in a table of 16-bit floats.
FLOAT32 = {"gemma2 F32": 5e-3, "gpt2 F32": 1e-3}
# It rounds activations to what matrices are stored in, or to 8 bits where these are quantised: largest and
# mean difference of logits of about 5.
ROUNDED = {
    "F16": (0.04, 0.006),
    "Q8_0": (0.3, 0.06),
    "Q4_0": (0.3, 0.06),
    "Q4_1": (0.3, 0.06),
    "Q5_1": (0.3, 0.06),
}


@pytest.fixture(scope="module")
def recorded():
    with np.load(record_llamacpp.RECORDED) as data:
        return dict(data)


@functools.cache
def _step():
    def step(params, cache, batch, config):
        hidden, _ = models.forward(params, cache, batch, config)
        return models.logits(params, hidden[batch.last], config)

    return inf.jit(step, static_argnames="config")


@pytest.mark.parametrize("case", record_llamacpp.CASES)
def test_logits_are_those_of_llama_cpp(case, recorded, tmp_path):
    path = record_llamacpp.write(case, tmp_path / "model.gguf")
    np.testing.assert_array_equal(record_llamacpp.checksum(path), recorded[f"{case}: file"])
    found = checkpoints.load(path, dtype="auto" if "F16" in case else "float32")
    tokens = record_llamacpp.TOKENS
    batch = models.make_batch(
        [models.Rows(tokens, 0, [0])], block_size=len(tokens), num_blocks=1, is_every_token=True
    )
    cache = models.init_cache(found.config, 1, len(tokens), "float32")
    logits = np.asarray(_step()(found.params, cache, batch, config=found.config))
    rest = np.abs(logits - recorded[case])
    largest, mean = ROUNDED.get(case.rpartition(" ")[2], (FLOAT32.get(case, 2e-4), np.inf))
    assert rest.max() < largest
    assert rest.mean() < mean
