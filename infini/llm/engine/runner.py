"""The programs of an engine and the cache they update: a step goes in as a decision of the scheduler, tokens
come out.

Two programs make a step. The first computes hidden states and logits and writes the cache in place; there is
one for each number of tokens in `Buckets`. The second chooses tokens from the logits; there is one for each
number of rows and each of a few sets of features. Weights are captured by the programs, so a call passes no
more than the cache and the arrays of the step.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import infini as inf
from infini import Array, lax
from infini.core import tree
from infini.llm import models
from infini.llm.engine.batches import BatchBuilder, Prepared
from infini.llm.engine.buckets import Buckets
from infini.llm.engine.requests import Request
from infini.llm.engine.scheduler import Scheduled
from infini.llm.engine.sharing import Call, Channel
from infini.llm.models import placement
from infini.llm.sampling import kernels, speculative, state as state_
from infini.llm.sampling.kernels import Sampled
from infini.sharding import Mesh, NamedSharding, P

Progress = Callable[[str, int, int], None]
# Chooses the tokens of a step from its logits, instead of drawing them.
Choose = Callable[[Array, state_.State, state_.Features], Sampled]
# Rows of a prompt whose logprobs are computed at a time.
_PROMPT_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What a step gave, as NumPy arrays; see `Prepared.wanted` for whose rows are whose.

    Args:
        sampled: tokens of the rows of logits and what is told about them; None without any.
        hidden: hidden states of all tokens, for `ModelRunner.describe_prompt`; None unless asked for.
    """

    sampled: Sampled | None
    hidden: np.ndarray | None


