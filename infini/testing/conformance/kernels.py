"""Kernels and programs: a small program of every family is written as Triton text under the target's
capabilities, and run where kernels can be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import infini as inf
from infini import lax
from infini.backends.accelerator.backend import AcceleratorBackend
from infini.backends.accelerator.executable import tasks_of
from infini.backends.accelerator.tasks import Product
from infini.backends.reference import interpreter
from infini.compiler.triton import language
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import Capability, Target
from infini.core import dtypes, errors, trace
from infini.core.backend import CompileOptions, Executable
from infini.core.ir import ArrayType, Program
from infini.testing.conformance.checks import Check, Failed, NotAvailable, Subject, expect
from infini.testing.tolerances import assert_close


@dataclass(frozen=True, slots=True)
class Family:
    """A program of one family of operations.

    Args:
        function: the program; it gives an array, or several.
        operands: makes its operands.
    """

    function: Callable[..., Any]  # Any: arrays
    operands: Callable[[np.random.Generator], Sequence[np.ndarray]]


def _normal(*shapes: tuple[int, ...], dtype: np.dtype = dtypes.float32) -> Callable[..., list[np.ndarray]]:
    return lambda rng: [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def _with_indices(*shapes: tuple[int, ...]) -> Callable[..., list[np.ndarray]]:
    return lambda rng: [*_normal(*shapes)(rng), np.array([1, 0, 6], np.int32)]


def _softmax(x: Any) -> Any:  # Any: an array
    e = lax.exp(lax.sub(x, lax.broadcast_in_dim(lax.reduce_max(x, (1,)), x.shape, (0,))))
    return lax.div(e, lax.broadcast_in_dim(lax.reduce_sum(e, (1,)), x.shape, (0,)))


def _attention(q: Any, k: Any, v: Any) -> Any:  # Any: arrays
    return lax.dot(_softmax(lax.dot(q, lax.transpose(k, (1, 0)))), v)


def _loop(start: Any, xs: Any) -> Any:  # Any: arrays
    return lax.scan(lambda c, x: (lax.add(lax.mul(c, 0.5), x), lax.mul(c, x)), start, xs)


def _until(x: Any) -> Any:  # Any: an array
    return lax.while_loop(
        lambda s: lax.lt(s[0], 3), lambda s: (lax.add(s[0], 1), lax.mul(s[1], 2.0)), (0, x)
    )[1]


def _random_bits(counter: Any) -> Any:  # Any: an array
    return list(lax.threefry2x32(counter, counter, counter, lax.add(counter, np.uint32(1))))


FAMILIES: Final[Mapping[str, Family]] = {
    "elementwise": Family(
        lambda x, y: lax.mul(lax.tanh(lax.add(x, y)), lax.exp(lax.neg(x))), _normal((5, 50), (5, 50))
    ),
    "elementwise bf16": Family(
        lambda x, y: lax.add(lax.sin(x), y), _normal((4, 33), (4, 33), dtype=dtypes.bfloat16)
    ),
    "whole numbers": Family(
        lambda x: lax.add(lax.mul(x, np.int32(3)), lax.shift_right_logical(x, np.int32(2))),
        lambda rng: [rng.integers(-99, 99, (70,), np.int32)],
    ),
    "comparison and choice": Family(
        lambda x, y: lax.select(lax.gt(x, y), x, lax.neg(y)), _normal((33,), (33,))
    ),
    "views": Family(lambda x: lax.rev(lax.transpose(x, (1, 0)), (0,)), _normal((6, 7))),
    "padding": Family(lambda x: lax.pad(x, np.float32(1), ((1, 2, 0), (0, 1, 1))), _normal((3, 4))),
    "reductions": Family(
        lambda x: (lax.reduce_sum(x, (0, 2)), lax.reduce_max(x, (1,)), lax.argmin(x, 2, "int32")),
        _normal((3, 4, 5)),
    ),
    "softmax": Family(_softmax, _normal((5, 33))),
    "products": Family(lambda x, y: lax.dot(x, y), _normal((20, 30), (30, 10))),
    "attention": Family(_attention, _normal((18, 16), (20, 16), (20, 16))),
    "convolution": Family(
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME"), _normal((1, 2, 6, 6), (3, 2, 3, 3))
    ),
    "windows": Family(
        lambda x: lax.reduce_window(x, -np.inf, lax.max, (2, 2), (2, 2), "VALID"), _normal((6, 8))
    ),
    "gather": Family(lambda x, i: inf.numpy.take(x, i, axis=0), _with_indices((7, 5))),
    "scatter": Family(lambda x, u, i: x.at[i].add(u), _with_indices((7, 5), (3, 5))),
    "slices": Family(
        lambda x, u: lax.dynamic_update_slice(x, u, (np.int32(2), np.int32(1))), _normal((7, 5), (2, 3))
    ),
    "sorting": Family(lambda x: (lax.sort(x), *lax.top_k(x, 3)), _normal((3, 20))),
    "running sums": Family(lambda x: (lax.cumsum(x, 1), lax.cummax(x, 0)), _normal((3, 40))),
    "loops": Family(_loop, _normal((4,), (5, 4))),
    "loops with a condition": Family(_until, _normal((4,))),
    "branches": Family(
        lambda i, x: lax.switch(i, [lax.sin, lax.cos], x),
        lambda rng: [np.asarray(1, np.int32), *_normal((6,))(rng)],
    ),
    "random bits": Family(_random_bits, lambda rng: [np.arange(40, dtype=np.uint32)]),
}


def compiled(subject: Subject, family: Family) -> tuple[Program, Executable, list[np.ndarray]]:
    """A family's program, its executable, and its operands."""
    arrays = list(family.operands(np.random.default_rng(0)))

    def flat(*xs: Any) -> list[Any]:  # Any: arrays
        found = family.function(*xs)
        return list(inf.tree.leaves(found))

    staged = trace.stage(flat, [ArrayType(a.shape, a.dtype) for a in arrays])
    return staged.program, subject.backend.compile(staged.program, CompileOptions()), arrays


