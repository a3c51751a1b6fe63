"""`python -m infini.core.ir FILE`: look at a program in a file, check it, run it, compare it with another.

Operations are those that `import infini` registers; backends come from the registry. Exit code 1 says that
the program is not well formed, that a backend computes something else than the reference, or that programs
differ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from infini.core import (
    array,
    backend as backend_,
    check as check_,
    config,
    difference,
    dtypes,
    errors,
    execute,
    html as html_,
    ir,
    mesh as mesh_,
    text,
)

REFERENCE: Final = "reference"
_EPSILONS: Final = (
    512.0  # allowed between a backend and the reference: a program of several operations in a row
)


app: Final = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    file: Annotated[Path, typer.Argument(help="File with a program in text form; `-` reads standard input.")],
    *,
    check: Annotated[bool, typer.Option("--check", help="Type every equation again.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Write FILE.html, a page to look around in.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Run it and compare with the reference.")] = False,
    diff: Annotated[Path | None, typer.Option("--diff", metavar="OTHER", help="Compare with OTHER.")] = None,
    backend: Annotated[str, typer.Option(help="What --run runs on; empty picks the default.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the arguments of --run.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Where --html writes.")] = None,
) -> None:
    """Look at a program; without options it is printed in the form that infini prints."""
    try:
        program = _read(file)
        is_fine = True
        if check:
            check_.check(program)
            typer.echo(f"@{program.name}: {_count(program)} equations, well formed")
        if html:
            target = output or Path(f"{file}.html" if str(file) != "-" else "program.html")
            target.write_text(html_.page(program, title=f"@{program.name} in {file.name}"), encoding="utf-8")
            typer.echo(f"wrote {target}")
        if run:
            is_fine &= _run(program, backend, seed)
        if diff is not None:
            is_fine &= _diff(program, _read(diff))
    except errors.InfiniError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if not (check or html or run or diff):
        typer.echo(text.print_program(program))
    if not is_fine:
        raise typer.Exit(1)


def _read(file: Path) -> ir.Program:
    if str(file) == "-":
        return text.parse(sys.stdin.read(), file="standard input")
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    return text.parse(content, file=str(file))


def _count(program: ir.Program) -> int:
    """Number of equations, those of each different body included."""
    return sum(len(section.program.equations) for section in text.sections(program))


# --- running --------------------------------------------------------------------------------------


def random_arguments(program: ir.Program, seed: int) -> list[np.ndarray]:
    """Arguments for a program: floats between -2 and 2, integers from 0 to 7, the same for the same seed."""
    return [_random(type_, np.random.default_rng((seed, n))) for n, type_ in enumerate(program.in_types)]


def _random(type_: ir.ArrayType, rng: np.random.Generator) -> np.ndarray:
    if type_.dtype in dtypes.COMPLEX:
        numbers = rng.uniform(-2, 2, (2, *type_.shape))
        return (numbers[0] + 1j * numbers[1]).astype(type_.dtype)
    if type_.dtype in dtypes.FLOATS:
        return rng.uniform(-2, 2, type_.shape).astype(type_.dtype)
    limit = 2 if type_.dtype == dtypes.bool_ else 8
    return np.asarray(rng.integers(0, limit, type_.shape)).astype(type_.dtype)


def _run(program: ir.Program, name: str, seed: int) -> bool:
    check_.check(program)
    arguments = random_arguments(program, seed)
    found, device = _results(program, arguments, name)
    expected, _ = _results(program, arguments, REFERENCE)
    typer.echo(f"@{program.name} on {device}, compared with the reference")
    table = Table()
    for column in ("result", "type", "largest difference", "verdict"):
        table.add_column(column)
    is_fine = True
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        largest, is_same = _compare(one, other)
        is_fine &= is_same
        row = (str(number), str(program.out_types[number]), f"{largest:.3g}")
        table.add_row(*row, "equal" if is_same else "DIFFERENT")
    Console(highlight=False).print(table)
    return is_fine


def _results(
    program: ir.Program, arguments: list[np.ndarray], name: str
) -> tuple[list[np.ndarray], backend_.Device]:
    mesh = _mesh(program)
    with config.config(cpu_devices=max(config.get("cpu_devices"), mesh.size if mesh else 1)):
        device = backend_.local_devices(name)[0] if name else backend_.default_device()
        with config.config(device=str(device)):
            arrays = [array.from_host(x, keep_dtype=True) for x in arguments]
            results = execute.run(program, arrays, backend_.CompileOptions(mesh=mesh))
            return [np.asarray(result) for result in results], device


def _mesh(program: ir.Program) -> mesh_.AbstractMesh | None:
    """The mesh that an equation names, if any."""
    for equation in program.equations:
        if (found := equation.attrs.get("mesh")) is not None:
            assert isinstance(found, mesh_.AbstractMesh)
            return found
        for inner in equation.programs:
            if (found := _mesh(inner)) is not None:
                return found
    return None


def _compare(found: np.ndarray, expected: np.ndarray) -> tuple[float, bool]:
    """The largest difference, and whether it is within what the dtype allows; NaN equals NaN."""
    bound = _EPSILONS * dtypes.epsilon(found.dtype) if found.dtype in dtypes.INEXACT else 0.0
    if found.dtype not in dtypes.INEXACT:
        distances = [abs(int(a) - int(b)) for a, b in zip(found.flat, expected.flat, strict=True) if a != b]
        return float(max(distances, default=0)), not distances
    wide = np.complex128 if found.dtype in dtypes.COMPLEX else np.float64
    one, other = found.astype(wide), expected.astype(wide)
    with np.errstate(all="ignore"):
        is_same = np.isclose(one, other, rtol=bound, atol=bound, equal_nan=True)
        distance = np.abs(one - other)
    return float(distance[np.isfinite(distance)].max(initial=0.0)), bool(is_same.all())


# --- comparing ------------------------------------------------------------------------------------


def _diff(first: ir.Program, second: ir.Program) -> bool:
    found = difference.compare(first, second)
    typer.echo(difference.to_text(found) if found else "the programs are structurally equal")
    return not found


if __name__ == "__main__":
    app()
