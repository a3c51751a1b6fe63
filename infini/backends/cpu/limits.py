"""What the machine can do at most, measured on infini's pool by kernels of a few instructions: multiply-adds,
reading, and copying, from caches and from memory.

They are the best of several repeats: a limit is what can be reached, not what is usual.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.backends.cpu import objects, pool as pool_
from infini.compiler import disk_cache
from infini.compiler.llvm import target as target_

# Bytes read or copied at a time: sizes for the levels of caches, and one far beyond them.
WORKING_SETS: Final = (1 << 20, 8 << 20, 32 << 20, 128 << 20, 512 << 20)
_ACCUMULATORS: Final = 16  # latency times issue rate of every processor we know, with some to spare
_UNROLL: Final = 8
_SPARE: Final = 16  # float32 behind an array, so that it may begin at a multiple of 64 bytes
# Many short samples: on a machine that others use, some fall where nobody else computes.
REPEATS: Final = 60
_FEW_REPEATS: Final = 12  # when somebody waits
_SAMPLE_S: Final = 0.003
_KIND: Final = "choices"  # of entries of the disk cache: what was measured on this machine


@dataclass(frozen=True, slots=True)
class Limits:
    """Peaks of a machine with so many threads.

    Args:
        num_threads: threads that took part.
        flops_per_s: float32 operations, a multiply-add counted as two.
        read_bytes_per_s: by working set in bytes.
        copy_bytes_per_s: bytes read plus bytes written, by working set in bytes; the better of plain and
            streaming stores.
    """

    num_threads: int
    flops_per_s: float
    read_bytes_per_s: dict[int, float]
    copy_bytes_per_s: dict[int, float]

    def least_s(self, flops: float, read: float, written: float) -> float:
        """The shortest a program can take that does so many operations and moves so many bytes."""
        size = read + written
        pairs = min(read, written)
        rest_s = (max(read, written) - pairs) / _nearest(self.read_bytes_per_s, size)
        moving_s = 2 * pairs / _nearest(self.copy_bytes_per_s, size) + rest_s
        return max(flops / self.flops_per_s, moving_s)

    def better(self, other: Limits) -> Limits:
        """The better of two measurements of each limit."""

        def best(one: Mapping[int, float], two: Mapping[int, float]) -> dict[int, float]:
            return {size: max(rate, two.get(size, 0.0)) for size, rate in one.items()}

        return Limits(
            self.num_threads,
            max(self.flops_per_s, other.flops_per_s),
            best(self.read_bytes_per_s, other.read_bytes_per_s),
            best(self.copy_bytes_per_s, other.copy_bytes_per_s),
        )

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """For a record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Limits:  # Any: JSON
        """What `as_json` made, after a file or a pipe."""
        by_size = ("read_bytes_per_s", "copy_bytes_per_s")
        sizes = {name: {int(size): float(rate) for size, rate in found[name].items()} for name in by_size}
        return cls(int(found["num_threads"]), float(found["flops_per_s"]), **sizes)


def known(*, again: bool = False) -> Limits:
    """The limits of this machine with the threads of this process, measured when nobody did before; a second
    or two. What is on disk is replaced by what is measured again, each limit by the better one.
    """
    target = target_.host_target()
    parts = ("limits", target.cpu, target.features, str(pool_.shared().num_threads))
    key = hashlib.blake2b("\0".join(parts).encode(), digest_size=20).hexdigest()
    before = _found.get(key)
    if before is None and (stored := disk_cache.read(_KIND, key)) is not None:
        before = Limits.from_json(json.loads(stored))
    if before is None or again:
        found = measure(_FEW_REPEATS, WORKING_SETS[:-1])
        before = found if before is None else before.better(found)
        disk_cache.write(_KIND, key, json.dumps(before.as_json()).encode())
    _found[key] = before
    return before


_found: Final[dict[str, Limits]] = {}  # by processor and number of threads: a few entries in a process


