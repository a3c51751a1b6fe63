"""`draw`: the levels of every tensor of a kernel, and where the tiles of one program lie in the arrays.

A lane per tensor (`lanes`) and a legend. Arrays are scaled to fit, levels and tiles are elided in the middle.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infini.core import errors
from infini.core.ir import Shape
from infini.tile import blocks, lanes, scene as scene_, simulation
from infini.tile.binding import Bound
from infini.tile.function import KernelFunction
from infini.tile.lanes import Lane, numbers
from infini.tile.scene import HATCH, NONE, Rectangle, Scene, Text
from infini.tile.simulation import Placement


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture. Notebooks show it.

    Args:
        title: what it shows.
        scene: its items.
    """

    title: str
    scene: Scene

    @property
    def svg(self) -> str:
        """The text of an SVG file."""
        return scene_.svg(self.scene, self.title)

    def save(self, path: str | Path) -> Path:
        """Write an `.svg` or `.png` file.

        Raises:
            ValueMismatchError: the name ends otherwise.
            UnsupportedError: a PNG is wanted and nothing that draws one is installed.
        """
        place = Path(path)
        if place.suffix == ".svg":
            scene_.replace(place, self.svg.encode())
        elif place.suffix == ".png":
            scene_.png(self.scene, self.title, place)
        else:
            raise errors.ValueMismatchError(
                "drawings are written as SVG or PNG",
                got=place.name,
                expected="a name that ends in .svg or .png",
            )
        return place

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Drawing({self.title!r})"


def draw(
    kernel: KernelFunction,
    types: Sequence[Any],
    path: str | Path | None = None,
    *,
    program: Sequence[int] | int | None = None,
    step: Sequence[int] | int | None = None,
    **static: Hashable,
) -> Drawing:  # Any: operands of a call, or types in their place
    """Draw how a kernel cuts its arrays, and the tiles of one program.

    Args:
        kernel: the kernel.
        types: types of the operands, or the operands themselves.
        path: an `.svg` or `.png` file to write.
        program: number of the program along each dimension of the grid, the first by default.
        step: the step of the walked levels whose tile is shown, the first by default.
        **static: keyword arguments of the application.

    Raises:
        IndexOutOfRangeError: the grid has no such program, or no level such a step.
        ValueMismatchError: the grid is empty, or the file is neither `.svg` nor `.png`.

    Example:
        >>> from infini.core import dtypes
        >>> from infini.core.ir import ArrayType
        >>> from infini.tile import Tensor, draw, kernel
        >>> x = Tensor(1)
        >>> fours = lambda x, y: (x.tile((4,)), y.tile((4,)))
        >>> copy = kernel(fours, tensors=(x, Tensor(shape=x.shape)), name="copy")(lambda x: x)
        >>> draw(copy, [ArrayType((6,), dtypes.float32)], program=1)
        Drawing('copy: program 1 of a grid of 2')
    """
    call = simulation.bound(kernel, types, static, "draw")
    placed = simulation.placed(kernel, call)
    grid = placed[0].grid
    if 0 in grid:
        raise errors.ValueMismatchError(
            f"{kernel.name} has nothing to draw at these types", got=f"a grid of {numbers(grid)}"
        )
    chosen = _chosen(program, grid, "program")
    steps = [_step_of(placement, placed, step) for placement in placed]
    title = f"{kernel.name}: program {numbers(chosen)} of a grid of {numbers(grid)}" if grid else kernel.name
    painted = Scene()
    painted.add(Text(0, 14, title, size=16, is_bold=True))
    y = 36.0
    sizes = _block_sizes(kernel, call)
    if sizes:
        painted.add(Text(0, 32, sizes, colour=lanes.MUTED))
        y += 20
    for number, (placement, own) in enumerate(zip(placed, steps, strict=True)):
        y = Lane(painted, placement, chosen, own, number).paint(y) + 26
    _legend(painted, placed, y)
    drawing = Drawing(title, painted)
    if path is not None:
        drawing.save(path)
    return drawing


def _chosen(given: Sequence[int] | int | None, sizes: Shape, what: str) -> tuple[int, ...]:
    """The numbers asked for, checked; zeros when nothing was."""
    if given is None:
        return (0,) * len(sizes)
    found = (given,) if isinstance(given, int) else tuple(map(int, given))
    if len(found) != len(sizes) or any(not 0 <= i < n for i, n in zip(found, sizes, strict=True)):
        raise errors.IndexOutOfRangeError(
            f"there is no such {what}",
            got=f"{what}={given}",
            expected=f"from {numbers((0,) * len(sizes))} to {numbers([n - 1 for n in sizes])}"
            if sizes
            else f"no {what}: there is one only",
        )
    return found


def _step_of(
    placement: Placement, placed: Sequence[Placement], given: Sequence[int] | int | None
) -> tuple[int, ...]:
    """The step of a tensor; one that no loop walks has none."""
    is_walked = bool(placement.walked) or not any(other.walked for other in placed)
    return _chosen(given, placement.walked, "step") if is_walked else ()


def _block_sizes(kernel: KernelFunction, call: Bound) -> str:
    _, values = kernel.lower(call.types, call.static)
    return ", ".join(f"{symbol.name} = {values[symbol]}" for symbol in blocks.found_in(kernel.arranged))


def _legend(painted: Scene, placed: Sequence[Placement], y: float) -> None:
    entries = [(lanes.CHOSEN, NONE, "tile of this program")]
    walked = [p for p in placed if p.walked]
    if walked:
        entries[0] = (lanes.CHOSEN, NONE, "tile of this program at the step shown")
        entries += [
            (lanes.step_colour(0, -1, 2), NONE, "at its other steps, first"),
            (lanes.step_colour(1, -1, 2), NONE, "to last"),
        ]
    entries += [
        (HATCH, NONE, "outside the array"),
        (NONE, lanes.OTHER_TILES, "tiles of other programs"),
    ]
    x = 0.0
    for fill, outline, text in entries:
        painted.add(Rectangle(x, y, 14, 14, fill, outline))
        painted.add(Text(x + 19, y + 11, text, colour=lanes.MUTED))
        x += 19 + scene_.text_width(text, 11) + 18
    ranks = {len(p.type.shape) > 2 for p in placed if p.type.shape}
    notes = [("position in C order", True), ("index", False)]
    named = " or ".join(text for text, is_deep in notes if is_deep in ranks)
    painted.add(
        Text(
            0,
            y + 34,
            f"Numbers in a tile: where the element lies in its array ({named}).",
            colour=lanes.MUTED,
        )
    )
