"""Operations of `lax.linalg`: each task copies matrices and calls LAPACK for one after another.

The routines are symbols that the backend gives addresses to (`library_symbols`), with Fortran's calling
convention: every argument by reference, matrices by columns, lengths of strings at the end. A matrix by
rows is the transposed one by columns, so `cholesky` and `triangular_solve` ask for the other triangle; the
other operations are declared by columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final

import numpy as np

from infini.compiler.llvm import builder as b, movement
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.library_symbols import LAPACK_PREFIX
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import align
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs

MAX_TASKS: Final = 64  # each has memory of its own
BLOCK: Final = 64  # columns that LAPACK treats together, at most
FLOP_NS: Final = 0.2
CALL_NS: Final = 2000.0

_LETTERS: Final = {
    dtypes.float32: "s", dtypes.float64: "d", dtypes.complex64: "c", dtypes.complex128: "z",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Matrices:
    """One task's matrices: `at(i)` is where the i-th array of the operation has the matrix of this turn."""

    f: Function
    dtype: np.dtype
    pointers: tuple[Value, ...]
    memory: Value

    @property
    def is_complex(self) -> bool:
        """Whether elements are pairs."""
        return self.dtype in dtypes.COMPLEX

    @property
    def real_bytes(self) -> int:
        """Bytes of a real number of this precision."""
        return self.dtype.itemsize // (2 if self.is_complex else 1)

    def integer(self, number: int) -> Value:
        """Where an int32 with this value is."""
        place = self.f.allocate(4)
        self.f.store(self.f.constant(number, b.I32), place)
        return place

    def call(self, name: str, *arguments: str | int | Value) -> None:
        """Call a routine of this dtype; texts and numbers are passed by reference."""
        f = self.f
        places = []
        for argument in arguments:
            if isinstance(argument, str):
                place = f.allocate(1)
                f.do(f"store i8 {ord(argument)}, ptr {place}, align 1")
                places.append(place)
            else:
                places.append(self.integer(argument) if isinstance(argument, int) else argument)
        lengths = ["i64"] * sum(isinstance(a, str) for a in arguments)
        symbol = f"@{LAPACK_PREFIX}{_LETTERS[self.dtype]}{name}_"
        f.declare(f"declare void {symbol}({', '.join(['ptr'] * len(places) + lengths)})")
        passed = [*(f"ptr {place}" for place in places), *(f"{length} 1" for length in lengths)]
        f.do(f"call void {symbol}({', '.join(passed)})")

    def one(self) -> Value:
        """Where the number one is."""
        place = self.f.allocate(self.dtype.itemsize)
        element = b.scalar("float" if self.real_bytes == 4 else "double")
        self.f.store(self.f.constant(1.0, element), place)
        if self.is_complex:
            self.f.store(self.f.constant(0.0, element), self.f.at(place, 1, element.element))
        return place

    def report(self) -> Value:
        """Where a routine says whether it failed."""
        return self.integer(0)

    def fill_if_failed(self, report: Value, *arrays: tuple[Value, int]) -> None:
        """Make arrays NaN, given with their bytes, when a routine has reported a failure."""
        f = self.f
        with f.when(f.compare("ne", f.load(report, b.I32), f.constant(0, b.I32))):
            bits = b.scalar(f"i{8 * self.real_bytes}")
            nan = np.array(np.nan, f"f{self.real_bytes}").view(f"i{self.real_bytes}")
            for place, nbytes in arrays:
                movement.fill_run(f, place, f.constant(int(nan), bits), nbytes // self.real_bytes, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Pieces of a task's memory, in bytes."""

    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """All of it."""
        return sum(map(align, self.sizes))

    def of(self, f: Function, memory: Value) -> list[Value]:
        """Where each piece starts."""
        starts = [sum(map(align, self.sizes[:i])) for i in range(len(self.sizes))]
        return [f.at(memory, start, "i8") for start in starts]


Write = Callable[[Matrices], None]


def _tasks(
    name: str,
    in_types: tuple[ArrayType, ...],
    items: tuple[int, ...],
    *,
    flops: float,
    memory: int = 0,
    write: Write,
) -> tuple[TaskFunction, ...]:
    """A task function that walks over the loop dimensions.

    Args:
        name: for the symbol.
        in_types: types of the operands.
        items: bytes of one matrix of each operand and result.
        flops: work for one matrix.
        memory: bytes that one matrix needs meanwhile.
        write: writes the code for one matrix.
    """
    count = math.prod(in_types[0].shape[:-2])
    each_ns = CALL_NS + FLOP_NS * flops
    found = movement.Chunks.of(count, each_ns)
    chunks = movement.Chunks(count, max(found.per_task, -(-count // MAX_TASKS)))

    def body(f: Function, pointers: list[Value], task: Value) -> None:
        room = pointers[-1]
        own = f.at(room, f.mul(task, align(memory)), "i8") if memory and chunks.num_tasks > 1 else room
        with chunks.loop(f, task) as number:
            places = [f.at(p, _times(f, number, n), "i8") for p, n in zip(pointers, items, strict=False)]
            write(Matrices(f, in_types[0].dtype, tuple(places), own))

    num_arrays = len(items) + (1 if memory else 0)
    task = movement.make_task(name, num_arrays, chunks.num_tasks, count * each_ns, body)
    return (dataclasses.replace(task, scratch_bytes=chunks.num_tasks * align(memory)),)


def _times(f: Function, number: Int, nbytes: int) -> Int:
    return f.mul(number, nbytes)


# --- operations by rows ------------------------------------------------------------------------------


def cholesky(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """`potrf` of the lower triangle, which is the upper one by columns; the other is zero afterwards."""
    (x,) = types
    n, width = x.shape[-1], x.dtype.itemsize
    nbytes = n * n * width

    def write(at: Matrices) -> None:
        f, (source, out) = at.f, at.pointers
        report = at.report()
        movement.copy_bytes(f, out, source, nbytes)
        at.call("potrf", "U", n, out, n, report)
        at.fill_if_failed(report, (out, nbytes))
        bits = b.scalar(f"i{8 * at.real_bytes}")
        per_element = 2 if at.is_complex else 1
        with f.loop(0, n) as row:
            first = f.add(f.mul(row.index, n + 1), 1)
            stop = f.mul(f.add(row.index, 1), n)
            with f.loop(f.mul(first, per_element), f.mul(stop, per_element)) as place:
                f.store(f.constant(0, bits), f.at(out, place.index, bits.element))

    return _tasks("cholesky", types, (nbytes, nbytes), flops=n**3 / 3, write=write)


def triangular_solve(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """`trsm` with sides and triangles exchanged: by columns every matrix is the transposed one."""
    a, right = types
    n, (rows, columns) = a.shape[-1], right.shape[-2:]
    a_bytes, b_bytes = (math.prod(t.shape[-2:]) * t.dtype.itemsize for t in types)
    side, triangle = "RL"[not attrs["left_side"]], "UL"[not attrs["lower"]]
    transposed, diagonal = "NT"[attrs["transpose_a"]], "NU"[attrs["unit_diagonal"]]

    def write(at: Matrices) -> None:
        matrix, source, out = at.pointers
        movement.copy_bytes(at.f, out, source, b_bytes)
        at.call(
            "trsm", side, triangle, transposed, diagonal, columns, rows, at.one(), matrix, n, out, columns
        )

    return _tasks(
        "triangular_solve", types, (a_bytes, b_bytes, b_bytes), flops=n * rows * columns, write=write
    )


# --- operations by columns ---------------------------------------------------------------------------


def lu(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """`getrf`; then rows counted from 0, and their order."""
    (x,) = types
    n, rows = x.shape[-2:]
    count, nbytes = min(n, rows), n * rows * x.dtype.itemsize

    def write(at: Matrices) -> None:
        f, (source, out, pivots, order) = at.f, at.pointers
        movement.copy_bytes(f, out, source, nbytes)
        at.call("getrf", rows, n, out, rows, pivots, at.report())
        with f.loop(0, rows) as row:
            f.store(f.convert("trunc", row.index, b.I32), f.at(order, row.index, "i32"))
        with f.loop(0, count) as step:
            place = f.at(pivots, step.index, "i32")
            pivot = f.binary("sub", f.load(place, b.I32), f.constant(1, b.I32))
            f.store(pivot, place)
            here = f.at(order, step.index, "i32")
            there = f.at(order, f.convert("zext", pivot, b.I64), "i32")
            first, second = f.load(here, b.I32), f.load(there, b.I32)
            f.store(second, here)
            f.store(first, there)

    return _tasks("lu", types, (nbytes, nbytes, 4 * count, 4 * rows), flops=n * rows * count, write=write)


def qr(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """`geqrf`, whose upper triangle is R and whose reflections `orgqr` multiplies to Q."""
    (x,) = types
    n, rows = x.shape[-2:]
    width, count = x.dtype.itemsize, min(n, rows)
    kept = rows if attrs["full_matrices"] else count
    parts = Parts((max(n, kept) * rows * width, count * width, max(n, kept) * BLOCK * width))
    x_bytes, q_bytes, r_bytes = n * rows * width, kept * rows * width, n * kept * width
    generate = "ungqr" if x.dtype in dtypes.COMPLEX else "orgqr"

    def write(at: Matrices) -> None:
        f, (source, q, r) = at.f, at.pointers
        packed, scales, work = parts.of(f, at.memory)
        movement.copy_bytes(f, packed, source, x_bytes)
        at.call("geqrf", rows, n, packed, rows, scales, work, n * BLOCK, at.report())
        _copy_upper(at, r, packed, n=n, kept=kept, rows=rows)
        at.call(generate, rows, kept, count, packed, rows, scales, work, kept * BLOCK, at.report())
        movement.copy_bytes(f, q, packed, q_bytes)

    return _tasks(
        "qr", types, (x_bytes, q_bytes, r_bytes), flops=4 * n * rows * kept, memory=parts.nbytes, write=write
    )


def _copy_upper(at: Matrices, target: Value, source: Value, *, n: int, kept: int, rows: int) -> None:
    """The upper triangle of a matrix by columns; zero below it."""
    f, bits = at.f, b.scalar(f"i{8 * at.real_bytes}")
    each = 2 if at.is_complex else 1
    with f.loop(0, n) as column:
        # Columns of R as long as Q is wide: what is stored, then zeros.
        length = f.minimum(f.add(column.index, 1), kept)
        start, origin = f.mul(column.index, kept), f.mul(column.index, rows)
        with f.loop(0, f.mul(length, each)) as place:
            number = f.load(f.at(source, f.add(f.mul(origin, each), place.index), bits.element), bits)
            f.store(number, f.at(target, f.add(f.mul(start, each), place.index), bits.element))
        with f.loop(f.mul(length, each), kept * each) as place:
            f.store(f.constant(0, bits), f.at(target, f.add(f.mul(start, each), place.index), bits.element))


def eigh(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """`syevd` or `heevd` of the lower triangle."""
    (x,) = types
    n, width = x.shape[-1], x.dtype.itemsize
    nbytes, is_complex = n * n * width, x.dtype in dtypes.COMPLEX
    real_bytes = width // (2 if is_complex else 1)
    num_integers = 3 + 5 * n
    real_size = 1 + 6 * n + 2 * n * n if not is_complex else 1 + 5 * n + 2 * n * n
    size = real_size + n * BLOCK if not is_complex else 2 * n + n * n + n * BLOCK
    parts = Parts((size * width, 4 * num_integers, real_size * real_bytes if is_complex else 0))

    def write(at: Matrices) -> None:
        f, (source, values, vectors) = at.f, at.pointers
        work, integers, real_work = parts.of(f, at.memory)
        report = at.report()
        movement.copy_bytes(f, vectors, source, nbytes)
        own = (real_work, real_size) if is_complex else ()
        name = "heevd" if is_complex else "syevd"
        at.call(name, "V", "L", n, vectors, n, values, work, size, *own, integers, num_integers, report)
        at.fill_if_failed(report, (values, n * real_bytes), (vectors, nbytes))

    items = (nbytes, n * real_bytes, nbytes)
    return _tasks("eigh", types, items, flops=9 * n**3, memory=parts.nbytes, write=write)


def eig(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """`geev`. For real matrices it gives the parts of values apart, and those of vectors as columns."""
    (x,) = types
    n, width = x.shape[-1], x.dtype.itemsize
    is_complex = x.dtype in dtypes.COMPLEX
    real_bytes = width // (2 if is_complex else 1)
    nbytes, out_bytes = n * n * width, 2 * n * n * real_bytes
    sides: tuple[bool, bool] = (attrs["left"], attrs["right"])
    size = n * (2 * BLOCK + 8)
    own_vectors = 0 if is_complex else nbytes
    parts = Parts((nbytes, size * width, 2 * n * real_bytes, own_vectors, own_vectors))

    def write(at: Matrices) -> None:
        f, (source, values, *out) = at.f, at.pointers
        copy, work, reals, *packed = parts.of(f, at.memory)
        report = at.report()
        movement.copy_bytes(f, copy, source, nbytes)
        given = iter(out)
        places = [next(given) if is_asked else None for is_asked in sides]
        # Vectors that nobody asks for are not referenced.
        own = [place or work for place in places] if is_complex else packed
        jobs = ["NV"[is_asked] for is_asked in sides]
        if is_complex:
            spent: tuple[Value, ...] = (values,)
            last: tuple[Value, ...] = (reals,)
        else:
            imaginary = f.at(reals, n * real_bytes, "i8")
            spent, last = (reals, imaginary), ()
        # Of numbers that are not finite it would print a complaint.
        f.store(f.select(_is_finite(at, source, nbytes), f.constant(0, b.I32), f.constant(1, b.I32)), report)
        with f.when(f.compare("eq", f.load(report, b.I32), f.constant(0, b.I32))):
            at.call("geev", *jobs, n, copy, n, *spent, own[0], n, own[1], n, work, size, *last, report)
        if not is_complex:
            _interleave(at, values, reals, imaginary, n)
            for place, columns in zip(places, packed, strict=True):
                if place is not None:
                    _complex_columns(at, place, columns, imaginary, n)
        at.fill_if_failed(report, (values, 2 * n * real_bytes), *((place, out_bytes) for place in out))

    items = (nbytes, 2 * n * real_bytes, *((out_bytes,) * sum(sides)))
    return _tasks("eig", types, items, flops=25 * n**3, memory=parts.nbytes, write=write)


def _is_finite(at: Matrices, source: Value, nbytes: int) -> Value:
    """Whether every number is: the sum of their products with zero is zero."""
    f = at.f
    number = b.scalar("float" if at.real_bytes == 4 else "double")
    zero = f.constant(0.0, number)
    with f.loop(0, nbytes // at.real_bytes, carried=[zero]) as loop:
        loaded = f.load(f.at(source, loop.index, number.element), number)
        loop.next = [f.binary("fadd", loop.carried[0], f.binary("fmul", loaded, zero))]
    return f.compare("oeq", loop.results[0], zero)


def _interleave(at: Matrices, out: Value, real: Value, imaginary: Value, n: int) -> None:
    """Complex numbers from their parts."""
    f, bits = at.f, b.scalar(f"i{8 * at.real_bytes}")
    with f.loop(0, n) as loop:
        for number, part in enumerate((real, imaginary)):
            loaded = f.load(f.at(part, loop.index, bits.element), bits)
            f.store(loaded, f.at(out, f.add(f.mul(loop.index, 2), number), bits.element))


def _complex_columns(at: Matrices, out: Value, columns: Value, imaginary: Value, n: int) -> None:
    """Vectors as `geev` keeps those of real matrices: of two conjugate ones the first column is the real, the
    second the imaginary part."""
    f = at.f
    number = b.scalar("float" if at.real_bytes == 4 else "double")
    zero = f.constant(0.0, number)
    with f.loop(0, n) as column:
        part = f.load(f.at(imaginary, column.index, number.element), number)
        is_first, is_second = f.compare("ogt", part, zero), f.compare("olt", part, zero)
        real_column = f.sub(column.index, f.convert("zext", is_second, b.I64))
        other_column = f.add(column.index, f.convert("zext", is_first, b.I64))
        with f.loop(0, n) as row:
            real = f.load(f.at(columns, f.add(f.mul(real_column, n), row.index), number.element), number)
            other = f.load(f.at(columns, f.add(f.mul(other_column, n), row.index), number.element), number)
            signed = f.select(is_second, f.binary("fsub", zero, other), f.select(is_first, other, zero))
            place = f.mul(f.add(f.mul(column.index, n), row.index), 2)
            f.store(real, f.at(out, place, number.element))
            f.store(signed, f.at(out, f.add(place, 1), number.element))


def svd(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """`gesdd`."""
    (x,) = types
    n, rows = x.shape[-2:]
    width, is_complex = x.dtype.itemsize, x.dtype in dtypes.COMPLEX
    real_bytes = width // (2 if is_complex else 1)
    short, long = min(n, rows), max(n, rows)
    has_vectors: bool = attrs["compute_uv"]
    left, right = (rows, n) if attrs["full_matrices"] else (short, short)
    job = ("A" if attrs["full_matrices"] else "S") if has_vectors else "N"
    x_bytes, u_bytes, v_bytes = n * rows * width, left * rows * width, n * right * width
    # What LAPACK's documentation asks for every path, and room for its blocks.
    size = 4 * short * short + 7 * short + 3 * long + BLOCK * (short + long)
    real_size = max(7 * short, 5 * short * short + 7 * short, 2 * long * short + 2 * short * short + short)
    parts = Parts((x_bytes, size * width, 32 * short, real_size * real_bytes if is_complex else 0))

    def write(at: Matrices) -> None:
        f, (source, values, *vectors) = at.f, at.pointers
        copy, work, integers, real_work = parts.of(f, at.memory)
        report = at.report()
        movement.copy_bytes(f, copy, source, x_bytes)
        u, v = vectors if has_vectors else (work, work)  # without vectors they are not referenced
        own = (real_work,) if is_complex else ()
        at.call(
            "gesdd", job, rows, n, copy, rows, values, u, rows, v, right if has_vectors else 1,
            work, size, *own, integers, report,
        )  # fmt: skip
        filled = ((u, u_bytes), (v, v_bytes)) if has_vectors else ()
        at.fill_if_failed(report, (values, short * real_bytes), *filled)

    items = (x_bytes, short * real_bytes, *((u_bytes, v_bytes) if has_vectors else ()))
    return _tasks("svd", types, items, flops=20 * long * short**2, memory=parts.nbytes, write=write)
