"""DLPack: memory shared with other libraries without a copy, https://dmlc.github.io/dlpack (versions 0, 1).

The structures are read and written here by ctypes, since NumPy's own exchange knows neither bfloat16 nor the
8-bit floats. An exported tensor keeps its memory alive until the consumer calls its deleter; an imported one
until the last array over it is gone.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from infini.core import backend, dtypes, errors, ir

CPU: Final = 1
# Kinds of devices whose memory is host memory, and the backends of the others.
_HOST_KINDS: Final = (CPU, 3)
_PLATFORMS: Final = {2: "cuda"}
VERSION: Final = (1, 0)
_READ_ONLY: Final = 1


@runtime_checkable
class SharesMemory(Protocol):
    """What a backend offers whose device memory can be shared; others exchange copies on the host."""

    dlpack_kind: int

    def dlpack_number(self, device: backend.Device) -> int:
        """Number by which other libraries of this process know a device."""

    def dlpack_device(self, number: int) -> backend.Device:
        """The device of this process with such a number."""

    def address(self, buffer: backend.Buffer) -> int:
        """Address of a buffer in device memory, once the work that fills it is done."""

    def adopt_address(
        self, address: int, nbytes: int, device: backend.Device, owner: object
    ) -> backend.Buffer:
        """A buffer over memory that stays valid as long as `owner` lives."""


# --- the structures -------------------------------------------------------------------------------


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """A tensor and how to let go of it, version 0."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(ctypes.Structure):
    """The same since version 1."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_CODES: Final[dict[np.dtype, tuple[int, int]]] = {
    **{dtype: (0, 8 * dtype.itemsize) for dtype in dtypes.SIGNED},
    **{dtype: (1, 8 * dtype.itemsize) for dtype in dtypes.UNSIGNED},
    **{dtype: (2, 8 * dtype.itemsize) for dtype in (dtypes.float16, dtypes.float32, dtypes.float64)},
    dtypes.bfloat16: (4, 16),
    **{dtype: (5, 8 * dtype.itemsize) for dtype in dtypes.COMPLEX},
    dtypes.bool_: (6, 8),
    dtypes.float8_e4m3fn: (10, 8),
    dtypes.float8_e5m2: (12, 8),
}
_BY_CODE: Final = {code: dtype for dtype, code in _CODES.items()}


def is_supported_dtype(dtype: Any) -> bool:  # Any: as in dtypes.canonical
    """Whether arrays of a dtype can be exchanged, as `jax.dlpack.is_supported_dtype`."""
    try:
        return dtypes.canonical(dtype) in _CODES
    except errors.TypeMismatchError:
        return False


# --- capsules -------------------------------------------------------------------------------------

_NAME: Final = b"dltensor"
_NAME_VERSIONED: Final = b"dltensor_versioned"
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _api)
)
_is_capsule = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _api))

_exported: dict[int, tuple[object, ...]] = {}  # what each tensor that someone holds keeps alive
_keys = itertools.count(1)


# These run whenever a consumer lets go, even while the interpreter ends and the names of this module are
# gone, so what they need is bound to them.
def _releaser(layout: Any) -> Any:  # Any: a structure, and a function for C
    def release(pointer: int, layout: Any = layout, exported: dict[int, Any] = _exported) -> None:
        exported.pop(int(layout.from_address(pointer).context), None)

    return _Deleter(release)


_release, _release_versioned = _releaser(_Managed), _releaser(_ManagedVersioned)


def _forget(
    capsule: int,
    kinds: Any = ((_NAME, _release), (_NAME_VERSIONED, _release_versioned)),
    is_capsule: Any = _is_capsule,
    pointer_in: Any = _pointer_in,
) -> None:
    """A capsule that nobody took over still owns its tensor."""
    for name, release in kinds:
        if is_capsule(capsule, name):
            release(pointer_in(capsule, name))


_destroy = _Destructor(_forget)


@dataclass(frozen=True, slots=True)
class Memory:
    """Elements in C order at an address; `owner` keeps them alive."""

    address: int
    type: ir.ArrayType
    owner: object
    kind: int = CPU
    number: int = 0
    is_read_only: bool = True


def export(memory: Memory, max_version: tuple[int, int] | None = None) -> Any:  # Any: a capsule
    """A capsule over memory, in the newest version that the consumer reads.

    Raises:
        TypeMismatchError: DLPack has no such dtype.
    """
    type_ = memory.type
    if type_.dtype not in _CODES:
        raise errors.TypeMismatchError(
            f"DLPack has no dtype {type_.dtype.name}", fix="exchange x.view of its bits"
        )
    shape = (ctypes.c_int64 * type_.ndim)(*type_.shape)
    strides = (ctypes.c_int64 * type_.ndim)(*_strides(type_.shape))
    code, bits = _CODES[type_.dtype]
    device, data_type = _Device(memory.kind, memory.number), _DataType(code, bits, 1)
    sizes, steps = (ctypes.cast(numbers, ctypes.POINTER(ctypes.c_int64)) for numbers in (shape, strides))
    tensor = _Tensor(memory.address, device, type_.ndim, data_type, sizes, steps, 0)
    key = next(_keys)
    managed: _Managed | _ManagedVersioned
    if max_version is not None and max_version[0] >= 1:
        flags = _READ_ONLY if memory.is_read_only else 0
        managed, name = _ManagedVersioned(*VERSION, key, _release_versioned, flags, tensor), _NAME_VERSIONED
    else:
        managed, name = _Managed(tensor, key, _release), _NAME
    _exported[key] = (managed, shape, strides, memory.owner)
    return _new_capsule(ctypes.addressof(managed), name, _destroy)


def _strides(shape: Sequence[int]) -> list[int]:
    found, step = [], 1
    for size in reversed(shape):
        found.append(step)
        step *= max(size, 1)
    return found[::-1]


class Imported:
    """A tensor taken over from a capsule; it is given back when this object goes.

    Args:
        data: object with `__dlpack__` and `__dlpack_device__`.

    Raises:
        TypeMismatchError: it has none, or its device or dtype is unknown here.
    """

    def __init__(self, data: Any) -> None:  # Any: an array or tensor of any library
        kind, number = _device_of(data)
        if kind not in _HOST_KINDS and kind not in _PLATFORMS:
            raise errors.TypeMismatchError(
                "this object cannot be imported by DLPack", got=f"memory of a device of kind {kind}",
                fix="copy it to the CPU first",
            )  # fmt: skip
        capsule = _capsule_of(data, on_host=kind in _HOST_KINDS)
        identity = id(capsule)
        is_versioned = bool(_is_capsule(identity, _NAME_VERSIONED))
        if not is_versioned and not _is_capsule(identity, _NAME):
            raise errors.TypeMismatchError(
                "__dlpack__ gave a capsule that was used already", got=repr(capsule)
            )
        self._pointer = int(_pointer_in(identity, _NAME_VERSIONED if is_versioned else _NAME))
        layout = _ManagedVersioned if is_versioned else _Managed
        self._managed: Any = layout.from_address(self._pointer)  # Any: one of two structures
        if is_versioned and self._managed.major != VERSION[0]:
            raise errors.TypeMismatchError(
                "this object cannot be imported by DLPack",
                got=f"version {self._managed.major}",
                expected="0 or 1",
            )
        tensor = self._managed.tensor
        self.kind, self.number = kind, number
        self.dtype = self._dtype(tensor.dtype)
        self.shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        self.strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
        self.address = int(tensor.data or 0) + int(tensor.byte_offset)
        # From here on the tensor is ours, and the capsule an empty shell.
        self._name = b"used_dltensor_versioned" if is_versioned else b"used_dltensor"
        _rename(capsule, self._name)
        self._is_ours = True

    @staticmethod
    def _dtype(found: _DataType) -> np.dtype:
        if found.lanes != 1 or (found.code, found.bits) not in _BY_CODE:
            raise errors.TypeMismatchError(
                "this object cannot be imported by DLPack",
                got=f"a dtype of code {found.code}, {found.bits} bits and {found.lanes} lanes",
                expected=", ".join(sorted(dtype.name for dtype in _CODES)),
            )
        return _BY_CODE[found.code, found.bits]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements stand in C order without gaps."""
        if self.strides is None or 0 in self.shape:
            return True
        wanted = _strides(self.shape)
        return all(n == 1 or s == w for n, s, w in zip(self.shape, self.strides, wanted, strict=True))

    def host(self) -> np.ndarray:
        """The elements of a tensor in host memory as a read-only array that keeps it alive."""
        steps = self.strides if self.strides is not None else tuple(_strides(self.shape))
        size = self.dtype.itemsize
        if 0 in self.shape or not self.address:
            return np.empty(self.shape, self.dtype)
        # Raw bytes by NumPy's own protocol, then the dtype, which the protocol may not know.
        self.__array_interface__ = {
            "version": 3, "shape": self.shape, "typestr": f"|V{size}", "data": (self.address, True),
            "strides": tuple(step * size for step in steps),
        }  # fmt: skip
        return np.asarray(self).view(self.dtype)

    def __del__(self) -> None:
        if getattr(self, "_is_ours", False) and self._managed.deleter:
            self._managed.deleter(self._pointer)


