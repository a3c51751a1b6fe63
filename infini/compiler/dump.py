"""Files for people, written when the knob `dump` asks: one folder per program with an index.

    infini-dump/loss.1f9c2ab4/
      index.md                  what is here, pass by pass and kernel by kernel
      00.traced.ir              the program as it was traced
      03.simplify.ir            after a pass; one that changed nothing has no file
      kernels/01.tanh.tile      the tile program; .ll its LLVM text, .s its assembly
      triton/01.tanh_kernel.py  what a GPU would get, whatever the program was compiled for
      program.ll                the native program that calls the kernels

The knob holds names of passes, `kernels`, `llvm`, `assembly` and `triton`, or `all`. A folder is written
beside its place and renamed, so that nobody sees half of one.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

from infini.compiler import inspection as inspection_
from infini.compiler.inspection import Function, Inspection, Recorder
from infini.core import config, events, text
from infini.core.ir import Program

ALL: Final = "all"
STAGES: Final = {"kernels": ".tile", "llvm": ".ll", "assembly": ".s"}
TRITON: Final = "triton"
_TRIES: Final = 5


def recorder() -> Recorder | None:
    """What keeps the passes of one program, when the knob asks for any."""
    return Recorder() if config.get("dump") else None


def write(found: Inspection) -> Path:
    """Write the stages that the knob `dump` names; returns the folder."""
    wanted = frozenset(config.get("dump"))
    known = {s.name for s in found.snapshots} | STAGES.keys() | {ALL, TRITON}
    if unknown := sorted(wanted - known):
        events.emit(
            "dump-unknown",
            f"INFINI_DUMP names {', '.join(unknown)}; there are {', '.join(sorted(known))}",
            level="warning",
        )
    top = Path(config.get("dump_dir"))
    top.mkdir(parents=True, exist_ok=True)
    place = top / stem(found.program)
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=top))
    try:
        made.chmod(0o755)
        for name, content in files(found, wanted).items():
            path = made / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        _rename(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def stem(program: Program) -> str:
    """Name of the files of a program, for people and different for different programs."""
    return f"{_plain(program.name).strip('_') or 'program'}.{program.fingerprint[:8]}"


def _rename(made: Path, place: Path) -> None:
    """Put a folder where an older one may be; another process may do the same at this moment."""
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            made.rename(place)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        with contextlib.suppress(OSError):
            place.rename(old / "old")
        shutil.rmtree(old, ignore_errors=True)


def files(found: Inspection, wanted: Collection[str] = frozenset({ALL})) -> dict[str, str]:
    """The text of every file by its path in the folder."""
    made: dict[str, str] = {}
    rows = []
    chosen = {s.name for s in found.snapshots} if ALL in wanted else set(wanted)
    names = ["00.traced.ir"]
    programs = [found.program]
    for number, snapshot in enumerate(found.snapshots, 1):
        if snapshot.is_changed:
            names.append(f"{number:02}.{_plain(snapshot.name)}.ir")
            programs.append(snapshot.program)
        if snapshot.name in chosen:
            for name, program in zip(names[-2:], programs[-2:], strict=True):
                if snapshot.is_changed:
                    made.setdefault(name, _with_head(name, program))
        rows.append(_pass_row(number, snapshot, names[-1] if snapshot.name in chosen else ""))
    if ALL in wanted:
        made["00.traced.ir"] = _with_head("00.traced.ir", found.program)
    kernels = []
    for number, function in enumerate(found.functions, 1):
        stem = f"kernels/{number:02}.{_plain(function.name)}"
        texts = _function_files(found, function, wanted)
        made.update({stem + suffix: content for suffix, content in texts.items()})
        kernels.append(_kernel_row(number, function, stem, texts))
    if found.entry and {ALL, "llvm"} & set(wanted):
        made["program.ll"] = found.entry
    launched = []
    if {ALL, TRITON} & set(wanted):
        texts = {f"triton/{name}.py": content for name, content in _triton(found.program).items()}
        launched = [
            f"| [{Path(path).name}]({path}) | {content.splitlines()[0][2:]} |"
            for path, content in texts.items()
        ]
        made.update(texts)
    return {"index.md": _index(found, rows, kernels, launched, made), **dict(sorted(made.items()))}


def _triton(program: Program) -> dict[str, str]:
    """Texts for a GPU by name. Their emitter is loaded when someone asks: programs for CPUs do without."""
    found: dict[str, str] = importlib.import_module("infini.compiler.triton.texts").of_program(program)
    return found


def _with_head(name: str, program: Program) -> str:
    return f"# {name}\n{text.print_program(program)}\n"


def _function_files(found: Inspection, function: Function, wanted: Collection[str]) -> dict[str, str]:
    mark = "//" if "(aarch64" in found.target or "(arm64" in found.target else "#"
    texts = {
        ".tile": inspection_.comments(function, "#") + found.kernel_text(function) + "\n",
        ".ll": inspection_.comments(function, ";") + function.llvm + "\n",
        ".s": inspection_.comments(function, mark) + function.assembly + "\n",
    }
    if not function.section:
        del texts[".tile"]
    return {
        suffix: texts[suffix]
        for stage, suffix in STAGES.items()
        if suffix in texts and ({ALL, stage} & set(wanted))
    }


def _index(
    found: Inspection, rows: list[str], kernels: list[str], launched: list[str], made: dict[str, str]
) -> str:
    program = found.program
    lines = [
        f"# @{program.name}",
        "",
        f"Fingerprint {program.fingerprint}, backend {found.backend}"
        + (f", machine code for {found.target}" if found.target else ""),
        "",
        "## Passes",
        "",
        "`+` and `-` count equations that a pass added and removed, those inside loops included. The program",
        "before a pass is in the file of the last pass before it that has one.",
        "",
        "| | pass | equations | + | - | after it |",
        "|---:|---|---:|---:|---:|---|",
        f"| 0 | traced | {_count(program)} | | | {_link('00.traced.ir', made)} |",
        *rows,
    ]
    if kernels:
        lines += [
            "",
            "## Kernels",
            "",
            "Native functions in the order of their first call; equal kernels share one.",
            "",
            "| | kernel | uses | tasks | estimate | your lines | files |",
            "|---:|---|---:|---:|---:|---|---|",
            *kernels,
        ]
    if launched:
        lines += [
            "",
            "## For a GPU",
            "",
            "What passes for GPUs and the Triton emitter make of the program, in the order of launches.",
            "",
            "| file | |",
            "|---|---|",
            *launched,
        ]
    if "program.ll" in made:
        lines += ["", "[program.ll](program.ll) is the native program that calls them."]
    return "\n".join([*lines, ""])


def _link(name: str, made: Collection[str]) -> str:
    return f"[{name}]({name})" if name in made else ""


def _count(program: Program) -> int:
    return sum(1 for _ in inspection_.all_equations(program))


def _pass_row(number: int, snapshot: inspection_.Snapshot, name: str) -> str:
    shown = [f"{snapshot.num_new or ''}", f"{snapshot.num_gone or ''}"]
    after = f"[{name}]({name})" if name and snapshot.is_changed else ""
    after = after if snapshot.is_changed else "unchanged"
    return f"| {number} | {snapshot.name} | {_count(snapshot.program)} | {shown[0]} | {shown[1]} | {after} |"


def _kernel_row(number: int, function: Function, stem: str, texts: dict[str, str]) -> str:
    files = ", ".join(f"[{suffix}]({stem}{suffix}) {_size(content)}" for suffix, content in texts.items())
    lines = ", ".join(map(str, function.lines))
    return (
        f"| {number} | {function.name} | {len(function.equations)} | {function.num_tasks} "
        f"| {inspection_.duration(function.cost_ns)} | {lines} | {files} |"
    )


def _size(content: str) -> str:
    return f"{len(content.encode()) / 1000:.0f} kB" if len(content) >= 1000 else f"{len(content)} B"


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)
