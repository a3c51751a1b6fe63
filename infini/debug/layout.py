"""The page of `infini.debug.show`: the user's lines on the left, the stages of the compiler on the right.

Programs are fragments of `core.html`. What is large is compressed and unpacked by the browser when it is
opened or searched.
"""

from __future__ import annotations

import base64
import gzip
import html
import linecache
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Final

from infini.compiler import inspection as inspection_
from infini.compiler.inspection import Function, Inspection, Snapshot
from infini.core import html as html_, ir, text
from infini.core.source import Where

_PACK: Final = 20_000  # characters from which on a part is compressed
_CONTEXT: Final = 2  # lines of the user around those that the program has


def page(found: Inspection) -> str:
    """The whole page."""
    return _Page(found).whole()


class _Page:
    def __init__(self, found: Inspection) -> None:
        self.found = found
        programs = [found.program, *(s.program for s in found.snapshots)]
        self.lines = Counter(w for p in programs[:1] for w in _wheres(p))
        self.places: dict[tuple[str, int], str] = {}
        files: dict[str, int] = {}
        for where in inspection_.lines_of(found.program.equations):
            number = files.setdefault(where.file, len(files))
            self.places[where.file, where.line] = f"{number}:{where.line}"

    def label(self, where: Where) -> str | None:
        """What connects a line of the user with what became of it."""
        return self.places.get((where.file, where.line))

    def whole(self) -> str:
        found = self.found
        name = html.escape(f"@{found.program.name}")
        facts = [f"backend {found.backend}"] + ([found.target] if found.target else [])
        facts += [f"fingerprint {found.program.fingerprint[:12]}"]
        source = self.source()
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: stages</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<style>{html_.STYLE}{_file('page.css')}</style></head>\n"
            f'<body><header><h1>{name}</h1><p class="summary">{html.escape(", ".join(facts))}</p>'
            '<input id="search" type="search" placeholder="search in all stages" spellcheck="false">'
            '<output id="hits"></output>'
            '<button type="button" id="theme" title="light or dark">&#9680;</button></header>\n'
            f'{self.path()}<div class="columns{"" if source else " alone"}">{source}'
            f"<main>{self.traced()}{self.passes()}{self.kernels()}{self.entry()}</main></div>"
            '<div id="tip" role="tooltip" hidden></div>\n'
            f"<script>{html_.SCRIPT}{_file('page.js')}</script></body></html>\n"
        )

    # --- the user's lines -------------------------------------------------------------------------

    def source(self) -> str:
        """The user's lines with those around them, by file; empty when none can be read."""
        by_file: dict[str, set[int]] = {}
        for file, line in self.places:
            if file.startswith("<") or Path(file).is_file():
                by_file.setdefault(file, set()).add(line)
        parts = [self._lines(file, lines) for file, lines in by_file.items()]
        return f"<aside><h2>your lines</h2>{''.join(parts)}</aside>" if parts else ""

    def _lines(self, file: str, lines: set[int]) -> str:
        content = linecache.getlines(file)
        counts = Counter(dict.fromkeys(lines, 0))
        for where, count in self.lines.items():
            if where.file == file:
                counts[where.line] += count
        most = max(counts.values(), default=1) or 1
        shown = sorted({n for at in lines for n in range(at - _CONTEXT, at + _CONTEXT + 1)})
        rows, before = [], 0
        for number in shown:
            if not 0 < number <= len(content):
                continue
            gap = ' class="gap"' if before and number != before + 1 else ""
            before = number
            code = html.escape(content[number - 1].rstrip())
            label = self.places.get((file, number))
            if label is None:
                rows.append(f"<li{gap}><i>{number}</i><code>{code}</code></li>")
                continue
            tip = f"{counts[number]} equations of the traced program; a click keeps the marks"
            width = f"{3.4 * counts[number] / most:.2f}rem"
            rows.append(
                f'<li{gap} class="own" data-line="{label}" data-source title="{tip}"><i>{number}</i>'
                f'<code>{code}</code><u style="width:{width}"></u></li>'
            )
        return f'<h3 title="{html.escape(file)}">{html.escape(Path(file).name)}</h3><ol>{"".join(rows)}</ol>'

    # --- stages -----------------------------------------------------------------------------------

    def path(self) -> str:
        """The way through the compiler in one line."""
        found = self.found
        steps = [_step("traced", "traced", str(_count(found.program)))]
        for number, snapshot in enumerate(found.snapshots, 1):
            if snapshot.is_changed:
                steps.append(_step(f"pass{number}", snapshot.name, str(_count(snapshot.program))))
            else:
                steps.append(
                    f'<span class="still" data-tip="{html.escape(snapshot.name)}: unchanged"></span>'
                )
        if found.functions:
            steps.append(_step("kernels", "kernels", str(len(found.functions))))
        return f'<nav id="path">{"".join(steps)}</nav>'

    def traced(self) -> str:
        """The program as it came."""
        program = self.found.program
        note = f"{_count(program)} equations"
        return _stage("traced", "traced", note, self._program(program, "traced", None), is_open=True)

    def passes(self) -> str:
        """Each pass that changed something; the last one, in kernels, is open."""
        parts, before = [], self.found.program
        last = len(self.found.snapshots)
        for number, snapshot in enumerate(self.found.snapshots, 1):
            if snapshot.is_changed:
                body = self._program(snapshot.program, f"pass{number}", before)
                parts.append(
                    _stage(f"pass{number}", snapshot.name, _change(snapshot), body, is_open=number == last)
                )
            before = snapshot.program
        return "".join(parts)

    def _program(self, program: ir.Program, prefix: str, before: ir.Program | None) -> str:
        left = Counter(map(inspection_.equation_key, inspection_.all_equations(before))) if before else None

        def is_new(equation: ir.Equation) -> bool:
            if left is None:
                return False
            key = inspection_.equation_key(equation)
            left[key] -= 1
            return left[key] < 0

        sections = text.sections(program, lines=False)
        framed = {s.name for s in sections if s.keyword == "kernel"}
        context = html_.Context(
            f"{prefix}-",
            self.label,
            is_new,
            lambda name: f"#kernel-{name}" if name in framed else f"#{prefix}-{name}",
        )
        return html_.fragment([s for s in sections if s.name not in framed], context)

    # --- kernels ----------------------------------------------------------------------------------

    def kernels(self) -> str:
        """Every native function with its texts."""
        functions = self.found.functions
        if not functions:
            return ""
        costs = [f.cost_ns * max(1, len(f.equations)) for f in functions]
        total = sum(costs) or 1.0
        sections = {s.name: s for s in text.sections(self.found.fused, lines=False)}
        cards = [
            self._card(function, sections.get(function.section), cost / total)
            for function, cost in zip(functions, costs, strict=True)
        ]
        head = (
            '<div class="card head"><span>kernel</span><span>uses</span><span>tasks</span>'
            "<span>estimate</span><span>share</span><span>your lines</span></div>"
        )
        note = f"{len(functions)} native functions in the order of their first call"
        return _stage("kernels", "kernels", note, head + "".join(cards), is_open=True, pack=False)

    def _card(self, function: Function, section: text.Section | None, share: float) -> str:
        wheres = {self.label(w): w for w in function.lines if self.label(w)}
        lines = "".join(
            f'<b class="chip" data-line="{label}" data-tip="{html.escape(inspection_.source_line(w))}">'
            f"{html.escape(f'{Path(w.file).name}:{w.line}')}</b>"
            for label, w in wheres.items()
        )
        tile = ""
        if section is not None:
            tile = html_.fragment([section], html_.Context(f"tile-{function.symbol}-", self.label))
        else:
            tile = "".join(
                f'<p class="formula"><code>{html.escape(key)}</code></p>'
                for key in dict.fromkeys(map(inspection_.equation_key, function.equations))
            )
        body = tile + _text("LLVM", function.llvm, "llvm") + _text("assembly", function.assembly, "assembly")
        estimate = inspection_.duration(function.cost_ns)
        return (
            f'<details class="kernel" id="kernel-{html.escape(function.name)}"><summary class="card">'
            f"<span><code>{html.escape(function.name)}</code></span><span>{len(function.equations)}</span>"
            f"<span>{function.num_tasks}</span><span>{estimate}</span>"
            f'<span class="bar" title="{share:.1%} of the estimates"><u style="width:{share:.1%}"></u></span>'
            f'<span class="lines">{lines}</span></summary>'
            f'<p class="symbol">{html.escape(function.symbol)}</p>{body}</details>'
        )

    def entry(self) -> str:
        """The native program that calls the kernels."""
        if not self.found.entry:
            return ""
        note = (
            f"the native program that calls the kernels, {len(self.found.entry.splitlines())} lines of LLVM"
        )
        return _stage("entry", "entry", note, _pre(self.found.entry, "llvm"))


