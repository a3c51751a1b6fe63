"""The product of the emitter: the text of one Triton function and what is needed to compile and launch it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from infini.core import dtypes, errors
from infini.core.ir import Shape
from infini.core.source import Where

# Names in `tl`, and in signatures. Booleans are bytes in memory and int1 in registers; floats of 8 bits are
# held as bits, and have a name in signatures alone.
LANGUAGE_NAMES: Final[dict[np.dtype, str]] = {
    dtypes.bool_: "int1",
    dtypes.int8: "int8",
    dtypes.int16: "int16",
    dtypes.int32: "int32",
    dtypes.int64: "int64",
    dtypes.uint8: "uint8",
    dtypes.uint16: "uint16",
    dtypes.uint32: "uint32",
    dtypes.uint64: "uint64",
    dtypes.float16: "float16",
    dtypes.bfloat16: "bfloat16",
    dtypes.float32: "float32",
    dtypes.float64: "float64",
}
SIGNATURE_NAMES: Final[dict[np.dtype, str]] = {
    dtypes.bool_: "i8",
    dtypes.int8: "i8",
    dtypes.int16: "i16",
    dtypes.int32: "i32",
    dtypes.int64: "i64",
    dtypes.uint8: "u8",
    dtypes.uint16: "u16",
    dtypes.uint32: "u32",
    dtypes.uint64: "u64",
    dtypes.float16: "fp16",
    dtypes.bfloat16: "bf16",
    dtypes.float8_e4m3fn: "u8",
    dtypes.float8_e5m2: "u8",
    dtypes.float32: "fp32",
    dtypes.float64: "fp64",
}
# What a parameter of a signature's type is in memory. Floats of 8 bits are bytes there, and booleans that are
# no buffers are words.
PARAMETER_DTYPES: Final[dict[str, np.dtype]] = {
    "i1": dtypes.int32, "i8": dtypes.int8, "i16": dtypes.int16, "i32": dtypes.int32, "i64": dtypes.int64,
    "u8": dtypes.uint8, "u16": dtypes.uint16, "u32": dtypes.uint32, "u64": dtypes.uint64,
    "fp16": dtypes.float16, "bf16": dtypes.bfloat16, "fp32": dtypes.float32, "fp64": dtypes.float64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TritonSource:
    """One Triton function.

    Args:
        text: a module that holds the function, and the helpers it calls.
        function_name: the function to compile.
        signature: name and Triton type of each parameter, in order.
        constexprs: values of compile-time parameters by name.
        divisibility: parameters whose value is a multiple of 16, as every buffer's address is.
        grid: number of programs along x, and along y and z where one dimension is not enough.
        num_warps: warps per program.
        num_stages: loads in flight of a pipelined loop.
        roles: what each parameter is: x0 ... for operands, n0 ... for extents that follow them, y0 ... for
            results, `scratch`.
        where: the user's line that it computes; None where it is not known.
    """

    text: str
    function_name: str
    signature: tuple[tuple[str, str], ...]
    constexprs: tuple[tuple[str, int], ...]
    divisibility: tuple[str, ...]
    grid: tuple[int, ...]
    num_warps: int
    num_stages: int
    roles: tuple[str, ...]
    where: Where | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Hexadecimal hash of everything that decides the machine code: not of comments, nor of the names of
        variables."""
        names = [name for name, _ in self.signature]
        parts = (
            _canonical(self.text),
            self.function_name,
            tuple(kind for _, kind in self.signature),
            tuple((names.index(name), value) for name, value in self.constexprs),
            tuple(map(names.index, self.divisibility)),
            self.num_warps,
            self.num_stages,
        )
        return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()

    def commented(self, line: str) -> TritonSource:
        """The same function with a comment above it."""
        before, decorator, after = self.text.rpartition("@triton.jit\n")
        return dataclasses.replace(self, text=f"{before}# {line}\n{decorator}{after}")

    def renamed(self, names: Mapping[str, str]) -> TritonSource:
        """The same function with the user's names of operands and results.

        Args:
            names: by role, such as `{"x0": "weight"}`; the pointer becomes `weight_ptr`, a tile of it
                `weight`. A name that the text has for something else is left out.
        """
        text = self.text
        current = {role: name for role, (name, _) in zip(self.roles, self.signature, strict=True)}
        for role, name in names.items():
            pointer = f"{name}_ptr"
            words = set(re.findall(r"\w+", code(text.rpartition("@triton.jit")[2]))) - set(self.roles)
            if role not in current or pointer in words:
                continue
            if name not in current and not any(re.fullmatch(rf"{name}\d*", word) for word in words):
                text = re.sub(rf"\b{role}_tile(\d*)\b", rf"{name}\1", text)
            text = re.sub(rf"\b{current[role]}\b", pointer, text)
            current[role] = pointer
        signature = tuple(
            (current[role], kind) for role, (_, kind) in zip(self.roles, self.signature, strict=True)
        )
        divisible = set(self.divisibility)
        return dataclasses.replace(
            self,
            text=text,
            signature=signature,
            divisibility=tuple(
                new for (old, _), (new, _) in zip(self.signature, signature, strict=True) if old in divisible
            ),
        )


def code(text: str) -> str:
    """A text without its comments."""
    return re.sub(r"#.*", "", text)


@functools.lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    """A module with its variables numbered and without comments."""
    module = ast.parse(text)
    for function in module.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        own = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        own |= {
            node.id
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        names: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.arg):
                node.arg = names.setdefault(node.arg, f"v{len(names)}")
            elif isinstance(node, ast.Name) and node.id in own:
                node.id = names.setdefault(node.id, f"v{len(names)}")
    return ast.dump(module)


def language_name(dtype: np.dtype) -> str:
    """Name of a dtype in Triton's language, such as `tl.float32`.

    Raises:
        LoweringError: kernels do not compute with it.
    """
    if dtype not in LANGUAGE_NAMES:
        raise errors.LoweringError(
            f"Triton kernels do not compute with {dtypes.short(dtype)}",
            expected=", ".join(dtypes.short(d) for d in LANGUAGE_NAMES),
            fix="convert to float32 or a 16-bit float before the kernel",
        )
    return f"tl.{LANGUAGE_NAMES[dtype]}"


def parameter_bytes(kind: str) -> int:
    """Bytes of a kernel's parameter, by its type in a signature."""
    return 8 if kind.startswith("*") else PARAMETER_DTYPES[kind].itemsize


def pack(kind: str, value: float) -> np.generic | np.ndarray:
    """A kernel's parameter as an object with the bytes of its type.

    Args:
        kind: its type in a signature; pointers start with a star.
        value: the number, or the address.

    Raises:
        OverflowError: the type has no such number.
    """
    if kind.startswith("*"):
        return np.uint64(value)
    dtype = PARAMETER_DTYPES[kind]
    return np.array([value], dtype) if kind == "bf16" else dtype.type(value)


def padded(shape: Shape) -> Shape:
    """Shape of a tile in Triton, whose sizes are powers of two."""
    return tuple(1 << max(0, n - 1).bit_length() for n in shape)


def is_padded(shape: Shape) -> bool:
    """Whether Triton's tile is larger than the logical one."""
    return padded(shape) != shape


def literal(value: complex, dtype: np.dtype) -> str:
    """A number as a Python literal that reads back exactly."""
    if dtype == dtypes.bool_:
        return str(bool(value))
    if dtype not in dtypes.FLOATS:
        return str(int(value.real))
    number = float(value.real)
    return repr(number) if np.isfinite(number) else f'float("{number}")'
