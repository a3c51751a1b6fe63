"""The collectives in the text of a program that XLA compiled: which, bytes, members, and how often.

A collective of several operands is one, as it is one message. One inside a loop runs as often as XLA says it
knows; where it does not know that, or the text has a form that is not understood here, this is an error: a
count that leaves something out would flatter whoever is compared with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# XLA's names, and those of the same in `lax`.
NAMES: Final = {
    "all-reduce": "psum",
    "all-gather": "all_gather",
    "reduce-scatter": "psum_scatter",
    "all-to-all": "all_to_all",
    "collective-permute": "ppermute",
}
BYTES: Final = {"pred": 1, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_COMPUTATION: Final = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_EQUATION: Final = re.compile(
    r"^\s+(?:ROOT )?%[\w.\-]+ = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_CALLED: Final = re.compile(r"(?:calls|to_apply|body|condition|\w*_computation)=%([\w.\-]+)")
_MESH_GROUPS: Final = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^()]*(?:\([^()]*\))?\))? \{((?:'\w+'(?:, ?)?)+)\}"
)
_SEVERAL: Final = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective of a compiled program: the bytes that each device gives, in groups of so many."""

    name: str
    nbytes: int
    num_members: int
    times: int


def collectives(text: str) -> list[Collective]:
    """All that one device runs.

    Raises:
        ValueError: the text has a form that is not understood.
    """
    bodies: dict[str, list[re.Match[str]]] = {}
    entry, current = None, ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = header[2]
            bodies[current] = []
            entry = current if header[1] else entry
        elif equation := _EQUATION.match(line):
            bodies[current].append(equation)
    if entry is None:
        raise ValueError("the text has no entry")
    return list(_walk(bodies, entry, 1))


def _walk(bodies: dict[str, list[re.Match[str]]], name: str, times: int) -> Iterator[Collective]:
    for equation in bodies[name]:
        op, rest = equation["op"], equation["rest"]
        if op in NAMES:
            yield _collective(op, equation["type"], rest, times)
            continue
        if any(op.startswith(known) for known in NAMES):
            raise ValueError(f"{op} is not understood")
        called = _CALLED.findall(rest)
        called += [n.strip().lstrip("%") for found in _SEVERAL.findall(rest) for n in found.split(",")]
        found = [one for inner in called for one in _walk(bodies, inner, 1)]
        if not found:
            continue
        if op == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
            if trips is None:
                raise ValueError("a loop with collectives has no known trip count")
            inside = times * int(trips[1])
        elif op in ("call", "fusion", "async-start"):
            inside = times
        else:
            raise ValueError(f"collectives inside {op}, which may or may not run")
        for one in found:
            yield Collective(one.name, one.nbytes, one.num_members, one.times * inside)


def _collective(op: str, result: str, rest: str, times: int) -> Collective:
    members = 2 if op == "collective-permute" else _num_members(rest)
    given = sum(_nbytes(dtype, shape) for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result))
    # The types of operands do not stand in the text; they follow from that of the result.
    if op == "all-gather":
        given //= members
    elif op == "reduce-scatter":
        given *= members
    return Collective(NAMES[op], given, members, times)


def _nbytes(dtype: str, shape: str) -> int:
    if dtype not in BYTES:
        raise ValueError(f"the size of {dtype} is not known")
    return BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)


def _num_members(rest: str) -> int:
    """Devices of a group: `{{0,1},{2,3}}`, `[4,2]<=[8]`, or axes of a mesh, `mesh['a'=2,'b'=4] {'b'}`."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(found[1])
    if found := _MESH_GROUPS.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", found[2]))
    raise ValueError(f"groups that are not understood: {rest}")
