"""What programs of sampling can do: static, and few, so that an engine compiles all before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NUM_LOGPROBS: Final = (0, 20)  # numbers of alternatives that programs are compiled for


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What any request of a step asks for; static, so programs have no code for the rest.

    Args:
        is_random: some request does not take the likeliest token.
        is_edited: some has penalties, biases, or tokens that may not come.
        is_masked: some has a grammar, or a list of tokens that may come.
        is_typical: some has `typical_p`.
        num_logprobs: how many alternatives are told with each token; None tells nothing about tokens.
    """

    is_random: bool = False
    is_edited: bool = False
    is_masked: bool = False
    is_typical: bool = False
    num_logprobs: int | None = None

    def covers(self, other: Features) -> bool:
        """Whether a program with these features can do what `other` asks."""
        flags = ("is_random", "is_edited", "is_masked", "is_typical")
        if any(getattr(other, flag) and not getattr(self, flag) for flag in flags):
            return False
        return _rank(self) >= _rank(other)


def _rank(features: Features) -> int:
    return -1 if features.num_logprobs is None else features.num_logprobs


# What an engine compiles before it is ready: the first that covers a step is used.
PRESETS: Final = (
    Features(),
    Features(is_random=True),
    Features(is_random=True, is_edited=True, is_masked=True),
    Features(is_random=True, is_edited=True, is_masked=True, is_typical=True, num_logprobs=NUM_LOGPROBS[-1]),
)


def preset_of(features: Features, presets: Sequence[Features] = PRESETS) -> Features:
    """The first of some features that covers what a step asks for, or these themselves."""
    return next((preset for preset in presets if preset.covers(features)), features)
