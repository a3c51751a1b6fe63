"""A smaller model that proposes tokens ahead of the one that is served.

Its cache has as many blocks of as many tokens, so the tables of a request's blocks serve both models, and a
beginning that is found in one cache is in the other. Before a step runs, the small model computes what the
requests of the step bring (pieces of prompts, and the newest token of those that decode) and then makes its
proposals, one token of every request at a time. It draws by the settings of the request, so that
`speculative.verify` can keep the proposals with exactly the chance that leaves the distribution of the model
served as it is. For a request with a seed of its own it draws with the very random numbers of the model
served, which keeps what it would have drawn itself: its tokens are the same with and without proposals. In
deterministic mode that is so for all.

References: arXiv:2211.17192, arXiv:2302.01318.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import Array
from infini.core import tree
from infini.llm.engine.jobs import Completion
from infini.llm.engine.proposals import UNKNOWN
from infini.llm.engine.requests import Request
from infini.llm.engine.runner import Choose, ModelRunner, Progress
from infini.llm.engine.scheduler import Scheduled
from infini.llm.sampling import kernels, speculative, state as state_
from infini.llm.sampling.features import Features
from infini.llm.sampling.kernels import Sampled
from infini.llm.sampling.state import State


@dataclass(slots=True)
class _Guesser:
    """A request while tokens are proposed for it.

    Args:
        completion: the request, and its record of sampling, which is told of the proposals.
        wanted: how many there is room for.
        first_place: row of the probabilities of its first proposal.
    """

    completion: Completion
    wanted: int
    first_place: int
    guesses: list[int] = field(default_factory=list)
    is_done: bool = False

    @property
    def is_seeded(self) -> bool:
        """Whether the same tokens are to come as without proposals."""
        return _is_seeded(self.completion)

    def take(self, token: int) -> None:
        """One more proposal, unless the form of the answer does not allow it."""
        row = self.completion.row
        if not row.possible((token,)):
            self.is_done = True
            return
        row.push(token)
        self.guesses.append(token)
        is_end = token in self.completion.eos_ids or token in self.completion.stop_ids
        self.is_done = is_end or len(self.guesses) == self.wanted


class DraftModel:
    """Proposals of a smaller model, as `Proposer` asks for them.

    Args:
        runner: its programs and cache, with the blocks of the model served.
        num_speculative_tokens: K, tokens proposed at most.
        max_length: most tokens of a text that it was made for.
        is_matched: whether it draws with the numbers of the model served for all requests, not only for those
            with seeds of their own.
    """

    def __init__(
        self, runner: ModelRunner, *, num_speculative_tokens: int, max_length: int, is_matched: bool
    ) -> None:
        self.runner, self.max_length, self.is_matched = runner, max_length, is_matched
        self.num_speculative_tokens = num_speculative_tokens
        self.draw = functools.partial(
            inf.jit, static_argnames="features", donate_argnums=2, donation="require"
        )(_draw)
        self.verify = functools.partial(inf.jit, static_argnames="features")(_verify)
        num_places = runner.buckets.num_requests * num_speculative_tokens
        self._no_place = num_places
        self._probs: Array = inp.zeros((num_places, runner.config.vocab_size), inp.float32)
        self._computed: dict[Request, tuple[int, int]] = {}  # preemptions, tokens whose keys are there
        self.run_s = 0.0

    def reserve(self, completion: Completion, count: int) -> list[int]:
        """As `Proposer.reserve`: places for at most K tokens, all unknown."""
        room = self.max_length + 1 - completion.request.num_tokens
        return [UNKNOWN] * max(min(count, room, self.num_speculative_tokens), 0)

    def complete(
        self, scheduled: Sequence[Scheduled], completions: Sequence[Completion]
    ) -> tuple[list[int], Choose | None]:
        """As `Proposer.complete`: the small model runs."""
        start = time.perf_counter()
        guessers: dict[Request, _Guesser] = {}
        for item, completion in zip(scheduled, completions, strict=True):
            if item.num_spec:
                place = len(guessers) * self.num_speculative_tokens
                guessers[item.request] = _Guesser(completion, item.num_spec, place)
        logits = self._catch_up(scheduled)
        if guessers:
            assert logits is not None
            rows = [each.row for item, each in zip(scheduled, completions, strict=True) if item.makes_token]
            # One program for all places, and for what the model served will choose by.
            preset = state_.preset_of(state_.features_of(rows), speculative.PRESETS)
            self._guess(list(guessers.values()), logits, dataclasses.replace(preset, num_logprobs=None))
        counts = []
        for item in scheduled:
            guesser = guessers.get(item.request)
            counts.append(0 if guesser is None else len(guesser.guesses))
            if guesser is not None:
                item.request.spec_token_ids = list(guesser.guesses)
        self.run_s += time.perf_counter() - start
        if not guessers or self.is_matched:
            return counts, None
        return counts, functools.partial(self._choose, scheduled, completions, guessers)

    def forget(self, completion: Completion) -> None:
        """As `Proposer.forget`."""
        self._computed.pop(completion.request, None)
        self.runner.forget(completion.request)

    def reset(self) -> None:
        """As `Proposer.reset`."""
        self._computed.clear()
        self.runner.reset_cache()
        self._probs = inp.zeros(self._probs.shape, inp.float32)

    def warm_up(self, wanted: Sequence[int], on_progress: Progress | None = None) -> None:
        """Compile every program that a step may need.

        Args:
            wanted: numbers of rows of logits of the model served.
            on_progress: called with what is compiled, the number of programs done and of all.
        """
        runner, vocab_size = self.runner, self.runner.config.vocab_size
        presets = [dataclasses.replace(preset, num_logprobs=None) for preset in speculative.PRESETS]
        random = [preset for preset in speculative.PRESETS if preset.is_random and not self.is_matched]
        wanted = [size for size in wanted if size > 1]  # a proposal has a row before and one after it
        sizes, own = runner.buckets.tokens, runner.buckets.wanted
        total, done = len(sizes) + len(own) * len(presets) + len(wanted) * len(random), 0

        def report(what: str) -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(what, done, total)

        logits: dict[int, Array] = {}
        for size in sizes:
            found, _ = runner.advance(*tree.leaves(runner.builder.empty(size)))
            logits[found.shape[0]] = found
            report(f"draft model, {size} tokens")
        for size in own:
            for preset in presets:
                for features, state in state_.programs(size, vocab_size, [preset]):
                    places, is_seeded = np.full(size, self._no_place, np.int32), np.zeros(size, np.bool_)
                    self._drawn(logits[size], state, features, places, is_seeded)
                report(f"drafts of {size}")
        for size in wanted:
            rows = np.zeros((size, vocab_size), np.float32)
            for preset in random:
                for features, state in state_.programs(size, vocab_size, [preset]):
                    guesses, places, is_seeded = _no_guesses(size)
                    self.verify(rows, state, guesses, places, self._probs, is_seeded, features=features)
                report(f"verification of {size}")

    # --- a step --------------------------------------------------------------------------------------------

    def _catch_up(self, scheduled: Sequence[Scheduled]) -> Array | None:
        """Compute what is known of the requests of a step; logits follow for those that want proposals."""
        items = []
        for item in scheduled:
            request = item.request
            generation, known = self._computed.get(request, (-1, 0))
            # All proposals of the last step were kept: the key of the last of them is still missing.
            begin = min(known, item.start) if generation == request.num_preemptions else item.start
            end = min(item.start + item.num_tokens - item.num_spec, self.max_length)
            if begin < end:
                items.append(Scheduled(request, begin, end - begin, 0, item.num_spec > 0))
                self._computed[request] = request.num_preemptions, end
        return self._advance(items) if items else None

    def _advance(self, items: Sequence[Scheduled]) -> Array:
        logits: Array
        logits, _ = self.runner.advance(*tree.leaves(self.runner.prepare(items).batch))
        return logits

    def _guess(self, guessers: list[_Guesser], logits: Array, features: Features) -> None:
        """Proposals for all of them; their records are left as they were."""
        going_on = guessers
        try:
            while True:
                self._take_tokens(going_on, logits, features)
                going_on = [guesser for guesser in going_on if not guesser.is_done]
                if not going_on:
                    return
                items = []
                for guesser in going_on:
                    request = guesser.completion.request
                    request.spec_token_ids = list(guesser.guesses)
                    start = request.num_tokens + len(guesser.guesses) - 1
                    items.append(Scheduled(request, start, 1, 0, True))
                    self._computed[request] = request.num_preemptions, start + 1
                logits = self._advance(items)
        finally:
            for guesser in guessers:
                guesser.completion.row.pop(len(guesser.guesses))

    def _take_tokens(self, guessers: Sequence[_Guesser], logits: Array, features: Features) -> None:
        size = logits.shape[0]
        made = state_.build([each.completion.row for each in guessers], size, features)
        places = np.full(size, self._no_place, np.int32)
        places[: len(guessers)] = [each.first_place + len(each.guesses) for each in guessers]
        is_seeded = np.zeros(size, np.bool_)
        is_seeded[: len(guessers)] = [each.is_seeded for each in guessers]
        tokens = np.asarray(self._drawn(logits, made, features, places, is_seeded))
        for guesser, token in zip(guessers, tokens[: len(guessers)].tolist(), strict=True):
            guesser.take(token)

    def _drawn(
        self, logits: Array, made: State, features: Features, places: np.ndarray, is_seeded: np.ndarray
    ) -> Array:
        """Tokens of rows; their probabilities are kept where they will be asked for."""
        if self.is_matched or not features.is_random:
            return kernels.sample_step(logits, made, features=features).tokens
        made = speculative.draft_state(made, is_seeded)
        tokens, self._probs = self.draw(logits, made, self._probs, places, features=features)
        return tokens

    def _choose(
        self,
        scheduled: Sequence[Scheduled],
        completions: Sequence[Completion],
        guessers: dict[Request, _Guesser],
        logits: Array,
        made: State,
        features: Features,
    ) -> Sampled:
        """Tokens of the rows of a step whose proposals these are."""
        if not features.is_random:
            return kernels.sample_step(logits, made, features=features)
        guesses, places, is_seeded = _no_guesses(logits.shape[0])
        at = 0
        for item, completion in zip(scheduled, completions, strict=True):
            guesser, start = guessers.get(item.request), at
            if guesser is not None:
                at += len(guesser.guesses)
                guesses[start:at] = guesser.guesses
                places[start:at] = np.arange(guesser.first_place, guesser.first_place + at - start)
            at += item.makes_token
            is_seeded[start:at] = _is_seeded(completion)
        return self.verify(logits, made, guesses, places, self._probs, is_seeded, features=features)


def _is_seeded(completion: Completion) -> bool:
    return completion.row.params.seed is not None


def _no_guesses(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full(size, -1, np.int32), np.zeros(size, np.int32), np.zeros(size, np.bool_)


def _draw(
    logits: Array, state: State, probs: Array, places: Array, features: Features
) -> tuple[Array, Array]:
    """Tokens of rows (L, V), and the probabilities of all requests (R * K, V) with those of the rows."""
    own = kernels.probabilities(logits, state, features)
    return kernels.sample(logits, state, features).tokens, probs.at[places].set(own, mode="drop")


def _verify(
    logits: Array,
    state: State,
    guesses: Array,
    places: Array,
    probs: Array,
    is_seeded: Array,
    *,
    features: Features,
) -> Sampled:
    return speculative.verify(logits, state, guesses, probs[places], features, is_seeded)
