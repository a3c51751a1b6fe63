"""The page of `explain_sharding`: the mesh drawn, how arrays are cut, every equation with its placement and
what it sends. Programs are fragments of `core.html`; the page loads nothing.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from infini.compiler.partition.costs import Collective
from infini.core import html as html_, ir, mesh as mesh_, text
from infini.core.mesh import AbstractMesh

if TYPE_CHECKING:
    from infini.parallel.explain import Explanation

_MOST_DEVICES: Final = 64  # drawn one by one
_CELL: Final = 46  # pixels
_MESH: Final = re.compile(r"mesh=AbstractMesh\(axis_names=\([^)]*\), axis_sizes=\([^)]*\)\),? ?")


def amount(nbytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"


def sections(program: ir.Program) -> list[text.Section]:
    """A program over whole arrays in parts, without the mesh, which is the same in every line."""
    return [
        dataclasses.replace(section, lines=type(section.lines)(_MESH.sub("", x) for x in section.lines))
        for section in text.sections(program, lines=False)
    ]


def framed(page_: str) -> str:
    """A page inside a notebook."""
    content = html.escape(page_, quote=True)
    return f'<iframe srcdoc="{content}" style="width: 100%; height: 44rem; border: 0"></iframe>'


def page(shown: Explanation) -> str:
    """The whole page."""
    found = shown.found
    name = html.escape(f"@{shown.program.name}")
    source = html_.fragment(
        sections(found.source),
        html_.Context("source-", beside=lambda equation: _beside(shown, equation)),
    )
    local = html_.fragment(text.sections(found.program, lines=False), html_.Context("local-"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: sharding</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{html_.STYLE}{_STYLE}</style></head>\n"
        f'<body><header><h1>{name}</h1><p class="summary">{html.escape(shown.summary())}</p>'
        '<button type="button" id="theme" title="light or dark">&#9680;</button></header>\n<main>'
        f'<div class="top">{_mesh(shown)}{_memory(shown)}{_ends(shown)}</div>'
        f"<h2>what is sent</h2>{_collectives(found.collectives)}"
        "<h2>equations, for whole arrays, with the placement of what they make</h2>"
        f'<div class="source">{source}</div>'
        f"<details><summary><h2>what each device runs</h2></summary>{local}</details>"
        f'</main><div id="tip" role="tooltip" hidden></div>\n<script>{html_.SCRIPT}</script></body></html>\n'
    )


def _beside(shown: Explanation, equation: ir.Equation) -> str:
    messages = "".join(
        f'<b class="chip {m.collective.name}" data-tip="{html.escape(str(m))}">'
        f"{m.collective.name} {html.escape(', '.join(m.collective.axes))} {amount(m.nbytes)}</b>"
        for m in shown.messages(equation)
    )
    placement = html.escape(shown.placement(equation))
    known = shown.found.placements
    tips = [
        _who_holds(v.type.shape, tuple(known[v].dims), shown.found.mesh)
        for v in equation.outputs
        if v in known
    ]
    form = shown.form(equation)
    tip = html.escape("\n".join([*tips, *([form] if form else [])]))
    return f'<span class="placement" data-tip="{tip}">{placement}</span><span class="sends">{messages}</span>'


# --- the mesh -------------------------------------------------------------------------------------


def _mesh(shown: Explanation) -> str:
    """Devices in rows of the first axis, with what each axis carries."""
    mesh = shown.found.mesh
    carried = dict.fromkeys(mesh.axis_names, 0.0)
    for made in shown.found.collectives:
        for axis in made.axes:
            carried[axis] += made.wire_bytes * (made.times or 1)
    most = max(carried.values(), default=0.0) or 1.0
    bars = "".join(
        f"<tr><th>{html.escape(axis)} = {size}</th>{_bar(carried[axis], most)}</tr>"
        for axis, size in mesh.shape.items()
    )
    return (
        f'<figure id="mesh"><h2>the mesh</h2>{_devices(mesh)}'
        f'<table title="bytes that each device sends over collectives along an axis">{bars}</table></figure>'
    )


def _bar(nbytes: float, most: float) -> str:
    """A cell of a table with an amount and a bar of it."""
    return f'<td><u style="width:{7 * nbytes / most:.2f}rem"></u>{amount(nbytes)}</td>'


def _devices(mesh: AbstractMesh) -> str:
    if mesh.size > _MOST_DEVICES:
        return f"<p>{mesh.size} devices</p>"
    rows = mesh.axis_sizes[0] if mesh.axis_sizes else 1
    columns = mesh.size // rows
    cells = []
    for rank in range(mesh.size):
        row, column = divmod(rank, columns)
        at = ", ".join(f"{axis} = {i}" for axis, i in mesh.coordinates(rank).items())
        x, y, side = 22 + column * _CELL, 22 + row * _CELL, _CELL - 6
        cells.append(
            f'<g data-tip="device {rank}: {html.escape(at)}">'
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" rx="6"/>'
            f'<text x="{x + side / 2}" y="{y + side / 2 + 5}">{rank}</text></g>'
        )
    first, *rest = mesh.axis_names or ("",)
    middle = 22 + rows * _CELL / 2
    labels = f'<text class="axis" transform="translate(12 {middle}) rotate(-90)">{first}</text>'
    labels += f'<text class="axis" x="{22 + columns * _CELL / 2}" y="14">{", ".join(rest)}</text>'
    width, height = 22 + columns * _CELL, 22 + rows * _CELL
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="mesh">{labels}{"".join(cells)}</svg>'
    )


def _memory(shown: Explanation) -> str:
    if not shown.memory:
        return ""
    most = max(shown.memory.values()) or 1
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>{_bar(nbytes, most)}</tr>" for name, nbytes in shown.memory.items()
    )
    return f'<figure id="memory"><h2>memory of each device</h2><table>{rows}</table></figure>'


# --- how arrays are cut -----------------------------------------------------------------------------


def _ends(shown: Explanation) -> str:
    program, found = shown.program, shown.found
    figures = []
    for title, variables, specs in (
        ("argument", program.params, found.in_specs),
        ("result", program.results, found.out_specs),
    ):
        for number, (var, spec) in enumerate(zip(variables, specs, strict=True)):
            dims = tuple(mesh_.entry_axes(entry) for entry in spec)
            dims += ((),) * (var.type.ndim - len(dims))
            label = var.hint or f"{title} {number}"
            tip = html.escape(_who_holds(var.type.shape, dims, found.mesh))
            figures.append(
                f'<div class="array" data-tip="{tip}">{_cut(dims, found.mesh)}<span>'
                f"<b>{html.escape(label)}</b> <i>{title}</i><br><code>{html.escape(str(var.type))}</code><br>"
                f"<code>{html.escape(repr(mesh_.as_p(spec)))}</code></span></div>"
            )
    return f'<figure id="arrays"><h2>arguments and results</h2><div>{"".join(figures)}</div></figure>'


def _cut(dims: Sequence[tuple[str, ...]], mesh: AbstractMesh) -> str:
    """A square cut as an array is: the first split dimension down, the others across."""
    counts = [mesh.size_of(axes) for axes in dims if axes]
    down = counts[0] if counts else 1
    across = 1
    for count in counts[1:]:
        across *= count
    if dims and not dims[0] and len(counts) == 1:  # a split of columns is drawn across
        down, across = 1, down
    side = 40
    at_rows = [side * i / down for i in range(down + 1)]
    at_columns = [side * i / across for i in range(across + 1)]
    drawn = "".join(f'<line x1="0" x2="{side}" y1="{at:.1f}" y2="{at:.1f}"/>' for at in at_rows)
    drawn += "".join(f'<line y1="0" y2="{side}" x1="{at:.1f}" x2="{at:.1f}"/>' for at in at_columns)
    return f'<svg width="42" height="42" viewBox="-1 -1 42 42">{drawn}</svg>'


def _who_holds(shape: ir.Shape, dims: Sequence[tuple[str, ...]], mesh: AbstractMesh) -> str:
    """Which devices hold which part, a line for each."""
    if mesh.size > _MOST_DEVICES:
        return f"{mesh.size} devices"
    spec = mesh_.trim(tuple(axes or None for axes in dims))
    holders: dict[str, list[int]] = {}
    for rank in range(mesh.size):
        index = mesh_.shard_index(shape, spec, mesh, rank)
        part = ", ".join(f"{s.start}:{s.stop}" for s in index)
        is_empty = any(s.start == s.stop for s in index)
        holders.setdefault("nothing" if is_empty else f"[{part}]", []).append(rank)
    return "\n".join(f"{part} on {', '.join(map(str, ranks))}" for part, ranks in holders.items())


# --- what is sent -----------------------------------------------------------------------------------


def _collectives(made: Iterable[Collective]) -> str:
    found = sorted(made, key=lambda c: -c.wire_bytes * (c.times or 1))
    if not found:
        return '<p class="none">nothing</p>'
    most = max(c.wire_bytes * (c.times or 1) for c in found) or 1
    rows = "".join(
        f'<tr><td><b class="chip {c.name}">{c.name}</b></td><td>{html.escape(", ".join(c.axes))}</td>'
        f"<td>{amount(c.nbytes)}</td><td>{'?' if c.times is None else c.times}</td>"
        f"{_bar(c.wire_bytes * (c.times or 1), most)}<td>{c.num_operands}</td>"
        f'<td>{html.escape(c.reason)}</td><td class="where">{html.escape(str(c.where or ""))}</td></tr>'
        for c in found
    )
    head = "".join(
        f"<th>{title}</th>"
        for title in ("", "axes", "each gives", "times", "each sends in all", "arrays", "for", "line")
    )
    return f'<table class="collectives"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


_STYLE: Final = """
h2 { font-size: .95rem; font-weight: 650; margin: 1rem 1.2rem .4rem; }
.top { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: start; }
figure { margin: 0; } figure table { margin: 0 1.2rem; border-spacing: .6rem .1rem; font-size: .9em; }
figure th { text-align: left; font-weight: 550; } #arrays { flex: 1; min-width: 24rem; }
#arrays > div { display: flex; flex-wrap: wrap; gap: .5rem; margin: 0 1.2rem; max-height: 22rem;
  overflow: auto; }
