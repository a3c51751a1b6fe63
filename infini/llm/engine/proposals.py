"""Tokens proposed ahead of the model: when they are asked for, and where they come from.

The scheduler has to find blocks for proposals before a step, so a proposer first says how many it will have
(`reserve`), right after the step before, and may name them later, when the step is about to run (`complete`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

from infini.llm.engine.config import SpeculativeConfig
from infini.llm.engine.jobs import Completion
from infini.llm.engine.runner import Choose
from infini.llm.engine.scheduler import Scheduled
from infini.llm.sampling import speculative

UNKNOWN: Final = -1  # stands for a token that `complete` will name


class Proposer(Protocol):
    """Proposes tokens ahead of the model.

    Attributes:
        run_s: seconds spent on it.
    """

    run_s: float

    def reserve(self, completion: Completion, count: int) -> list[int]:
        """Proposals for a completion that goes on, or `UNKNOWN` in their places; at most `count`."""

    def complete(
        self, scheduled: Sequence[Scheduled], completions: Sequence[Completion]
    ) -> tuple[list[int], Choose | None]:
        """Name what is unknown among the proposals of a step that is about to run.

        Returns:
            For each request how many of its proposals there are now, and how tokens are chosen; None for
            drawing them as ever and keeping the proposals that were drawn.
        """

    def forget(self, completion: Completion) -> None:
        """Give back what is kept of a completion that has ended."""

    def reset(self) -> None:
        """The content of all blocks is lost."""


class NgramProposals:
    """Proposals from what a text already says.

    Args:
        config: lengths to look for.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        self._inner = speculative.NgramProposer(
            config.num_speculative_tokens, config.prompt_lookup_max, config.prompt_lookup_min
        )
        self.run_s = 0.0

    def reserve(self, completion: Completion, count: int) -> list[int]:
        """As `Proposer.reserve`; nothing stays unknown."""
        start = time.perf_counter()
        history = completion.history
        assert history is not None
        history.extend(completion.request.token_ids[len(history) :])
        found = self._inner.propose(history, count) if count > 0 else []
        possible = completion.row.possible(found) if found else []
        self.run_s += time.perf_counter() - start
        return possible

    def complete(
        self, scheduled: Sequence[Scheduled], completions: Sequence[Completion]
    ) -> tuple[list[int], Choose | None]:
        """As `Proposer.complete`."""
        return [item.num_spec for item in scheduled], None

    def forget(self, completion: Completion) -> None:
        """Nothing is kept."""

    def reset(self) -> None:
        """Nothing is in blocks."""
