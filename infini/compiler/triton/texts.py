"""The Triton text of a whole program, for people: what a GPU would get, on any machine and without Triton."""

from __future__ import annotations

from infini.compiler import pipeline
from infini.compiler.triton import lower
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import GENERIC, Target
from infini.core import errors
from infini.core.ir import Program


def of_program(program: Program, target: Target = GENERIC) -> dict[str, str]:
    """The text of every kernel of a program by its number and name; equal kernels stand once.

    Args:
        program: as it was traced.
        target: what the text is for.
    """
    try:
        # It watches nothing, so that looking at a program does not write files about it.
        fused = pipeline.run(program, lower.has_route, backend="triton", observe=lambda *_: None)
        found = [source for emitted in lower.of_program(fused, target) for source in emitted.sources]
    except errors.LoweringError as error:
        return {"00.refused": "".join(f"# {line}\n" for line in str(error).splitlines())}
    once: dict[str, TritonSource] = {}
    for source in found:
        once.setdefault(source.key, source)
    return {
        f"{number:02}.{source.function_name}": with_launch(source)
        for number, source in enumerate(once.values(), 1)
    }


def with_launch(source: TritonSource) -> str:
    """A text with a line above it that says how it is launched."""
    grid = " x ".join(map(str, source.grid)) + (" program" if source.grid == (1,) else " programs")
    warps = f"{source.num_warps} warp" + ("" if source.num_warps == 1 else "s")
    return f"# launched with {grid} of {warps}\n\n{source.text}"


def joined(program: Program, target: Target = GENERIC) -> str:
    """The texts of a program, one after the other."""
    return "\n\n".join(of_program(program, target).values())
