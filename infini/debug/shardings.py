"""Pictures of placements as text, with the names of `jax.debug`: which devices hold which part of an array.
Drawn by rich, so notebooks show them too.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

from rich.align import Align
from rich.box import SQUARE
from rich.console import Console
from rich.padding import Padding
from rich.style import Style
from rich.table import Table

from infini.core import errors
from infini.core.sharding import Index, Sharding
from infini.lax.inspection import inspect_array_sharding as inspect_array_sharding

Color = tuple[float, ...]  # red, green and blue from 0 to 1; more is ignored
ColorMap = Callable[[float], Color]

_WIDTH = 24  # characters of an array as wide as it is high, for scale 1
_HEIGHT = 8  # its lines


def visualize_array_sharding(
    arr: Any,
    *,
    use_color: bool = True,
    scale: float = 1.0,
    min_width: int = 9,
    max_width: int = 80,
    color_map: ColorMap | None = None,
) -> None:  # Any: an operand
    """Draw which devices hold which part of an array, as `jax.debug.visualize_array_sharding`.

    Args:
        arr: array of one or two dimensions. Inside `jit` it is drawn where the partitioner puts it.
        use_color: colour the parts where the output has colours.
        scale: size of the picture.
        min_width: fewest characters of a part, borders included.
        max_width: most characters of the picture.
        color_map: colour of a part from its place among the parts, between 0 and 1.

    Raises:
        ValueMismatchError: the array has another number of dimensions.
    """
    shape = tuple(arr.shape)
    _check(shape)

    def draw(where: Sharding) -> None:
        visualize_sharding(
            shape, where, use_color=use_color, scale=scale, min_width=min_width, max_width=max_width,
            color_map=color_map,
        )  # fmt: skip

    inspect_array_sharding(arr, callback=draw)


def visualize_sharding(
    shape: Sequence[int],
    sharding: Sharding,
    *,
    use_color: bool = True,
    scale: float = 1.0,
    min_width: int = 9,
    max_width: int = 80,
    color_map: ColorMap | None = None,
) -> None:
    """Draw which devices hold which part of an array of a shape, as `jax.debug.visualize_sharding`.

    Args:
        shape: one or two sizes.
        sharding: placement.
        use_color: as of `visualize_array_sharding`, and so are the others.
        scale: see there.
        min_width: see there.
        max_width: see there.
        color_map: see there.

    Raises:
        ValueMismatchError: there is another number of dimensions, or the placement does not fit.

    Example:
        >>> import infini as inf
        >>> mesh = inf.make_mesh((1,), ("data",), devices=inf.devices("reference")[:1])
        >>> inf.debug.visualize_sharding((4,), inf.NamedSharding(mesh, inf.P("data")))
        ┌───────────────────────┐
        │      REFERENCE 0      │
        └───────────────────────┘
    """
    _check(shape)
    cells = _cells(tuple(shape), sharding)
    num_rows, num_columns = len(cells), len(cells[0])
    width = min(max(int(_WIDTH * scale) // num_columns - (num_columns == 1), min_width - 2), max_width)
    width = max(width, *(len(label) for row in cells for label in row))
    height = max(round(_HEIGHT * scale) // num_rows, 1) if len(shape) == 2 else 1
    if num_columns * (width + 1) + 1 > max_width:
        width = max((max_width - 1) // num_columns - 1, 1)
    table = Table(show_header=False, show_lines=True, padding=0, pad_edge=False, box=SQUARE)
    for _ in range(num_columns):
        table.add_column(width=width, no_wrap=False)
    colors = color_map or _hue
    count = num_rows * num_columns
    for number, row in enumerate(cells):
        filled = []
        for column, label in enumerate(row):
            style = _style(colors((number * num_columns + column) / count)) if use_color else Style()
            above = (height - 1) // 2
            inner = Padding(Align.center(label), (above, 0, height - 1 - above, 0), style=style)
            filled.append(inner)
        table.add_row(*filled)
    console = Console(width=max(max_width, 1), color_system="auto" if use_color else None)
    console.print(table)


def _check(shape: Sequence[int]) -> None:
    if len(shape) not in (1, 2):
        raise errors.ValueMismatchError(
            "placements are drawn for one and two dimensions",
            got=f"shape {tuple(shape)}",
            fix="look at sharding.devices_indices_map(shape)",
        )


def _cells(shape: tuple[int, ...], sharding: Sharding) -> list[list[str]]:
    """Labels of the parts, by rows."""
    holders: dict[tuple[int, int], list[str]] = {}
    platform = ""
    for device, index in sharding.devices_indices_map(shape).items():
        platform = device.platform.upper()
        holders.setdefault(_corner(index, shape), []).append(str(device.id))
    labels = {corner: f"{platform} {','.join(found)}" for corner, found in holders.items()}
    rows = sorted({row for row, _ in labels})
    columns = sorted({column for _, column in labels})
    return [[labels[row, column] for column in columns] for row in rows]


def _corner(index: Index, shape: tuple[int, ...]) -> tuple[int, int]:
    """Row and column at which a part starts; arrays of one dimension are one row."""
    starts = [s.indices(n)[0] for s, n in zip(index, shape, strict=True)]
    return (starts[0], starts[1]) if len(starts) == 2 else (0, starts[0])


def _hue(place: float) -> Color:
    return colorsys.hls_to_rgb(place, 0.7, 0.5)


def _style(color: Color) -> Style:
    red, green, blue = (round(255 * part) for part in color[:3])
    is_light = 299 * red + 587 * green + 114 * blue > 128_000
    return Style(bgcolor=f"rgb({red},{green},{blue})", color="black" if is_light else "white")
