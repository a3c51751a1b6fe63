"""From samples to ratios and verdicts: how each workload and each family stands against its target.

A ratio is the peer's median / infini's median within one round, so above 1 infini is faster; a workload's
ratio is the median over rounds. PyTorch counts by the best of eager, compiled, and a kernel in Triton where
one is written. A target holds when the
lower quartile over rounds is at most 0.05 below it. Where infini and the peer both reach nine tenths of a
measured limit, nobody can be much faster, and parity counts as meeting the target.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from infini.perf.cpu import Measured
from infini.perf.workload import TARGETS, Family, Target
from infini.perf.workloads import WORKLOADS

PEERS: Final = ("jax", "torch")
SLACK: Final = 0.05
AT_LIMIT: Final = 0.9


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles.

    Args:
        median: of the samples.
        low: lower quartile.
        high: upper quartile.
        best: the smallest, which says most on a machine that others use.
        count: how many samples.
    """

    median: float
    low: float
    high: float
    best: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of at least one sample."""
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0], samples[0], len(samples))
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, min(samples), len(samples))


@dataclass(frozen=True, slots=True)
class Line:
    """One workload.

    Args:
        measured: what it is made from.
        costs: seconds or bytes by contender.
        ratios: by peer.
        best_ratios: of the smallest costs, by peer.
        by_round: ratios of each round by peer.
        shares: of the measured limit, by contender; empty when no limit applies.
    """

    measured: Measured
    costs: dict[str, Spread]
    ratios: dict[str, Spread]
    best_ratios: dict[str, float]
    by_round: dict[str, list[float]]
    shares: dict[str, float]

    @property
    def name(self) -> str:
        """Of the workload."""
        return self.measured.name

    @property
    def unequal(self) -> dict[str, float]:
        """Differences of results that are larger than the tolerance, by contender."""
        return {k: d for k, d in self.measured.differences.items() if not d <= self.measured.tolerance}

    def is_at_limit(self, peer: str) -> bool:
        """Whether infini and the peer both reach nine tenths of the limit."""
        share = max((self.shares.get(name, 0.0) for name in _modes(peer)), default=0.0)
        return min(share, self.shares.get("infini", 0.0)) >= AT_LIMIT

    def misses(self, peer: str) -> bool:
        """Whether it is below the floor of its family, or infini cannot run it."""
        if "infini" in self.measured.failed:
            return True
        target = TARGETS[self.measured.family].get(peer)
        ratio = self.ratios.get(peer)
        if target is None or target.floor is None or ratio is None:
            return False
        floor = min(target.floor, 1.0) if self.is_at_limit(peer) else target.floor
        return ratio.low < floor - SLACK


@dataclass(frozen=True, slots=True)
class Verdict:
    """A family against one peer.

    Args:
        family: which.
        peer: against whom.
        target: what is asked.
        geomean: of the ratios, over rounds.
        lowest: the lowest ratio of its workloads.
        missing: names of workloads below the floor, worst first.
        is_met: whether geomean and floor hold.
    """

    family: Family
    peer: str
    target: Target
    geomean: Spread
    lowest: float
    missing: tuple[str, ...]
    is_met: bool


def line(measured: Measured) -> Line:
    """A workload's costs, ratios and shares."""
    costs = {
        name: Spread.of([sample for round_ in rounds for sample in round_])
        for name, rounds in measured.samples.items()
        if any(rounds)
    }
    by_round = {peer: _ratios(measured, peer) for peer in PEERS}
    by_round = {peer: ratios for peer, ratios in by_round.items() if ratios}
    ratios = {peer: Spread.of(found) for peer, found in by_round.items()}
    shares = (
        {name: measured.least_s / cost.median for name, cost in costs.items()} if measured.least_s else {}
    )
    best_ratios = {
        peer: min(costs[mode].best for mode in _modes(peer) if mode in costs) / costs["infini"].best
        for peer in ratios
    }
    return Line(measured, costs, ratios, best_ratios, by_round, shares)


