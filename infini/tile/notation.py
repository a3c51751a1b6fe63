"""Kernels in the text form of programs: the grid, loads and stores with their index maps, and the body.

    kernel @scale(%0: f32[128], %1: f32[], %2: i32[]) -> f32[1000] {
      grid (%2 < 8)
      load %0[i0] = in0[128*%2 + i0] else 0
      load %1 = in1[0]
      %3: f32[128] = mul(%0, %1)
      store out0[128*%2 + i0] = %3[i0] where inside
    }

`%2` is the number of a program along the grid, `i0` runs over the first dimension of a tile, `in0` is the
first operand and `out0` the first result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from infini.core import errors, frames
from infini.core.ir import Program
from infini.tile.program import Access, Kernel

_ARROW: Final = " -> "
_GRID: Final = re.compile(r"(%\w+) < (\d+)")
_LOAD: Final = re.compile(
    r"load (%\w+)(?:\[[\w, ]*\])? = in(\d+)\[([^\]]*)\](?: else (\S+|complex\(.*\)))?"
    r"(?: walking (i[\di, ]*))?"
)
_STORE: Final = re.compile(
    r"store out(\d+)\[([^\]]*)\] = (%\w+)(?:\[[\w, ]*\])?( where inside(?:, else (.+?))?)?"
    r"(?: walking (i[\di, ]*))?"
)
_LAUNCH: Final = re.compile(r"(num_\w+) = (\d+)")
_EXTENT: Final = re.compile(r"extent (%\w+) < ceil\(in(\d+) / (\d+)\)")
_TERM: Final = re.compile(r"([+-]?) ?(?:(\d+)\*)?(%\w+|i\d+|\d+)")


class _Notation:
    """The style of kernels, see `core.frames`."""

    keyword = "kernel"
    words = frozenset({"grid", "launch", "load", "store", "extent"})

    def fits(self, item: Kernel) -> bool:
        """Whether tiles and accesses have the shapes that `check_kernel` asks for."""
        params, results = item.body.params, item.body.results
        if len(params) != len(item.loads) + len(item.grid):
            return False
        if not len(results) == len(item.stores) == len(item.outputs):
            return False
        pairs = (*zip(item.loads, params, strict=False), *zip(item.stores, results, strict=True))
        return all(a.tile == v.type.shape and _is_regular(a, len(item.grid)) for a, v in pairs)

    def body(self, item: Kernel) -> Program:
        """The body, under the name of the kernel."""
        return item.body if item.body.name == item.name else item.body.replace(name=item.name)

    def write(self, item: Kernel, results: Sequence[str], value: Callable[[object], str]) -> frames.Frame:
        """Lines for the grid, the loads and the stores."""
        ids = [f"%{len(item.loads) + n}" for n in range(len(item.grid))]
        before = [
            f"grid ({', '.join(f'{name} < {size}' for name, size in zip(ids, item.grid, strict=True))})"
        ]
        if item.launch:
            before.append(f"launch {', '.join(f'{name} = {value}' for name, value in item.launch)}")
        before += [f"extent {ids[d]} < ceil(in{operand} / {rows})" for d, rows, operand in item.extents]
        for n, access in enumerate(item.loads):
            fill = "" if access.fill is None else f" else {value(access.fill)}"
            line = f"load %{n}{_tile(access)} = in{n}[{_index(access, ids)}]{fill}"
            before.append(line + _walking(access))
        after = []
        for n, (access, name) in enumerate(zip(item.stores, results, strict=True)):
            line = f"store out{n}[{_index(access, ids)}] = {name}{_tile(access)}"
            if access.fill is not None:
                shown = value(access.fill)
                line += " where inside" + ("" if shown == "0" else f", else {shown}")
            after.append(line + _walking(access))
        outputs = ", ".join(map(str, item.outputs))
        return frames.Frame(f"{_ARROW}{outputs}", tuple(before), tuple(after))

    def results(self, lines: Sequence[str]) -> list[str]:
        """What is stored, in order."""
        return [_match(_STORE, line)[3] for line in lines if line.startswith("store")]

    def read(self, body: Program, frame: frames.Frame, value: Callable[[str], Any]) -> Kernel:
        """The kernel that `write` wrote."""
        ids: list[str] = []
        grid: tuple[int, ...] = ()
        loads: list[Access] = []
        stores: list[Access] = []
        extents: list[tuple[int, int, int]] = []
        launch: tuple[tuple[str, int], ...] = ()
        for line in frame.before:
            word = line.partition(" ")[0]
            if word == "grid":
                found = _GRID.findall(line)
                ids, grid = [name for name, _ in found], tuple(int(size) for _, size in found)
            elif word == "launch":
                launch = tuple((name, int(value)) for name, value in _LAUNCH.findall(line))
            elif word == "extent":
                match = _match(_EXTENT, line)
                extents.append((_place(match[1], ids), int(match[3]), int(match[2])))
            elif word == "load":
                match = _match(_LOAD, line)
                tile = body.params[_next(match[2], loads)].type.shape
                fill = None if match[4] is None else value(match[4])
                loads.append(_access(match[3], tile, ids, fill, match[5]))
            else:
                match = _match(_STORE, line)
                tile = body.results[_next(match[1], stores)].type.shape
                fill = None if match[4] is None else value(match[5] or "0")
                stores.append(_access(match[2], tile, ids, fill, match[6]))
        outputs = value(f"({frame.tail.removeprefix(_ARROW)})")
        return Kernel(grid, tuple(loads), tuple(stores), outputs, body, tuple(extents), body.name, launch)


def _is_regular(access: Access, grid_rank: int) -> bool:
    rank = len(access.offsets)
    return (
        len(access.grid_strides) == len(access.tile_strides) == rank
        and all(len(row) == grid_rank for row in access.grid_strides)
        and all(len(row) == len(access.tile) for row in access.tile_strides)
        and access.levels <= len(access.tile)
    )


# --- writing ----------------------------------------------------------------------------------------


def _tile(access: Access) -> str:
    """The place in a tile; nothing for a single element."""
    return f"[{', '.join(f'i{n}' for n in range(len(access.tile)))}]" if access.tile else ""


def _walking(access: Access) -> str:
    return f" walking {', '.join(f'i{n}' for n in range(access.levels))}" if access.levels else ""


def _index(access: Access, ids: Sequence[str]) -> str:
    places = [f"i{n}" for n in range(len(access.tile))]
    return ", ".join(
        _affine([*zip(grid, ids, strict=True), *zip(tile, places, strict=True)], offset)
        for grid, tile, offset in zip(access.grid_strides, access.tile_strides, access.offsets, strict=True)
    )


def _affine(terms: Sequence[tuple[int, str]], offset: int) -> str:
    """A sum without the terms that are zero."""
    found = [(n < 0, name if abs(n) == 1 else f"{abs(n)}*{name}") for n, name in terms if n]
    if offset or not found:
        found.append((offset < 0, str(abs(offset))))
    first, *rest = [("- " if is_negative else "+ ") + term for is_negative, term in found]
    return " ".join([first.removeprefix("+ ").replace("- ", "-"), *rest])


# --- reading ----------------------------------------------------------------------------------------


def _match(pattern: re.Pattern[str], line: str) -> re.Match[str]:
    match = pattern.fullmatch(line)
    if match is None:
        raise errors.ParseError(f"{line!r} is not a line of a kernel", expected="load %0[i0] = in0[i0]")
    return match


def _next(number: str, found: Sequence[Access]) -> int:
    if int(number) != len(found):
        raise errors.ParseError(f"operands and results stand in order, and number {number} does not")
    return len(found)


def _place(name: str, ids: Sequence[str]) -> int:
    if name not in ids:
        raise errors.ParseError(f"{name} is no number of a program; they are {', '.join(ids)}")
    return ids.index(name)


def _access(index: str, tile: tuple[int, ...], ids: Sequence[str], fill: Any, walking: str | None) -> Access:
    rows = [_row(text.strip(), len(tile), ids) for text in index.split(",")] if index.strip() else []
    return Access(
        tile,
        tuple(grid for grid, _, _ in rows),
        tuple(steps for _, steps, _ in rows),
        tuple(offset for _, _, offset in rows),
        fill,
        len(walking.split(",")) if walking else 0,
    )


def _row(text: str, rank: int, ids: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Factors of the numbers of a program, factors of the places in a tile, and the offset."""
    grid, steps, offset = [0] * len(ids), [0] * rank, 0
    for sign, factor, name in _TERM.findall(text):
        number = (-1 if sign == "-" else 1) * int(factor or 1)
        if name.startswith("%"):
            grid[_place(name, ids)] += number
        elif name.startswith("i"):
            if int(name[1:]) >= rank:
                raise errors.ParseError(f"{name} is beyond the {rank} dimensions of the tile")
            steps[int(name[1:])] += number
        else:
            offset += number * int(name)
    return tuple(grid), tuple(steps), offset


frames.register(_Notation())