class ModelRunner:
    """Programs, cache and the host's arrays of one model.

    Args:
        params: its weights.
        config: its sizes.
        buckets: sizes of steps.
        num_blocks: blocks of the cache.
        block_size: tokens of each.
        cache_dtype: of the cache.
        mesh: devices that share the model; None for one.
        channel: the line to the other processes that do; None without others.
    """

    def __init__(
        self,
        params: Any,  # Any: a pytree of arrays
        config: models.Config,
        *,
        buckets: Buckets,
        num_blocks: int,
        block_size: int,
        cache_dtype: Any,  # Any: a dtype
        mesh: Mesh | None = None,
        channel: Channel | None = None,
    ) -> None:
        self._mesh, self._channel = mesh, channel
        self.config = config
        self.num_blocks, self.block_size, self.cache_dtype = num_blocks, block_size, cache_dtype
        self.use(buckets)
        self.prepare_s = self.run_s = 0.0
        self._cache: Any = None  # Any: a pytree
        self._reset_cache()

        def forward(cache: Any, batch: models.Batch) -> tuple[Array, Array, Any]:  # Any: a pytree
            hidden, cache = models.forward(params, cache, batch, config)
            logits = models.logits(params, hidden[batch.last], config)
            return self._everywhere(logits), self._everywhere(hidden), cache

        def describe(hidden: Array, tokens: Array, num_top: int) -> Sampled:
            logits = self._everywhere(models.logits(params, hidden, config))
            return kernels.describe(logits, tokens, num_top)

        self.forward = inf.jit(forward, donate_argnums=0, donation="require")
        self.sample = kernels.sample_step
        self._describe = functools.partial(inf.jit, static_argnames="num_top")(describe)
        self.advance = self._led("advance", self._advance)
        self.describe = self._led("describe", self._describe)
        self.reset_cache = self._led("reset_cache", self._reset_cache)
        if channel is not None:
            weakref.finalize(self, channel.close)  # at the end of the process at the latest

    def use(self, buckets: Buckets) -> None:
        """Take other sizes; nothing may run."""
        self.buckets = buckets
        self.builder = BatchBuilder(buckets, self.num_blocks, self.block_size)

    def _led(self, name: str, program: Call) -> Call:
        """A program that other processes run too when this one, process 0, does."""
        return program if self._channel is None else self._channel.announced(name, program)

    def _advance(self, *arrays: np.ndarray) -> tuple[Array, Array]:
        """Run the model on a batch: logits of the rows wanted, and hidden states of all tokens.

        Args:
            arrays: the leaves of a `Batch`.
        """
        logits, hidden, self._cache = self.forward(self._cache, models.Batch(*arrays))
        return _local(logits), _local(hidden)

    def follow(self) -> None:
        """In a process other than 0: compute what process 0 computes, until it closes the engine."""
        assert self._channel is not None, "only processes of a job follow another"
        programs = {"advance": self._advance, "describe": self._describe, "reset_cache": self._reset_cache}
        self._channel.follow(programs)

    def close(self) -> None:
        """Let the other processes go, where there are any."""
        if self._channel is not None:
            self._channel.close()

    def _reset_cache(self) -> None:
        """An empty cache; whatever blocks held is gone."""
        self._cache = None  # both at once might not fit

        def make() -> Any:  # Any: a pytree
            return models.init_cache(self.config, self.num_blocks, self.block_size, self.cache_dtype)

        if self._mesh is None:
            self._cache = make()
            return
        place = placement.cache(self.config, self._mesh)
        shardings = [{name: place(name) for name in entry} for entry in inf.eval_shape(make)]
        self._cache = inf.jit(make, out_shardings=shardings)()

    def _everywhere(self, x: Array) -> Array:
        """An array that every device has whole, for process 0 to sample from."""
        if self._mesh is None:
            return x
        return lax.with_sharding_constraint(x, NamedSharding(self._mesh, P()))

    @property
    def cache_nbytes(self) -> int:
        """Bytes of the cache."""
        return sum(leaf.nbytes for leaf in tree.leaves(self._cache))

    def warm_up(self, on_progress: Progress | None = None, *, vocab_size: int | None = None) -> None:
        """Compile every program that a step may need, by running each once on nothing but padding.

        Args:
            on_progress: called with what is compiled, the number of programs done and of all.
            vocab_size: tokens that requests may name; the model's when absent.
        """
        vocab_size = vocab_size or self.config.vocab_size
        sampling = [
            (size, features, state)
            for size in self.buckets.wanted
            for features, state in state_.programs(size, vocab_size)
        ]
        total, done = len(self.buckets.tokens) + len(sampling) + 1, 0

        def report(what: str) -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(what, done, total)

        logits: dict[int, Array] = {}
        hidden = None
        for size in self.buckets.tokens:
            found, hidden = self.advance(*tree.leaves(self.builder.empty(size)))
            logits[found.shape[0]] = found
            report(f"{size} tokens")
        for size, features, state in sampling:
            np.asarray(self.sample(logits[size], state, features=features).tokens)
            report(f"sampling of {size}")
        assert hidden is not None
        rows = np.zeros((_PROMPT_ROWS, hidden.shape[1]), hidden.dtype)
        self.describe(rows, np.zeros(_PROMPT_ROWS, np.int32), num_top=state_.NUM_LOGPROBS[-1])
        report("logprobs of prompts")

    def prepare(self, scheduled: Sequence[Scheduled]) -> Prepared:
        """Arrays of a step."""
        start = time.perf_counter()
        prepared = self.builder.build(scheduled)
        self.prepare_s += time.perf_counter() - start
        return prepared

    def run(
        self,
        prepared: Prepared,
        rows: Sequence[state_.Row],
        *,
        drafts: Sequence[Sequence[int]] | None = None,
        wants_hidden: bool = False,
        choose: Choose | None = None,
    ) -> StepTokens:
        """Compute a step.

        Args:
            prepared: its arrays.
            rows: records of sampling of the requests that make a token, in order.
            drafts: for each of them what is proposed; None without any.
            wants_hidden: whether hidden states are needed on the host.
            choose: (logits, state, features) -> tokens; None for drawing them.
        """
        start = time.perf_counter()
        state = preset = sampled = None
        if rows:
            presets = state_.PRESETS if choose is None else speculative.PRESETS
            preset = state_.preset_of(state_.features_of(rows), presets)
            size = self.buckets.num_wanted(prepared.batch.tokens.shape[0])
            state = state_.build(rows, size, preset, drafts=drafts)
        middle = time.perf_counter()
        logits, hidden = self.advance(*tree.leaves(prepared.batch))
        if state is not None:
            assert preset is not None
            chosen = (
                self.sample(logits, state, features=preset)
                if choose is None
                else choose(logits, state, preset)
            )
            sampled = tree.map(np.asarray, chosen)
        kept = np.asarray(hidden) if wants_hidden else None
        self.prepare_s += middle - start
        self.run_s += time.perf_counter() - middle
        return StepTokens(sampled, kept)

    def can_sample(self, row: state_.Row) -> bool:
        """Whether the arrays of sampling can be made for a request."""
        try:
            state_.build([row], 1, state_.preset_of(state_.features_of([row])))
        except Exception:  # noqa: BLE001  # the question is whether there is any
            return False
        return True

    def compute(self, batch: models.Batch) -> np.ndarray:
        """Logits (L, V) of a batch, whose keys are written to the cache."""
        logits, _ = self.advance(*tree.leaves(batch))
        return np.asarray(logits)

    def describe_prompt(self, hidden: np.ndarray, tokens: Sequence[int]) -> Sampled:
        """Logprobs of tokens, given the hidden states (N, M) before each, and of the likeliest."""
        found: list[Sampled] = []
        for start in range(0, len(tokens), _PROMPT_ROWS):
            part = hidden[start : start + _PROMPT_ROWS]
            rows = np.zeros((_PROMPT_ROWS, hidden.shape[1]), hidden.dtype)
            rows[: len(part)] = part
            targets = np.zeros(_PROMPT_ROWS, np.int32)
            targets[: len(part)] = tokens[start : start + len(part)]
            sampled = self.describe(rows, targets, num_top=state_.NUM_LOGPROBS[-1])
            count = len(part)
            found.append(tree.map(lambda array, count=count: np.asarray(array)[:count], sampled))
        return tree.map(lambda *parts: np.concatenate(parts), *found)

    def forget(self, request: Request) -> None:
        """Give back what is kept of a request that has ended."""
        self.builder.forget(request)


def _local(x: Any) -> Any:  # Any: an array, which has parts
    """An array that all devices have whole, as one of this process's device."""
    return x if len(x.sharding.device_set) == 1 else x.addressable_shards[0].data
