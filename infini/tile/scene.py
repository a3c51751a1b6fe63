"""Pictures as rectangles, lines and text: written as SVG, which needs nothing, or as PNG by what is
installed.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from infini.core import errors

HATCH: Final = "hatch"  # a fill: grey stripes
NONE: Final = "none"  # no fill, no outline
TEXT_COLOUR: Final = "#1f2933"
_FONT: Final = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_STRIPES: Final = "#9aa5b1"
_STRIPES_GROUND: Final = "#eceff2"
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle with its upper left corner; `fill` is a colour, `HATCH` or `NONE`."""

    x: float
    y: float
    width: float
    height: float
    fill: str = NONE
    outline: str = NONE
    thickness: float = 1.0
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Straight lines from point to point."""

    points: tuple[tuple[float, float], ...]
    colour: str = TEXT_COLOUR
    thickness: float = 1.0
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; `y` is its baseline."""

    x: float
    y: float
    text: str
    size: float = 11.0
    anchor: Anchor = "start"
    is_bold: bool = False
    colour: str = TEXT_COLOUR


Item = Rectangle | Line | Text


@dataclass(slots=True)
class Scene:
    """Items in the order they are painted, and the size of the picture in pixels."""

    items: list[Item] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0

    def add(self, *items: Item) -> None:
        """Paint over what is there; the picture grows to hold it."""
        for item in items:
            self.items.append(item)
            right, bottom = _corner(item)
            self.width, self.height = max(self.width, right), max(self.height, bottom)


def text_width(text: str, size: float, is_bold: bool = False) -> float:
    """About how wide a text is: fonts differ, so this is on the safe side."""
    return len(text) * size * (0.62 if is_bold else 0.57)


def _corner(item: Item) -> tuple[float, float]:
    if isinstance(item, Rectangle):
        return item.x + item.width, item.y + item.height
    if isinstance(item, Line):
        return max(x for x, _ in item.points), max(y for _, y in item.points)
    share = {"start": 1.0, "middle": 0.5, "end": 0.0}[item.anchor]
    return item.x + share * text_width(item.text, item.size, item.is_bold), item.y + 0.3 * item.size


# --- SVG -------------------------------------------------------------------------------------------


def svg(scene: Scene, title: str, *, margin: float = 16.0) -> str:
    """The picture as the text of an SVG file."""
    width, height = scene.width + 2 * margin, scene.height + 2 * margin
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_short(width)}" height="{_short(height)}" '
        f'viewBox="{_short(-margin)} {_short(-margin)} {_short(width)} {_short(height)}" '
        f'font-family="{_FONT}" role="img">'
    )
    stripes = (
        f'<defs><pattern id="{HATCH}" width="5" height="5" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="5" height="5" fill="{_STRIPES_GROUND}"/>'
        f'<rect width="1.4" height="5" fill="{_STRIPES}"/></pattern></defs>'
    )
    ground = (
        f'<rect x="{_short(-margin)}" y="{_short(-margin)}" width="{_short(width)}" '
        f'height="{_short(height)}" fill="#ffffff"/>'
    )
    lines = [head, f"<title>{html.escape(title)}</title>", stripes, ground, *map(_element, scene.items)]
    return "\n".join([*lines, "</svg>", ""])


def _element(item: Item) -> str:
    if isinstance(item, Text):
        bold = ' font-weight="bold"' if item.is_bold else ""
        anchor = "" if item.anchor == "start" else f' text-anchor="{item.anchor}"'
        return (
            f'<text x="{_short(item.x)}" y="{_short(item.y)}" font-size="{_short(item.size)}" '
            f'fill="{item.colour}"{anchor}{bold}>{html.escape(item.text)}</text>'
        )
    dashes = ' stroke-dasharray="4 3"' if item.is_dashed else ""
    if isinstance(item, Line):
        points = " ".join(f"{_short(x)},{_short(y)}" for x, y in item.points)
        return (
            f'<polyline points="{points}" fill="none" stroke="{item.colour}" '
            f'stroke-width="{_short(item.thickness)}"{dashes}/>'
        )
    fill = f"url(#{HATCH})" if item.fill == HATCH else item.fill
    outline = (
        ' shape-rendering="crispEdges"'
        if item.outline == NONE
        else f' stroke="{item.outline}" stroke-width="{_short(item.thickness)}"{dashes}'
    )
    return (
        f'<rect x="{_short(item.x)}" y="{_short(item.y)}" width="{_short(item.width)}" '
        f'height="{_short(item.height)}" fill="{fill}"{outline}/>'
    )


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