def merged(runs: Sequence[Mapping[str, Any]]) -> list[Line]:  # Any: JSON
    """Lines over several recorded runs, each of which counts as one round.

    Args:
        runs: records of the CPU suite, as `as_json` gives them; a workload is taken from those that have it.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for key, item in run["measures"].items():
            found.setdefault(key, []).append(item)
    return [_merged_line(*key.partition(":")[::2], items) for key, items in found.items()]


def _merged_line(family: str, name: str, items: Sequence[Mapping[str, Any]]) -> Line:  # Any: JSON
    def gathered(field: str, part: str | None = None) -> dict[str, list[float]]:
        names = {name: None for item in items for name in item[field]}
        values = {n: [item[field][n] for item in items if n in item[field]] for n in names}
        return {n: [v if part is None else v[part] for v in found] for n, found in values.items()}

    failed = {name: why for item in items for name, why in item["failed"].items()}
    differences = {name: max(found) for name, found in gathered("differences").items()}
    known = next((w for w in WORKLOADS if w.name == name and w.family == family), None)
    measured = Measured(
        name,
        cast(Family, family),
        unit=items[0]["unit"],
        failed=failed,
        differences=differences,
        tolerance=0.0 if known is None else known.tolerance,
        least_share=0.0 if known is None else known.least_share,
    )
    by_round = gathered("ratios", "median")
    return Line(
        measured,
        {name: Spread.of(found) for name, found in gathered("costs", "median").items()},
        {peer: Spread.of(found) for peer, found in by_round.items()},
        {peer: statistics.median(found) for peer, found in gathered("best_ratios").items()},
        by_round,
        {name: statistics.median(found) for name, found in gathered("share_of_limit").items()},
    )


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """Every family and peer that has lines, in the order of the table of targets."""
    found = []
    for family, targets in TARGETS.items():
        for peer, target in targets.items():
            own = [item for item in lines if item.measured.family == family]
            compared = [item for item in own if peer in item.ratios]
            if not compared:
                continue
            num_rounds = min(len(item.by_round[peer]) for item in compared)
            # Where both are at the limit, parity is all that can be asked.
            judged = [
                [
                    max(item.by_round[peer][i], target.geomean)
                    if item.is_at_limit(peer) and item.by_round[peer][i] >= 1 - SLACK
                    else item.by_round[peer][i]
                    for item in compared
                ]
                for i in range(num_rounds)
            ]
            low = Spread.of([_geomean(ratios) for ratios in judged]).low
            plain = Spread.of(
                [_geomean([item.by_round[peer][i] for item in compared]) for i in range(num_rounds)]
            )
            missing = sorted(
                (item for item in own if item.misses(peer)),
                key=lambda item: item.ratios[peer].median if peer in item.ratios else 0.0,
            )
            found.append(
                Verdict(
                    family, peer, target, plain,
                    min(item.ratios[peer].median for item in compared),
                    tuple(item.name for item in missing),
                    low >= target.geomean - SLACK and not missing,
                )
            )  # fmt: skip
    return found


def as_json(lines: Sequence[Line], found: Sequence[Verdict]) -> dict[str, Any]:  # Any: JSON
    """For a record."""
    return {
        "measures": {
            f"{item.measured.family}:{item.name}": {
                "unit": item.measured.unit,
                "costs": {name: _spread(cost) for name, cost in item.costs.items()},
                "ratios": {peer: _spread(ratio) for peer, ratio in item.ratios.items()},
                "best_ratios": {peer: _rounded(ratio) for peer, ratio in item.best_ratios.items()},
                "share_of_limit": {name: _rounded(share) for name, share in item.shares.items()},
                "differences": {name: _rounded(d) for name, d in item.measured.differences.items()},
                "failed": item.measured.failed,
            }
            for item in lines
        },
        "families": [
            {
                "family": verdict.family,
                "peer": verdict.peer,
                "target": {"geomean": _rounded(verdict.target.geomean), "floor": verdict.target.floor},
                "geomean": _spread(verdict.geomean),
                "lowest": _rounded(verdict.lowest),
                "below_floor": list(verdict.missing),
                "is_met": verdict.is_met,
            }
            for verdict in found
        ],
    }


def _ratios(measured: Measured, peer: str) -> list[float]:
    """Of each round: the better of the peer's modes over infini."""
    ours = [statistics.median(s) for s in measured.samples.get("infini", []) if s]
    theirs = [
        [statistics.median(s) for s in measured.samples[mode] if s]
        for mode in _modes(peer)
        if mode in measured.samples
    ]
    theirs = [rounds for rounds in theirs if rounds]
    if not ours or not theirs:
        return []
    num_rounds = min(len(ours), *(len(rounds) for rounds in theirs))
    return [min(rounds[i] for rounds in theirs) / ours[i] for i in range(num_rounds)]


def _modes(peer: str) -> tuple[str, ...]:
    return ("torch", "torch_compile", "triton") if peer == "torch" else (peer,)


def _geomean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


def _spread(spread: Spread) -> dict[str, float]:
    return {
        "median": _rounded(spread.median),
        "low": _rounded(spread.low),
        "high": _rounded(spread.high),
        "best": _rounded(spread.best),
        "count": spread.count,
    }


def _rounded(value: float) -> float:
    """Five digits: more would be noise."""
    return float(f"{value:.5g}")