def _file(name: str) -> str:
    return resources.files("infini.debug").joinpath(name).read_text(encoding="utf-8")


def _wheres(program: ir.Program) -> Iterable[Where]:
    return (e.where for e in inspection_.all_equations(program) if e.where is not None)


def _count(program: ir.Program) -> int:
    return sum(1 for _ in inspection_.all_equations(program))


def _change(snapshot: Snapshot) -> str:
    gone = f'<s class="gone">&minus;{snapshot.num_gone}</s>' if snapshot.num_gone else ""
    added = f'<s class="added">+{snapshot.num_new}</s>' if snapshot.num_new else ""
    return f"{_count(snapshot.program)} equations {added} {gone}"


def _step(target: str, name: str, number: str) -> str:
    return f'<a href="#{target}"><b>{html.escape(name)}</b><small>{number}</small></a>'


def _stage(name: str, title: str, note: str, body: str, *, is_open: bool = False, pack: bool = True) -> str:
    """A stage that can be opened; `note` is HTML."""
    body = _packed(body) if pack else body
    return (
        f'<details class="stage" id="{name}"{" open" if is_open else ""}>'
        f"<summary><h2>{html.escape(title)}</h2>"
        f'<span class="note">{note}</span></summary><div class="body">{body}</div></details>'
    )


def _text(title: str, content: str, kind: str) -> str:
    """Machine text below a kernel."""
    note = f"{len(content.splitlines())} lines"
    return (
        f'<details class="text"><summary>{title} <span class="note">{note}</span></summary>'
        f"{_packed(_pre(content, kind))}</details>"
    )


def _pre(content: str, kind: str) -> str:
    return f'<pre class="{kind}">{html.escape(content)}</pre>'


def _packed(content: str) -> str:
    """HTML that the browser unpacks; short ones stay as they are."""
    if len(content) < _PACK:
        return content
    data = base64.b64encode(gzip.compress(content.encode(), 9, mtime=0)).decode()
    return f'<template data-packed="{data}"></template>'