# --- PNG -------------------------------------------------------------------------------------------

# Programs that make a PNG of an SVG, with their arguments.
PROGRAMS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("rsvg-convert", ("--zoom", "2", "--output", "{png}", "{svg}")),
    ("inkscape", ("--export-scale=2", "--export-filename={png}", "{svg}")),
    ("resvg", ("--zoom", "2", "{svg}", "{png}")),
    ("chromium", (
        "--headless", "--disable-gpu", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2",
        "--window-size={width},{height}", "--screenshot={png}", "{svg}",
    )),
)  # fmt: skip
_PATIENCE_S: Final = 120.0


def png(scene: Scene, title: str, path: Path) -> None:
    """Write the picture as a PNG file, by matplotlib or the first of `PROGRAMS` that is there.

    Raises:
        UnsupportedError: nothing that draws is installed, or what is fails.
    """
    if _has_matplotlib():
        _paint(scene, path)
        return
    failures = []
    for name, arguments in PROGRAMS:
        program = shutil.which(name)
        if program is not None:
            reason = _convert([program, *arguments], scene, title, path)
            if reason is None:
                return
            failures.append(f"{name}: {reason}")
    names = ", ".join(name for name, _ in PROGRAMS)
    raise errors.UnsupportedError(
        "a PNG needs a program that draws",
        got="; ".join(failures) or "none is installed",
        expected=f"matplotlib, or one of {names}",
        fix="python -m pip install matplotlib, or write an .svg file, which needs nothing",
    )


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _convert(command: Sequence[str], scene: Scene, title: str, path: Path) -> str | None:
    """Run a program on the SVG; why it failed, if it did."""
    margin = 16.0
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "picture.svg", Path(folder) / "picture.png"
        source.write_text(svg(scene, title, margin=margin), encoding="utf-8")
        size = {
            "width": str(int(scene.width + 2 * margin)),
            "height": str(int(scene.height + 2 * margin)),
        }
        filled = [part.format(svg=source, png=target, **size) for part in command]
        try:
            done = subprocess.run(filled, capture_output=True, check=False, timeout=_PATIENCE_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode or not target.exists():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return last[0] if last else f"exit status {done.returncode}"
        replace(path, target.read_bytes())
        return None


def replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, and put it there when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _paint(scene: Scene, path: Path) -> None:
    """Paint with matplotlib."""
    figures = importlib.import_module("matplotlib.figure")
    dots = 100.0
    margin = 16.0
    width, height = scene.width + 2 * margin, scene.height + 2 * margin
    figure = figures.Figure(figsize=(width / dots, height / dots), dpi=2 * dots, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-margin, width - margin)
    axes.set_ylim(height - margin, -margin)
    axes.axis("off")
    points = 72.0 / dots  # sizes of fonts and lines are in points
    for order, artist in enumerate(_artists(scene.items, points)):
        artist.set_zorder(order + 1)
        axes.add_artist(artist)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "picture.png"
        figure.savefig(target)
        replace(path, target.read_bytes())


def _artists(items: Sequence[Item], points: float) -> Iterator[Any]:  # Any: matplotlib's
    patches, lines, texts = (
        importlib.import_module(f"matplotlib.{name}") for name in ("patches", "lines", "text")
    )
    for item in items:
        if isinstance(item, Text):
            align = {"start": "left", "middle": "center", "end": "right"}[item.anchor]
            weight = "bold" if item.is_bold else "normal"
            yield texts.Text(
                item.x, item.y, item.text.replace("$", r"\$"), fontsize=0.92 * item.size * points,
                color=item.colour, horizontalalignment=align, verticalalignment="baseline", fontweight=weight,
            )  # fmt: skip
            continue
        style = (0, (4, 3)) if item.is_dashed else "-"
        if isinstance(item, Line):
            xs, ys = zip(*item.points, strict=True)
            yield lines.Line2D(xs, ys, color=item.colour, linewidth=item.thickness * points, linestyle=style)
            continue
        is_striped = item.fill == HATCH
        yield patches.Rectangle(
            (item.x, item.y), item.width, item.height,
            facecolor=_STRIPES_GROUND if is_striped else item.fill,
            edgecolor=_STRIPES if is_striped else item.outline,
            linewidth=item.thickness * points if item.outline != NONE else 0.0,
            linestyle=style, hatch="/////" if is_striped else None,
        )  # fmt: skip
