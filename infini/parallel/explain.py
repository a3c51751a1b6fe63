"""`explain_sharding`: what the partitioner made of a function, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from infini.compiler import partition
from infini.core import errors, ir, mesh as mesh_, sharding, text, tree
from infini.core.array import Array
from infini.transforms import staging


def explain_sharding(
    f: Callable[..., Any], *args: Any, mesh: sharding.Mesh | None = None
) -> str:  # Any: pytrees
    """The placement of arguments and results, every collective with its bytes, reason and line, and the
    local program.

    Args:
        f: function, or a jitted or sharded one.
        *args: arguments; those that are on a mesh are taken as they are placed.
        mesh: the mesh; that of the arguments or of the function when absent.

    Raises:
        ValueMismatchError: there is no mesh.
    """
    jitted = f if isinstance(f, staging.Jitted) else staging.jit(f)
    lowered = jitted.lower(*args)
    leaves = tree.leaves(args)
    placed = [x.sharding if isinstance(x, Array) else None for x in leaves]
    found = next((s.mesh for s in placed if isinstance(s, sharding.NamedSharding)), mesh)
    axes = lowered.traced.runner.options.mesh if found is None else found.abstract
    if axes is None:
        raise errors.ValueMismatchError(
            "explain_sharding needs a mesh", fix="pass mesh=, or put an argument on one"
        )
    captured: list[mesh_.Spec | None] = [None] * (len(lowered.program.params) - len(leaves))
    specs = [s.spec if isinstance(s, sharding.NamedSharding) else None for s in placed]
    return describe(lowered.program, partition.partition(lowered.program, axes, [*captured, *specs]))


def describe(program: ir.Program, found: partition.Partitioned) -> str:
    """Text about a partitioned program."""
    sizes = ", ".join(f"{name}={size}" for name, size in found.mesh.shape.items())
    lines = [f"@{program.name} over {sizes}"]
    for title, types, specs in (
        ("argument", program.in_types, found.in_specs),
        ("result", program.out_types, found.out_specs),
    ):
        lines += [
            f"  {title} {i}: {t} {mesh_.as_p(s)!r}" for i, (t, s) in enumerate(zip(types, specs, strict=True))
        ]
    totals = Counter((c.name, c.axes) for c in found.collectives)
    lines += [f"  {count} x {name} over {', '.join(axes)}" for (name, axes), count in sorted(totals.items())]
    lines += [
        f"  {c.name} over {', '.join(c.axes)}: {c.nbytes} bytes for {c.reason}, {c.where or 'no line'}"
        for c in found.collectives
    ]
    return "\n".join([*lines, "", text.print_program(found.program)])
