"""The CPU suite as a picture: the ratio of every workload, one panel per family, on a logarithmic axis."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infini.core import errors
from infini.perf.judge import PEERS, Line
from infini.perf.workload import TARGETS


def draw(lines: Sequence[Line], path: Path) -> None:
    """Write a picture.

    Args:
        lines: what to show.
        path: file to write; its suffix decides the format.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    families = [name for name in TARGETS if any(item.measured.family == name for item in lines)]
    heights = [1.0 + 0.22 * sum(item.measured.family == name for item in lines) for name in families]
    figure, axes = pyplot.subplots(
        len(families),
        1,
        figsize=(9, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for family, axis in zip(families, axes[:, 0], strict=True):
        own = [item for item in lines if item.measured.family == family and item.ratios]
        own.sort(key=lambda item: min(ratio.median for ratio in item.ratios.values()), reverse=True)
        for peer, color in zip(PEERS, ("tab:blue", "tab:orange"), strict=True):
            rows = [(row, item.ratios[peer]) for row, item in enumerate(own) if peer in item.ratios]
            if rows:
                places, ratios = zip(*rows, strict=True)
                medians = [ratio.median for ratio in ratios]
                below = [ratio.median - ratio.low for ratio in ratios]
                above = [ratio.high - ratio.median for ratio in ratios]
                axis.errorbar(
                    medians, places, xerr=(below, above), fmt="o", color=color, label=f"{peer} / infini"
                )
            if peer in TARGETS[family]:
                axis.axvline(TARGETS[family][peer].geomean, color=color, linestyle=":")
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="both", labelsize=7)
        axis.set_yticks(range(len(own)), [item.name for item in own], fontsize=7)
        axis.set_title(family, loc="left", fontsize=9)
        axis.grid(visible=True, axis="x", alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    axes[-1, 0].set_xlabel(
        "peer's time / infini's: above 1 infini is faster; dotted, the target of the geomean"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _pyplot() -> Any:  # Any: the module, which has no types here
    if not is_available():
        raise errors.UnsupportedError(
            "drawing needs matplotlib",
            got="it is not installed",
            fix="python -m pip install matplotlib, or leave --plot out",
        )
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