.array { display: flex; gap: .6rem; align-items: center; padding: .35rem .6rem; border: 1px solid var(--line);
  border-radius: 8px; } .array code { font-size: 11px; white-space: nowrap; } .array i { color: var(--soft); }
.array svg line { stroke: var(--op); stroke-width: 1; } .array svg { flex: none; }
#mesh svg { margin: 0 1.2rem; } #mesh rect { fill: var(--use); stroke: var(--op); }
#mesh text { fill: var(--ink); font: 13px ui-monospace, monospace; text-anchor: middle; }
#mesh text.axis { fill: var(--soft); font-size: 12px; }
u { display: inline-block; height: .7em; margin-right: .4rem; background: var(--op); opacity: .45;
  border-radius: 2px; }
.chip { font: 550 11px/1.6 ui-monospace, monospace; padding: 0 .45rem; margin-left: .3rem;
  border-radius: 99px; border: 1px solid currentColor; white-space: nowrap; color: var(--link); }
.chip.psum, .chip.pmax, .chip.pmin { color: var(--type); } .chip.psum_scatter { color: var(--string); }
.placement { flex: 0 0 19rem; color: var(--string); font: 12px/1.8 ui-monospace, monospace;
  white-space: nowrap; }
.sends { flex: 0 0 12rem; white-space: nowrap; } .source li { gap: 1rem; } .source .where { flex: 0 0 9rem; }
.collectives { margin: 0 1.2rem; border-spacing: .8rem .15rem; font-size: .92em; }
.collectives th { text-align: left; color: var(--soft); font-weight: 500; }
.none { margin: 0 1.2rem; color: var(--soft); } details > summary { cursor: pointer; }
details { margin: 0 1.2rem; } details h2 { display: inline-block; margin-left: 0; }
details section { margin: 1rem 0; }
"""
