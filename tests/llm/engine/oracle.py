"""What a model says about a text when it computes it at once, without an engine: every step of a continuation
is held against it.
"""

from __future__ import annotations

import numpy as np

import infini as inf
from infini.llm import models
from infini.llm.checkpoints import Checkpoint
from infini.llm.engine.outputs import RequestOutput

TOLERANCE = 2e-4
_LENGTH = 128


class Oracle:
    """A model as a function of whole texts.

    Args:
        checkpoint: the model.
        cache_dtype: of keys and values.
    """

    def __init__(self, checkpoint: Checkpoint, cache_dtype: str = "float32") -> None:
        config, params = checkpoint.config.served(_LENGTH), checkpoint.params

        def forward(batch):
            hidden, _ = models.forward(
                params, models.init_cache(config, 1, _LENGTH, cache_dtype), batch, config
            )
            return models.logits(params, hidden, config)

        self._forward = inf.jit(forward)

    def logprobs(self, token_ids: list[int]) -> np.ndarray:
        """Logprobs (T, V) of the token after each of a text."""
        batch = models.make_batch(
            [models.Rows(token_ids, 0, [0])],
            block_size=_LENGTH, num_blocks=1, num_tokens=_LENGTH, is_every_token=True,
        )  # fmt: skip
        logits = np.asarray(self._forward(batch))[: len(token_ids)].astype(np.float64)
        largest = logits.max(axis=-1, keepdims=True)
        return logits - largest - np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))

    def check_greedy(self, output: RequestOutput, tolerance: float = TOLERANCE) -> None:
        """Every token of a greedy continuation is the likeliest, but for what the tolerance cannot tell
        apart; where logprobs were asked for they agree.
        """
        prompt = output.prompt_token_ids
        for completion in output.outputs:
            expected = self.logprobs(prompt + completion.token_ids)
            for place, token in enumerate(completion.token_ids):
                row = expected[len(prompt) + place - 1]
                assert row[token] >= row.max() - 2 * tolerance, (place, token, int(row.argmax()))
                if completion.logprobs is not None:
                    assert abs(completion.logprobs[place][token].logprob - row[token]) < tolerance
