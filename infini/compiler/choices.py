"""Choices between ways that compute the same thing, made by measuring once (design 4a.15).

While a program is lowered, a backend asks a `Choice` of its `Chooser`. What was given with the options comes
first, then what this process decided before, then the disk cache, then a measurement. A decision holds until
the process ends, so a program and its options decide its choices, and they can be part of its key. Processes
of one job agree in `infini.backends.spmd.agreement`; here nothing communicates.
"""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import infini
from infini.compiler import disk_cache
from infini.core import config, errors, events, execute
from infini.core.backend import CompileOptions

_FORMAT: Final = 1  # raise when the meaning of a stored entry changes
_FOLDER: Final = "choices"
ROUNDS: Final = 7  # samples of each candidate, of which the median counts
WARM_UPS: Final = 2  # runs before them

# Makes a candidate ready: a function that runs it once and gives the seconds that took.
Prepare: TypeAlias = Callable[[str], Callable[[], float]]
Source: TypeAlias = Literal["given", "default", "disk", "measured"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One question.

    Args:
        key: what is asked, in one line: the operation with its types, such as
            `dot mk,kn->mn f32[64,32] f32[32,16] -> f32`.
        candidates: names of the ways, at least one; the first is taken where nothing may be measured.
        context: what else decides how fast they are: the device's name, versions, the candidates' code.
    """

    key: str
    candidates: tuple[str, ...]
    context: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hexadecimal hash of the question, its context and the version of infini: the key on disk."""
        parts = (_FORMAT, infini.__version__, self.key, self.candidates, self.context)
        return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer.

    Args:
        choice: the question.
        winner: the candidate taken.
        source: where the answer comes from.
        seconds: median of each candidate that was measured, by name.
        failures: why the others were out, by name.
    """

    choice: Choice
    winner: str
    source: Source
    seconds: tuple[tuple[str, float], ...] = ()
    failures: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.choice.key}: {self.winner} ({self.source})"]
        seconds, failures = dict(self.seconds), dict(self.failures)
        width = max(map(len, self.choice.candidates))
        for name in self.choice.candidates:
            if name in seconds:
                lines.append(f"    {name:<{width}}  {seconds[name] * 1e6:.2f} us")
            elif name in failures:
                lines.append(f"    {name:<{width}}  failed: {failures[name]}")
        return "\n".join(lines)


class Chooser:
    """Asks for one program, and remembers the answers in the order of the program.

    Args:
        options: options of the program: choices that were made before, and whether it is deterministic.
    """

    def __init__(self, options: CompileOptions) -> None:
        self._given = dict(options.choices)
        self._may_measure = not options.deterministic
        self._made: dict[str, Decision] = {}

    def choose(self, choice: Choice, prepare: Prepare) -> str:
        """The candidate for a question; see `decide`."""
        found = decide(choice, prepare, given=self._given, may_measure=self._may_measure)
        return self._made.setdefault(choice.key, found).winner

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The answers; a question asked twice is there once."""
        return tuple(self._made.values())

    @property
    def choices(self) -> tuple[tuple[str, str], ...]:
        """The answers as `CompileOptions.choices` takes them."""
        return tuple((key, decision.winner) for key, decision in self._made.items())


# Decisions that were measured or read, by digest; at most 65536, the oldest goes first, `forget` empties it.
_decided: Final[execute.BoundedCache[str, Decision]] = execute.BoundedCache(65536)
# One question at a time: two measurements would disturb each other. Reentrant, since preparing a candidate
# may compile a program that asks.
_deciding: Final = threading.RLock()


def decide(
    choice: Choice, prepare: Prepare, *, given: Mapping[str, str] | None = None, may_measure: bool = True
) -> Decision:
    """Answer a question: as given, else as decided before in this process or on disk, else by measuring.

    Args:
        choice: the question.
        prepare: makes a candidate ready to be measured; not called when nothing is measured.
        given: answers by key that come before everything.
        may_measure: False, for programs that must not depend on a clock, takes the first candidate; so does
            the knob `tune`.

    Raises:
        LoweringError: every candidate raised, or the given one is none of the candidates.
    """
    if given is not None and choice.key in given:
        return Decision(choice, _checked(choice, given[choice.key]), "given")
    mode = config.get("tune") if may_measure else "off"
    if mode == "off" or len(choice.candidates) == 1:
        return Decision(choice, choice.candidates[0], "default")
    digest = choice.digest
    found = _decided.get(digest)
    if found is not None:
        return found
    with _deciding:
        found = _decided.get(digest) or _stored(choice, digest)
        if found is None and mode == "cached":
            return Decision(choice, choice.candidates[0], "default")
        if found is None:
            found = _measured(choice, prepare)
            _store(found, digest)
        return _decided.put(digest, found)


def forget() -> None:
    """Forget every decision of this process, and the programs compiled with them. The disk cache stays."""
    _decided.clear()
    execute.clear_caches()


def describe(decisions: tuple[Decision, ...]) -> str:
    """The text of a program's stage `choices`."""
    return "\n".join(map(str, decisions)) or "nothing to choose"


def _checked(choice: Choice, name: str) -> str:
    if name not in choice.candidates:
        raise errors.LoweringError(
            f"the choice given for {choice.key} is none of its candidates",
            got=repr(name),
            expected=", ".join(choice.candidates),
            fix="leave it out of CompileOptions.choices, so that it is measured again",
        )
    return name


# --- measuring ---------------------------------------------------------------------------------


def _measured(choice: Choice, prepare: Prepare) -> Decision:
    failures: dict[str, str] = {}
    runs: dict[str, Callable[[], float]] = {}
    samples: dict[str, list[float]] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  # a candidate may fail in any way; another one is taken
            failures[name] = f"{type(error).__name__}: {error}".partition("\n")[0]

    def warm(name: str) -> None:
        run = prepare(name)
        for _ in range(WARM_UPS):
            run()
        runs[name], samples[name] = run, []

    def sample(name: str) -> None:
        samples[name].append(runs[name]())

    for name in choice.candidates:
        attempt(name, functools.partial(warm, name))
    # In turns, so that a clock that drifts or a machine that is disturbed meets all of them.
    for _ in range(ROUNDS):
        for name in choice.candidates:
            if name not in failures:
                attempt(name, functools.partial(sample, name))
    medians = {name: statistics.median(samples[name]) for name in choice.candidates if name not in failures}
    if not medians:
        raise errors.LoweringError(
            f"every way to compute {choice.key} failed",
            got="; ".join(f"{name}: {reason}" for name, reason in failures.items()),
            fix='with infini.config(tune="off") the first is taken without a measurement',
        )
    winner = min(medians, key=medians.__getitem__)  # the first of equal ones
    found = Decision(choice, winner, "measured", tuple(medians.items()), tuple(failures.items()))
    events.emit("choice-measured", str(found), decision=found)
    return found


# --- on disk -------------------------------------------------------------------------------------


def _identity(choice: Choice) -> dict[str, object]:
    return {"key": choice.key, "candidates": list(choice.candidates), "context": list(choice.context)}


def _store(decision: Decision, digest: str) -> None:
    entry = {
        **_identity(decision.choice),
        "winner": decision.winner,
        "seconds": dict(decision.seconds),
        "failures": dict(decision.failures),
    }
    disk_cache.write(_FOLDER, digest, json.dumps(entry).encode())


def _stored(choice: Choice, digest: str) -> Decision | None:
    """The decision on disk; None when there is none, or what is there is no answer to this question."""
    content = disk_cache.read(_FOLDER, digest)
    if content is None:
        return None
    try:
        entry = json.loads(content)
        is_ours = {name: entry[name] for name in ("key", "candidates", "context")} == _identity(choice)
        seconds = tuple((str(name), float(number)) for name, number in entry["seconds"].items())
        failures = tuple((str(name), str(reason)) for name, reason in entry["failures"].items())
        winner = entry["winner"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not is_ours or winner not in choice.candidates:
        return None
    return Decision(choice, winner, "disk", seconds, failures)
