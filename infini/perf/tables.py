"""The CPU and GPU suites as tables: each family's workloads, worst ratio first, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from infini.perf import comm
from infini.perf.judge import Line, Spread, Verdict
from infini.perf.limits import Limits
from infini.perf.workload import TARGETS, Family, Target

_HEADS = ("infini", "jax", "torch", "torch_compile", "triton")


def family(name: Family, lines: Sequence[Line]) -> Table:
    """The workloads of a family; ratios are of medians, and of the best samples in parentheses."""
    targets = ", ".join(f"{peer} {target_text(target)}" for peer, target in TARGETS[name].items())
    table = Table(title=f"{name}: {targets}", title_justify="left")
    table.add_column("workload", no_wrap=True)
    heads = [
        head for head in _HEADS if any(head in item.costs or head in item.measured.failed for item in lines)
    ]
    for head in (*heads, "jax / infini", "torch / infini", "of limit", "differs"):
        table.add_column(head.replace("torch_compile", "compiled"), justify="right", no_wrap=True)
    for item in sorted(lines, key=_worst):
        share = item.shares.get("infini")
        table.add_row(
            item.name,
            *(_cost(item, contender) for contender in heads),
            _ratio(item, "jax"),
            _ratio(item, "torch"),
            "" if share is None else f"{share:.0%}" + ("" if share >= item.measured.least_share else " low"),
            ", ".join(f"{peer} {error:.1g}" for peer, error in item.unequal.items()),
        )
    return table


def verdicts(found: Sequence[Verdict]) -> Table:
    """One line per family and peer."""
    table = Table(title="targets: geomean of the ratios, and the floor of each", title_justify="left")
    for head in ("family", "against", "geomean", "quartiles", "lowest", "target", "met"):
        table.add_column(head, justify="left" if head in {"family", "against"} else "right", no_wrap=True)
    table.add_column("below the floor, worst first")
    for verdict in found:
        shown = ", ".join(verdict.missing[:3])
        more = f" and {len(verdict.missing) - 3} more" if len(verdict.missing) > 3 else ""
        table.add_row(
            verdict.family,
            verdict.peer,
            f"{verdict.geomean.median:.2f}",
            f"{verdict.geomean.low:.2f} .. {verdict.geomean.high:.2f}",
            f"{verdict.lowest:.2f}",
            target_text(verdict.target),
            "yes" if verdict.is_met else "no",
            shown + more,
        )
    return table


def failures(lines: Sequence[Line]) -> Table | None:
    """What a contender could not run, or computed otherwise; None when there is nothing."""
    rows = [
        (item.name, contender, reason)
        for item in lines
        for contender, reason in (
            *item.measured.failed.items(),
            *((name, f"differs by {error:.3g}") for name, error in item.unequal.items()),
        )
    ]
    if not rows:
        return None
    table = Table(
        "workload", "contender", "what", title="not run, or with another result", title_justify="left"
    )
    for row in rows:
        table.add_row(*row)
    return table


def limits_text(limits: Limits) -> str:
    """The measured limits in a line."""

    def rates(by_size: dict[int, float]) -> str:
        return ", ".join(f"{rate / 1e9:.0f} ({size >> 20} MB)" for size, rate in by_size.items())

    return (
        f"limits with {limits.num_threads} threads: {limits.flops_per_s / 1e9:.0f} GFLOP/s in float32, "
        f"read {rates(limits.read_bytes_per_s)} GB/s, copy {rates(limits.copy_bytes_per_s)} GB/s"
    )


def target_text(target: Target) -> str:
    """`>= 1.5, each >= 1`."""
    if target.floor is None:
        return f">= {target.geomean:.3g}"
    if target.floor == target.geomean:
        return f"each >= {target.geomean:.3g}"
    return f">= {target.geomean:.3g}, each >= {target.floor:.3g}"


def cost_text(spread: Spread, unit: str) -> str:
    """A duration or a size as people read it."""
    value = spread.median
    if unit == "B":
        return f"{value / 1e6:.0f} MB"
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value / 1e-9:.0f} ns"


def _worst(item: Line) -> float:
    return min((ratio.median for ratio in item.ratios.values()), default=0.0)


def _cost(item: Line, contender: str) -> str:
    if contender in item.measured.failed:
        return "failed"
    return cost_text(item.costs[contender], item.measured.unit) if contender in item.costs else "-"


def _ratio(item: Line, peer: str) -> str:
    if peer not in item.ratios:
        return "-"
    marked = " !" if item.misses(peer) else ""
    return f"{item.ratios[peer].median:.2f} ({item.best_ratios[peer]:.2f}){marked}"


def communication(found: comm.Report) -> list[Table | str]:
    """A job's collectives, the links that fit them, and its steps."""
    count = found.num_processes
    median, low, high = (1e3 * s for s in found.alone)
    who = "one process" if count == 1 else f"each of {count} processes at the same time"
    parts: list[Table | str] = []
    if found.samples:
        shown = Table(title=f"collectives of {count} processes", title_justify="left")
        for head in ("bytes given", *dict.fromkeys(sample.name for sample in found.samples)):
            shown.add_column(head, justify="right", no_wrap=True)
        for nbytes in dict.fromkeys(sample.nbytes for sample in found.samples):
            cells = [_collective(sample) for sample in found.samples if sample.nbytes == nbytes]
            shown.add_row(f"{nbytes:,}", *cells)
        link = found.machine.link
        parts += [
            shown,
            "in microseconds; in parentheses how many times that of mpi4py",
            f"Machine(Link({link.bytes_per_s:.3g}, latency_s={link.latency_s:.3g}), "
            f"start_s={found.machine.start_s:.3g}, flops_per_s={found.machine.flops_per_s:.3g}, "
            f"memory_bytes_per_s={found.machine.memory_bytes_per_s:.3g})",
        ]
    parts.append(f"train step, whole, in {who}: {median:.0f} ms ({low:.0f} .. {high:.0f})")
    if found.steps:
        shown = Table(title=f"train step of {count} processes", title_justify="left")
        shown.add_column("recipe", no_wrap=True)
        for head in (
            "ms",
            "predicted",
            "of that sent in",
            "ratio",
            "MB sent",
            "MB at the peak",
            "loss differs",
        ):
            shown.add_column(head, justify="right", no_wrap=True)
        for step in found.steps:
            median, low, high = (1e3 * s for s in step.seconds)
            shown.add_row(
                step.recipe,
                f"{median:.0f} ({low:.0f} .. {high:.0f})",
                f"{1e3 * step.predicted_s:.0f}",
                f"{1e3 * step.communication_s:.0f}",
                f"{median / 1e3 / step.predicted_s:.2f}",
                f"{step.sent / 1e6:.1f}",
                f"{step.peak_bytes / 1e6:.1f}",
                f"{step.loss_difference:.0e}",
            )
        parts.append(shown)
    return parts


def _collective(sample: comm.Sample) -> str:
    ratio = "" if sample.mpi_s is None else f" ({sample.seconds / sample.mpi_s:.2f})"
    return f"{1e6 * sample.seconds:.0f}{ratio}"
