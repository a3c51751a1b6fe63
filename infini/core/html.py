"""A program as one HTML page that needs nothing else: hover shows types and lines, a click shows uses.

Made from the lines of `core.text`, so the page and the text form always say the same.
"""

from __future__ import annotations

import html
import linecache
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infini.core import ir, source, text

_TOKEN: Final = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*")|(?P<var>%\d+)|(?P<program>@[\w.]+)"""
    r"""|(?P<type>\b\w+\[[\d,]*\])|(?P<attribute>\b\w+(?==))"""
    r"""|(?P<keyword>\b(?:program|return|const|kernel(?= @)|grid|load|store|extent)\b)"""
)


def page(program: ir.Program, *, title: str = "") -> str:
    """A whole page for a program and the programs inside it.

    Args:
        program: program to show.
        title: heading; the name of the program when absent.

    Returns:
        HTML with its style and script inside.
    """
    sections = text.sections(program, lines=False)
    heading = html.escape(title or f"@{sections[0].name}")
    body = fragment(sections)
    counts = _counts(program)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n"
        f'<body><header><h1>{heading}</h1><p class="summary">{counts}</p>'
        '<button type="button" id="theme" title="light or dark">&#9680;</button></header>\n'
        f'<main>\n{body}\n</main><div id="tip" role="tooltip" hidden></div>\n<script>{SCRIPT}</script>'
        "</body></html>\n"
    )


@dataclass(frozen=True, slots=True)
class Context:
    """Where a fragment stands in a larger page.

    Args:
        prefix: before the ids of its sections, so that several fragments fit into one page.
        line: the label of a user's line, which the page uses to connect places; None for no connection.
        is_new: whether to mark an equation.
        link: the address that the label of a program leads to.
        beside: HTML that stands behind the code of an equation.
    """

    prefix: str = ""
    line: Callable[[source.Where], str | None] = lambda where: None
    is_new: Callable[[ir.Equation], bool] = lambda equation: False
    link: Callable[[str], str] | None = None
    beside: Callable[[ir.Equation], str] = lambda equation: ""

    def address(self, name: str) -> str:
        """Where the label of a program leads."""
        return self.link(name) if self.link is not None else f"#{self.prefix}{name}"


def fragment(sections: Sequence[text.Section], context: Context | None = None) -> str:
    """Sections of a program as HTML, for a page that has `STYLE` and `SCRIPT`."""
    return "\n".join(_section(section, context or Context()) for section in sections)


def _counts(program: ir.Program) -> str:
    """How many equations of each operation there are, bodies included."""
    found: Counter[str] = Counter()
    queue = [program]
    while queue:
        current = queue.pop()
        found.update(equation.op.name for equation in current.equations)
        queue += [inner for equation in current.equations for inner in equation.programs]
    total = f"{found.total()} equations, fingerprint {program.fingerprint[:12]}"
    return html.escape(
        ": ".join([total, ", ".join(f"{n} {name}" for name, n in found.most_common())]) if found else total
    )


def _section(section: text.Section, context: Context) -> str:
    names = _Names(section, context)
    rows = []
    for number, line in enumerate(section.lines):
        equation = _equation_at(section, number)
        where = f"{equation.where or ''}" if equation is not None else ""
        via = f" via {equation.via}" if equation is not None and equation.via else ""
        label = context.line(equation.where) if equation is not None and equation.where else None
        marks = ' class="new"' if equation is not None and context.is_new(equation) else ""
        marks += f' data-line="{html.escape(label)}"' if label else ""
        rows.append(
            f"<li{marks}><code>{_code(line, names, equation)}</code>"
            f"{context.beside(equation) if equation is not None else ''}"
            f'<span class="where">{html.escape(where + via)}</span></li>'
        )
    return f'<section id="{html.escape(names.section)}"><ol>{"".join(rows)}</ol></section>'


def _equation_at(section: text.Section, number: int) -> ir.Equation | None:
    index = number - section.first_equation
    return section.program.equations[index] if 0 <= index < len(section.program.equations) else None


class _Names:
    """What is known about each label of a section."""

    def __init__(self, section: text.Section, context: Context) -> None:
        self.section = context.prefix + section.name
        self.context = context
        program = section.program
        self.types: dict[str, ir.ArrayType] = {}
        self.origins: dict[str, str] = {}
        order = [*program.params, *(v for v, _ in program.consts)]
        origins = ["parameter"] * len(program.params) + ["constant"] * len(program.consts)
        for equation in program.equations:
            order += equation.outputs
            origins += [_origin(equation)] * len(equation.outputs)
        uses = Counter(v for equation in program.equations for v in equation.inputs)
        for number, (var, origin) in enumerate(zip(order, origins, strict=True)):
            count = uses[var]
            note = f"{origin}\nused {count} time{'s' if count != 1 else ''}"
            is_result = var in program.results
            self.types[f"%{number}"] = var.type
            self.origins[f"%{number}"] = f"{note}, and a result" if is_result else note


def _origin(equation: ir.Equation) -> str:
    parts = [f"made by {equation.op.name}"]
    if equation.where is not None:
        parts.append(f"at {equation.where.file}:{equation.where.line}")
        if Path(equation.where.file).is_file():
            parts.append(f"    {linecache.getline(equation.where.file, equation.where.line).strip()}")
    if equation.via:
        parts.append(f"via {equation.via}")
    if equation.effect.value != "none":
        parts.append(f"effect: {equation.effect.value}")
    return "\n".join(parts)


def _code(code: str, names: _Names, equation: ir.Equation | None) -> str:
    out, end = [], 0
    for match in _TOKEN.finditer(code):
        out.append(_plain(code[end : match.start()], equation))
        out.append(_span(str(match.lastgroup), match[0], names))
        end = match.end()
    out.append(_plain(code[end:], equation))
    return "".join(out)


