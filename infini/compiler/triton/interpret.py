"""Run emitted kernels under Triton's interpreter on NumPy arrays: how the emitter is tested without a GPU.

The interpreter is entered for one launch and left without a trace, so compilation in the same process is not
disturbed and `TRITON_INTERPRET` plays no part. What it gets wrong is corrected meanwhile: bfloat16, which it
computes on as if its bits were integers, NaN in reductions, and comparisons of scalars. Interpreter:
https://triton-lang.org/main/programming-guide/chapter-3/debugging.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction, mangle_type

from infini.compiler.triton.module import load_module
from infini.compiler.triton.source import LANGUAGE_NAMES, SIGNATURE_NAMES, TritonSource
from infini.core import dtypes
from infini.core.ir import ArrayType

Handle = Any  # Any: Triton has no types; the interpreter's TensorHandle

# Everything that the interpreter replaces attributes of.
_PATCHED: Final = (
    tl, tl.core, tl.math, tl.standard, tl.core.tensor, tl.core.dtype, tl.core.tensor_descriptor_base,
    interpreter.InterpreterBuilder, interpreter.GridExecutor, interpreter.ReduceOps, interpreter.ScanOps,
)  # fmt: skip
_COMPARISONS: Final = frozenset(
    {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
)
_FLOAT_UFUNCS: Final = _COMPARISONS | {
    np.add, np.subtract, np.multiply, np.divide, np.fmod, np.maximum, np.minimum, np.fmax, np.fmin,
}  # fmt: skip


# Names of dtypes as the interpreter reads them off an argument, by their names in signatures.
_ARGUMENT_DTYPES: Final = {
    SIGNATURE_NAMES[d]: name for d, name in LANGUAGE_NAMES.items() if d != dtypes.bool_
}


class _Pointer:
    """Memory as the interpreter takes arguments: an address and the name of a dtype."""

    def __init__(self, memory: np.ndarray | int, kind: str) -> None:
        self.memory = memory
        self.dtype = _ARGUMENT_DTYPES[kind.removeprefix("*")]

    def data_ptr(self) -> int:
        """Address of the first element."""
        if isinstance(self.memory, int):
            return self.memory
        return int(self.memory.__array_interface__["data"][0])


def interpret(
    source: TritonSource, operands: Sequence[np.ndarray], outputs: Sequence[ArrayType]
) -> tuple[np.ndarray, ...]:
    """Run a kernel.

    Args:
        source: what `emit_triton` gave.
        operands: arrays of the operands, extents included.
        outputs: types of the results.

    Returns:
        The results; elements that no program stores are zero.
    """
    arrays = [np.ascontiguousarray(x).reshape(x.shape) for x in operands]
    results = tuple(np.zeros(t.shape, t.dtype) for t in outputs)
    launch(source, [*arrays, *results])
    return results


def launch(source: TritonSource, arguments: Sequence[np.ndarray | int]) -> None:
    """Run a kernel on memory, which it reads and writes in place.

    Args:
        source: the kernel.
        arguments: one dense array, or one address, per parameter of the signature.
    """
    if 0 in source.grid:
        return
    pointers = [_Pointer(x, kind) for x, (_, kind) in zip(arguments, source.signature, strict=True)]
    with _interpreting():
        functions = load_module(source.text)
        for name, value in list(functions.items()):
            if isinstance(value, JITFunction):
                functions[name] = interpreter.InterpretedFunction(value.fn)
        with np.errstate(all="ignore"):
            functions[source.function_name][source.grid](*pointers, **dict(source.constexprs))


@contextlib.contextmanager
def _interpreting() -> Iterator[None]:
    """Make Triton's own library functions and builtins run in the interpreter; restore every attribute
    afterwards.
    """
    # Its first use loads modules that copy what is replaced below.
    mangle_type(_Pointer(0, "*i8"))
    saved = [dict(vars(owner)) for owner in _PATCHED]
    try:
        for module in (tl, tl.standard):
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    setattr(module, name, interpreter.InterpretedFunction(value.fn))
        _install_corrections()
        yield
    finally:
        interpreter.InterpretedFunction.rewritten_fn.clear()  # these refer to names that go away now
        for owner, attributes in zip(_PATCHED, saved, strict=True):
            for name in list(vars(owner)):
                if name not in attributes:
                    delattr(owner, name)
                elif vars(owner)[name] is not attributes[name]:
                    setattr(owner, name, attributes[name])


def _install_corrections() -> None:
    builder = interpreter.InterpreterBuilder
    # Arguments are host memory already: nothing to copy in or out.
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (list(args), dict(kwargs))
    interpreter.GridExecutor._restore_args_dev = lambda self, *_: None
    builder.cast_impl = _with_bfloat16_casts(builder.cast_impl)
    builder.binary_op = _with_bfloat16_binary(builder.binary_op)
    builder.unary_op = _with_bfloat16_unary(builder.unary_op)
    builder.create_dot = _with_bfloat16_dot(builder.create_dot)
    interpreter.ReduceOps.apply_impl = _with_nan(interpreter.ReduceOps.apply_impl)
    interpreter.ReduceOps.generic_reduce = _reduce_by_halves
    interpreter.ScanOps.generic_scan = _scan_by_doubling


def _is_bfloat16(handle: Handle) -> bool:
    return isinstance(handle, interpreter.TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _widened(handle: Handle) -> Handle:
    """A bfloat16 handle, whose data are its bits, as float32."""
    return interpreter.TensorHandle(handle.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)


def _rounded(data: np.ndarray) -> Handle:
    bits = np.asarray(data, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    return interpreter.TensorHandle(bits, tl.bfloat16)


def _with_bfloat16_casts(cast: Callable[..., Handle]) -> Callable[..., Handle]:
    def corrected(self: Any, source: Handle, target: Any) -> Handle:  # Any: Triton's
        if _is_bfloat16(source):
            if target.scalar == tl.bfloat16:
                return source
            wide = _widened(source)
            return wide if target.scalar == tl.float32 else cast(self, wide, target)
        return _rounded(source.data) if target.scalar == tl.bfloat16 else cast(self, source, target)

    return corrected


def _with_bfloat16_binary(binary: Callable[..., Handle]) -> Callable[..., Handle]:
    def corrected(self: Any, left: Handle, right: Handle, op: Any) -> Handle:  # Any: Triton's
        if not (_is_bfloat16(left) and _is_bfloat16(right) and op in _FLOAT_UFUNCS):
            found = binary(self, left, right, op)
            # A comparison keeps the dtype of its operands there, which breaks when a block is made of it.
            return interpreter.TensorHandle(found.data, tl.int1) if op in _COMPARISONS else found
        result = op(_widened(left).data, _widened(right).data)
        return interpreter.TensorHandle(result, tl.int1) if result.dtype == np.bool_ else _rounded(result)

    return corrected


def _with_bfloat16_unary(unary: Callable[..., Handle]) -> Callable[..., Handle]:
    def corrected(self: Any, operand: Handle, op: Any) -> Handle:  # Any: Triton's
        return _rounded(op(_widened(operand).data)) if _is_bfloat16(operand) else unary(self, operand, op)

    return corrected


def _with_bfloat16_dot(dot: Callable[..., Handle]) -> Callable[..., Handle]:
    def corrected(self: Any, left: Handle, right: Handle, *rest: Any) -> Handle:  # Any: Triton's
        left, right = (_widened(x) if _is_bfloat16(x) else x for x in (left, right))
        return dot(self, left, right, *rest)

    return corrected


def _with_nan(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Our reductions that keep NaN, by NumPy instead of element by element."""
    ufuncs = {"max_with_nan": np.max, "min_with_nan": np.min}

    def corrected(self: Any, operands: Any) -> Any:  # Any: Triton's
        ufunc = ufuncs.get(getattr(self.combine_fn, "__name__", ""))
        if ufunc is None:
            return apply(self, operands)
        (operand,) = operands
        return self.to_tensor(
            ufunc(operand.handle.data, axis=self.axis, keepdims=self.keep_dims), operand.dtype
        )

    return corrected


