"""What Triton text is written for: the facts of a processor and of the Triton that compiles for it.

Emitters take a `Target`. Text that needs a capability which a target lacks is written in another way where
there is one; elsewhere `LoweringError` names the capability, the operation and the target. Adapters of
vendors make targets of their own. A grid larger than the target's is folded: into several dimensions, or
into a loop.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from infini.core import errors

# What a processor, or the Triton for it, may lack. The last five are names of Triton's language that are
# newer than 3.0 or that some forks leave out; `language` says which.
Capability: TypeAlias = Literal[
    "float64", "int64", "bfloat16", "float8", "dot", "atomic_cas",
    "block_pointers", "tensor_descriptors", "gather", "scaled_dot", "inline_assembly",
]  # fmt: skip
CAPABILITIES: Final[frozenset[Capability]] = frozenset(get_args(Capability))
_INT32_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Target:
    """A processor as the emitters see it.

    Args:
        name: for people, such as `sm_90`.
        platform: Triton's name of the family of processors, such as `cuda` or `hip`.
        arch: Triton's name of the processor in that family, such as 90 or `gfx942`.
        binary: what its compiler makes, such as `cubin`.
        warp_size: threads of a warp.
        shared_bytes: memory that the threads of a program share.
        capabilities: what it has.
        grid: most programs along x, y and z.
        tile_rank: most dimensions of a tile.
        max_tile: most elements of a tile.
        max_warps: most warps of a program.

    Example:
        >>> target_of("sm_90").warp_size
        32
    """

    name: str
    platform: str
    arch: int | str
    binary: str
    warp_size: int
    shared_bytes: int
    capabilities: frozenset[Capability]
    grid: tuple[int, int, int] = (_INT32_MAX, 65535, 65535)
    tile_rank: int = 8
    max_tile: int = 1 << 16
    max_warps: int = 16

    def has(self, capability: Capability) -> bool:
        """Whether it has a capability."""
        return capability in self.capabilities


_COMMON: Final[frozenset[Capability]] = frozenset(
    {"float64", "int64", "bfloat16", "dot", "atomic_cas", "block_pointers", "inline_assembly"}
)


def nvidia(capability: int) -> Target:
    """A GPU of NVIDIA, by its compute capability times ten."""
    shared = {80: 163, 86: 99, 87: 163, 89: 99, 120: 99}.get(capability, 227 if capability >= 90 else 99)
    newer: set[Capability] = {"gather", "float8"} if capability >= 89 else {"gather"}
    newer |= {"tensor_descriptors"} if capability >= 90 else set()
    newer |= {"scaled_dot"} if capability >= 100 else set()
    return Target(f"sm_{capability}", "cuda", capability, "cubin", 32, shared << 10, _COMMON | newer)


def amd(arch: str) -> Target:
    """A GPU of AMD, by the name of its instruction set."""
    is_wide = arch.startswith("gfx9")
    shared = 160 if arch.startswith("gfx95") else 64
    newer: set[Capability] = {"gather", "float8"} if arch >= "gfx94" or not is_wide else {"gather"}
    return Target(arch, "hip", arch, "hsaco", 64 if is_wide else 32, shared << 10, _COMMON | newer)


MIN_CAPABILITY: Final = 80  # of NVIDIA's, times ten: older ones are not compiled for
# The language of Triton 3.0, and what every processor is expected to have: the usual target of the emitters.
GENERIC: Final = Target(
    "generic", "cuda", 80, "cubin", 32, 99 << 10, _COMMON - {"block_pointers", "inline_assembly"}
)

_KNOWN: Final = {
    target.name: target
    for target in (
        GENERIC,
        *map(nvidia, (80, 86, 89, 90, 100, 120)),
        *map(amd, ("gfx90a", "gfx942", "gfx1100")),
    )
}


def target_of(name: str) -> Target:
    """The target of a name.

    Raises:
        LoweringError: there is none.
    """
    if name not in _KNOWN:
        raise errors.LoweringError(f"there is no target {name!r}", expected=", ".join(_KNOWN))
    return _KNOWN[name]


def require(target: Target, needed: Collection[Capability], what: str) -> None:
    """Check that a target has what some text needs.

    Args:
        target: the target.
        needed: capabilities.
        what: the operation or kernel that needs them.

    Raises:
        LoweringError: it lacks one.
    """
    missing = sorted(set(needed) - target.capabilities)
    if missing:
        raise errors.LoweringError(
            f"{what} needs the capability {missing[0]!r}, which the target {target.name} lacks",
            got=f"{target.name} with {', '.join(sorted(target.capabilities)) or 'no capabilities'}",
            expected=", ".join(missing),
            fix=_FIXES.get(missing[0], "choose a target that has it"),
        )


_FIXES: Final[dict[str, str]] = {
    "float64": "compute in float32",
    "int64": "use 32-bit integers, and arrays of fewer than 2^31 elements",
    "bfloat16": "use float16 or float32",
    "atomic_cas": "say unique_indices=True where no place repeats, or combine in float32 by addition",
}


# --- grids ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folded:
    """How a logical line of programs is launched.

    Args:
        grid: programs along x, and y and z where there are any.
        step: programs that are launched, when each of them walks the line with this stride; 0 when each
            runs once.
        is_ragged: whether more programs are launched than there are.
    """

    grid: tuple[int, ...]
    step: int = 0
    is_ragged: bool = False


def fold(num_programs: int, target: Target) -> Folded:
    """The launch of a number of programs: one dimension where they fit, several where these have room, and a
    loop in each program elsewhere.
    """
    x, y, z = target.grid
    if num_programs <= x:
        return Folded((num_programs,))
    if num_programs <= _INT32_MAX and num_programs <= x * y * z:
        rows = -(-num_programs // x)
        grid = (x, rows) if rows <= y else (x, y, -(-rows // y))
        if math.prod(grid) <= _INT32_MAX:
            return Folded(grid, is_ragged=math.prod(grid) != num_programs)
    return Folded((x,), step=x)