def faults(source: TritonSource, target: Target) -> list[str]:
    """What a text has and the target's Triton has not."""
    found = language.violations(source.text, target)
    most = (*target.grid, 1, 1)
    if any(n > limit for n, limit in zip(source.grid, most, strict=False)):
        found.append(f"a grid of {source.grid}, where {target.grid} is the most")
    if source.num_warps > target.max_warps:
        found.append(f"{source.num_warps} warps, where {target.max_warps} are the most")
    return found


def _target(subject: Subject) -> Target:
    """What kernels are written for.

    Raises:
        NotAvailable: the backend writes no Triton.
    """
    if isinstance(subject.backend, AcceleratorBackend):
        return subject.backend.target
    return subject.adapter.adapter.target


def writes(family: Family) -> Callable[[Subject], str]:
    """The check that a family's text is one that the target takes."""

    def check(subject: Subject) -> str:
        target = _target(subject)
        _, executable, _ = compiled(subject, family)
        tasks = list(tasks_of(executable.block))  # type: ignore[attr-defined]  # an adapter's have it
        expect(bool(tasks), "a program has no kernel")
        sources = [task.kernel if isinstance(task, Product) else task.source for task in tasks]
        for source in sources:
            wrong = faults(source, target)
            expect(
                not wrong, f"the kernel {source.function_name} is not for this target", got="; ".join(wrong)
            )
        return f"{len(sources)} kernel{'s' if len(sources) > 1 else ''}"

    return check


_NEEDED: Final[Mapping[Capability, np.dtype]] = {"float64": dtypes.float64, "bfloat16": dtypes.bfloat16}


def refuses_dtypes(subject: Subject) -> str:
    """Kernels of a dtype that the processor lacks are refused when a program is compiled."""
    target = _target(subject)
    without = [dtype for needed, dtype in _NEEDED.items() if not target.has(needed)]
    for dtype in without:
        family = Family(lambda x: lax.add(lax.sin(x), x), _normal((8,), dtype=dtype))
        try:
            compiled(subject, family)
        except errors.LoweringError:
            continue
        raise Failed(f"a kernel that computes with {dtypes.short(dtype)} was not refused")
    return ", ".join(map(dtypes.short, without)) or "nothing is lacking"


def computes(name: str, family: Family) -> Callable[[Subject], str]:
    """The check that a family's program gives what NumPy gives."""

    def check(subject: Subject) -> str:
        subject.need_device()
        reason = subject.backend.why_unavailable()
        if reason is not None:
            raise NotAvailable(reason)
        program, executable, arrays = compiled(subject, family)
        device = subject.device(0)
        buffers = executable([subject.backend.put(a, device) for a in arrays])
        wanted = interpreter.evaluate(program, arrays)
        for number, (buffer, type_, want) in enumerate(zip(buffers, program.out_types, wanted, strict=True)):
            got = subject.backend.get(buffer, type_)
            try:
                assert_close(got, want)
            except AssertionError as error:
                raise Failed(f"{name}: result {number} differs", got=str(error)) from error
        return f"{len(wanted)} result{'s' if len(wanted) > 1 else ''}"

    return check


CHECKS = (
    *(Check("kernels", name, writes(family)) for name, family in FAMILIES.items()),
    Check("kernels", "dtypes that there are not", refuses_dtypes),
    *(Check("programs", name, computes(name, family)) for name, family in FAMILIES.items()),
)