def _device_of(data: Any) -> tuple[int, int]:  # Any: as in Imported
    if not hasattr(data, "__dlpack__") or not hasattr(data, "__dlpack_device__"):
        raise errors.TypeMismatchError(
            "this object cannot be imported by DLPack",
            got=f"{type(data).__name__}, which has no __dlpack__ and __dlpack_device__",
            expected="an array or tensor of a library that speaks DLPack",
            fix="use infini.numpy.asarray for numbers, sequences and NumPy arrays",
        )
    kind, number = data.__dlpack_device__()
    return int(kind), int(number)


def _capsule_of(data: Any, *, on_host: bool) -> Any:  # Any: as in Imported, and a capsule
    options: dict[str, Any] = {} if on_host else {"stream": 1}  # Any: arguments of a protocol
    try:
        return data.__dlpack__(max_version=VERSION, **options)
    except TypeError:
        # A library of before version 1 does not know the argument.
        return data.__dlpack__(**options)
    except (BufferError, RuntimeError, ValueError) as error:
        raise errors.TypeMismatchError(
            "this object cannot be imported by DLPack", got=f"{type(data).__name__}: {error}"
        ) from error


def sharing_backend(platform: str) -> SharesMemory | None:
    """The backend of a platform, when its device memory can be shared."""
    found = backend.get(platform)
    return found if isinstance(found, SharesMemory) else None


def platform_of(kind: int) -> str | None:
    """The platform of a kind of devices; None for host memory."""
    return None if kind in _HOST_KINDS else _PLATFORMS[kind]