def _span(kind: str, token: str, names: _Names) -> str:
    shown = html.escape(token)
    if kind == "var" and token in names.types:
        tip = html.escape(f"{token}: {names.types[token]}\n{names.origins[token]}")
        return f'<b class="var" tabindex="0" data-var="{names.section}:{token}" data-tip="{tip}">{shown}</b>'
    if kind == "program":
        return f'<a class="program" href="{html.escape(names.context.address(token[1:]))}">{shown}</a>'
    return f'<span class="{kind}">{shown}</span>'


def _plain(code: str, equation: ir.Equation | None) -> str:
    """Text between tokens; the name of the operation stands in it, followed by a bracket."""
    shown = html.escape(code)
    if equation is None:
        return shown
    name = re.escape(equation.op.name)
    tip = html.escape(_origin(equation))
    return re.sub(
        rf"(?<![\w.]){name}(?=\()", lambda m: f'<em class="op" data-tip="{tip}">{m[0]}</em>', shown, count=1
    )


STYLE: Final = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #6b7280; --line: #e5e7eb;
  --op: #0550ae; --type: #6f42c1; --string: #0a6b2d; --link: #953800; --mark: #fff3bf; --use: #dbeafe; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --page: #14171c; --ink: #e6e8eb;
  --soft: #8b93a0; --line: #2a2f37; --op: #79b8ff; --type: #c6a5ff; --string: #85d99b; --link: #ffab70;
  --mark: #5c4b00; --use: #1d3a5f; } }
:root[data-theme=dark] { color-scheme: dark; --page: #14171c; --ink: #e6e8eb; --soft: #8b93a0;
  --line: #2a2f37; --op: #79b8ff; --type: #c6a5ff; --string: #85d99b; --link: #ffab70; --mark: #5c4b00;
  --use: #1d3a5f; }
:root[data-theme=light] { color-scheme: light; }
body { margin: 0; background: var(--page); color: var(--ink); font: 14px/1.5 system-ui, sans-serif; }
header { position: sticky; top: 0; z-index: 1; display: flex; gap: 1rem; align-items: baseline;
  padding: .6rem 1.2rem; background: var(--page); border-bottom: 1px solid var(--line); }
h1 { font-size: 1.05rem; margin: 0; }
.summary { flex: 1; margin: 0; color: var(--soft); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
button { border: 1px solid var(--line); border-radius: 6px; background: none; color: inherit; font: inherit;
  cursor: pointer; }
section { margin: 1rem 1.2rem; padding: .4rem 0; border: 1px solid var(--line); border-radius: 8px;
  overflow-x: auto; scroll-margin-top: 4rem; }
section:target { border-color: var(--op); }
ol { margin: 0; padding: 0; list-style: none; counter-reset: line; min-width: max-content; }
li { display: flex; gap: 2rem; justify-content: space-between; padding: 0 .9rem 0 0;
  counter-increment: line; }
li::before { content: counter(line); width: 3rem; flex: none; text-align: right; color: var(--soft);
  opacity: .6; user-select: none; font-size: .85em; }
li:hover { background: color-mix(in srgb, var(--use) 35%, transparent); }
code { flex: 1; white-space: pre; font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.where { color: var(--soft); font-size: .85em; white-space: nowrap; }
.var { font-weight: 400; cursor: pointer; border-radius: 3px; padding: 0 1px; }
.var.use { background: var(--use); }
.var.definition { background: var(--mark); outline: 1px solid var(--soft); }
.op { font-style: normal; color: var(--op); font-weight: 600; cursor: default; }
.type { color: var(--type); } .string { color: var(--string); } .program { color: var(--link); }
.attribute, .keyword { color: var(--soft); }
#tip { position: fixed; z-index: 2; max-width: 46rem; padding: .4rem .6rem; border: 1px solid var(--line);
  border-radius: 6px; background: var(--page); box-shadow: 0 4px 16px rgb(0 0 0 / .25); white-space: pre-wrap;
  font: 12px/1.5 ui-monospace, monospace; pointer-events: none; }
"""

SCRIPT: Final = """
const tip = document.getElementById("tip"), root = document.documentElement;
const target = (event) => event.target.closest ? event.target.closest("[data-tip]") : null;
function show(element) {
  tip.textContent = element.dataset.tip; tip.hidden = false;
  const box = element.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = box.bottom + 6 + size.height < innerHeight;
  tip.style.left = Math.max(4, Math.min(box.left, innerWidth - size.width - 8)) + "px";
  tip.style.top = (below ? box.bottom + 6 : box.top - size.height - 6) + "px";
}
document.addEventListener("mouseover", (event) => {
  const e = target(event); if (e) show(e); else tip.hidden = true;
});
document.addEventListener("focusin", (event) => { const e = target(event); if (e) show(e); });
document.addEventListener("focusout", () => { tip.hidden = true; });
let chosen = null;
function choose(name) {
  document.querySelectorAll(".use, .definition").forEach((e) => e.classList.remove("use", "definition"));
  chosen = name === chosen ? null : name;
  if (!chosen) return;
  const all = document.querySelectorAll(`[data-var="${chosen}"]`);
  all.forEach((e, i) => e.classList.add(i ? "use" : "definition"));
}
document.addEventListener("click", (event) => {
  const e = event.target.closest("[data-var]"); if (e) choose(e.dataset.var); else if (chosen) choose(chosen);
});
document.addEventListener("keydown", (event) => {
  const name = event.target.dataset && event.target.dataset.var;
  if (event.key === "Enter" && name) choose(name);
});
document.getElementById("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const dark = (root.dataset.theme || system) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
});
"""