def _reduce_by_halves(self: Any, operands: Any) -> Any:  # Any: Triton's
    """A reduction by any function: the function of two halves, instead of element by element."""
    axis = 0 if self.axis is None else self.axis
    tensors = [
        self.to_tensor(x.handle.data.reshape(-1), x.dtype) if self.axis is None else x for x in operands
    ]
    while tensors[0].handle.data.shape[axis] > 1:
        halves = [np.split(x.handle.data, 2, axis) for x in tensors]
        both = [
            [self.to_tensor(half[side], x.dtype) for half, x in zip(halves, tensors, strict=True)]
            for side in (0, 1)
        ]
        found = self.combine_fn.fn(*both[0], *both[1])
        tensors = list(found) if isinstance(found, tuple) else [found]
    results = []
    for x in tensors:
        data = x.handle.data if self.keep_dims else np.squeeze(x.handle.data, axis)
        results.append(self.to_tensor(data if data.ndim else data.item(), x.dtype))
    return results


def _scan_by_doubling(self: Any, operands: Any) -> Any:  # Any: Triton's
    """A scan by any associative function: each element takes in the one 1, 2, 4, ... places before it."""
    tensors, step = list(operands), 1
    shape = tensors[0].handle.data.shape
    size = shape[self.axis]
    places = np.arange(size).reshape([-1 if d == self.axis else 1 for d in range(len(shape))])
    while step < size:
        moved = [self.to_tensor(np.roll(x.handle.data, step, self.axis), x.dtype) for x in tensors]
        found = self.combine_fn.fn(*moved, *tensors)
        joined = found if isinstance(found, tuple) else (found,)
        tensors = [
            self.to_tensor(np.where(places >= step, y.handle.data, x.handle.data), x.dtype)
            for x, y in zip(tensors, joined, strict=True)
        ]
        step *= 2
    return tensors