def measure(repeats: int = REPEATS, sizes: Sequence[int] = WORKING_SETS) -> Limits:
    """Measure with the threads of the pool of this process; takes a few seconds."""
    target = target_.host_target()
    names = [f"infini_limit_{name}" for name in ("fma", "read", "copy", "stream")]
    library = objects.load([objects.compile_module(_text(target.lanes), target)], names)
    pool = pool_.shared()
    num_threads = pool.num_threads
    # A few tasks per thread, so that one that is late does not decide.
    tasks = 4 * num_threads
    iterations = 20_000
    seconds = _best(pool, library["infini_limit_fma"], (iterations, 0, 0), tasks, repeats)
    flops = tasks * iterations * _ACCUMULATORS * target.lanes * 2 / seconds
    read: dict[int, float] = {}
    copy: dict[int, float] = {}
    for size in sizes:
        source, sink = (np.ones(size // 8 + _SPARE, np.float32) for _ in range(2))
        step = _UNROLL * target.lanes * 4
        tasks = max(num_threads, size // (256 << 10))
        for name, rates, used in (
            ("read", read, size),
            ("copy", copy, size // 2),
            ("stream", copy, size // 2),
        ):
            # Reading walks over one array of the whole size, copying from one half to the other.
            array = np.ones(size // 4 + _SPARE, np.float32) if name == "read" else source
            count = used // tasks // step
            arguments = (count, _aligned(array), _aligned(sink))
            seconds = _best(pool, library[f"infini_limit_{name}"], arguments, tasks, repeats)
            rates[size] = max(
                rates.get(size, 0.0), count * step * tasks * (1 if name == "read" else 2) / seconds
            )
    return Limits(num_threads, flops, read, copy)


def _best(
    pool: pool_.Pool, function: int, arguments: tuple[int, int, int], tasks: int, repeats: int
) -> float:
    """Seconds of one run of all tasks, at best."""
    packed = (ctypes.c_int64 * 3)(*arguments)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        runs = 0
        while (elapsed := time.perf_counter() - started) < _SAMPLE_S or runs == 0:
            pool.run(function, ctypes.addressof(packed), tasks)
            runs += 1
        best = min(best, elapsed / runs) if runs > 1 else min(best, time.perf_counter() - started)
    return best


def _aligned(array: np.ndarray) -> int:
    """The first address in the array that vectors may be streamed to."""
    return -(-array.ctypes.data // 64) * 64


def _text(lanes: int) -> str:
    """Task functions (ptr {i64 count, ptr source, ptr sink}, i64 task), each with one loop."""
    vector = f"<{lanes} x float>"
    factor, addend = (f"splat (float {x})" for x in ("0x3FEFFFFFE0000000", "0x3E70000000000000"))
    fma = f"llvm.fma.v{lanes}f32"
    lines = [f"declare {vector} @{fma}({vector}, {vector}, {vector})"]
    lines += _function(
        "fma",
        vector,
        [f"{vector} [ splat (float 1.0), %entry ], [ %a{i}.next, %loop ]" for i in range(_ACCUMULATORS)],
        [
            f"%a{i}.next = call {vector} @{fma}({vector} %a{i}, {vector} {factor}, {vector} {addend})"
            for i in range(_ACCUMULATORS)
        ],
    )
    lines += _function(
        "read",
        vector,
        [f"{vector} [ zeroinitializer, %entry ], [ %a{i}.next, %loop ]" for i in range(_UNROLL)],
        [
            line
            for i in range(_UNROLL)
            for line in (
                f"%p{i} = getelementptr {vector}, ptr %from, i64 {i}",
                f"%x{i} = load {vector}, ptr %p{i}, align 64",
                f"%a{i}.next = fadd {vector} %a{i}, %x{i}",
            )
        ],
    )
    for name, hint in (("copy", ""), ("stream", ", !nontemporal !0")):
        lines += _function(
            name,
            vector,
            [],
            [
                line
                for i in range(_UNROLL)
                for line in (
                    f"%p{i} = getelementptr {vector}, ptr %from, i64 {i}",
                    f"%q{i} = getelementptr {vector}, ptr %to, i64 {i}",
                    f"%x{i} = load {vector}, ptr %p{i}, align 64",
                    f"store {vector} %x{i}, ptr %q{i}, align 64{hint}",
                )
            ],
        )
    return "\n".join([*lines, "!0 = !{i32 1}", ""])


def _function(name: str, vector: str, carried: list[str], body: list[str]) -> list[str]:
    """One task: `count` times the body, from the task's part of the source and to that of the sink."""
    lanes_bytes = f"ptrtoint (ptr getelementptr ({vector}, ptr null, i64 {_UNROLL}) to i64)"
    total = [f"%sum0 = fadd {vector} %a0.next, zeroinitializer"] if carried else []
    total += [f"%sum{i} = fadd {vector} %sum{i - 1}, %a{i}.next" for i in range(1, len(carried))]
    # The sum is stored where it is never: the loop must not be dead, and the caches must not see it.
    last = [
        f"%head = extractelement {vector} %sum{len(carried) - 1}, i64 0",
        "%odd = fcmp oeq float %head, 0x40F8697DE0000000",
        "br i1 %odd, label %keep, label %done",
        "keep:",
        "store float %head, ptr %source",
        "br label %done",
    ]
    return [
        f"define void @infini_limit_{name}(ptr %args, i64 %task) {{",
        "entry:",
        "%count = load i64, ptr %args",
        "%source.place = getelementptr i64, ptr %args, i64 1",
        "%source = load ptr, ptr %source.place",
        "%sink.place = getelementptr i64, ptr %args, i64 2",
        "%sink = load ptr, ptr %sink.place",
        f"%bytes = mul i64 %count, {lanes_bytes}",
        "%offset = mul i64 %task, %bytes",
        "%source.start = getelementptr i8, ptr %source, i64 %offset",
        "%sink.start = getelementptr i8, ptr %sink, i64 %offset",
        "br label %loop",
        "loop:",
        "%i = phi i64 [ 0, %entry ], [ %i.next, %loop ]",
        *(f"%a{i} = phi {phi}" for i, phi in enumerate(carried)),
        f"%step = mul i64 %i, {lanes_bytes}",
        "%from = getelementptr i8, ptr %source.start, i64 %step",
        "%to = getelementptr i8, ptr %sink.start, i64 %step",
        *body,
        "%i.next = add i64 %i, 1",
        "%more = icmp ult i64 %i.next, %count",
        "br i1 %more, label %loop, label %end",
        "end:",
        *(total + last if carried else ["br label %done"]),
        "done:",
        "ret void",
        "}",
    ]


def _nearest(rates: Mapping[int, float], size: float) -> float:
    """The rate of the smallest working set that holds so many bytes, or of the largest."""
    return rates[min((s for s in rates if s >= size), default=max(rates))]
