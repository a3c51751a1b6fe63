"""The schemes: how many bits a number takes, how many numbers share a scale, and what lies beside the scales.

A row is cut into groups. A group stores whole numbers (*codes*) as bytes, one scale, and in some schemes one
more number:

    symmetric       code * scale                   int8, int4, Q8_0, Q4_0, Q5_0
    minimum         code * scale + minimum         Q4_1, Q5_1
    zero point      (code - zero point) * scale    int4 with zero points

Some groups are cut once more: each part of 16 or 32 numbers has whole numbers of few bits (*sub-scales*) by
which the scale of the group, and its minimum, are multiplied:

    symmetric       code * (scale * sub-scale)                              Q3_K, Q6_K
    minimum         code * (scale * sub-scale) - minimum * sub-minimum      Q2_K, Q4_K, Q5_K

The names with an underscore are ggml's, https://github.com/ggml-org/ggml, and agree with it bit by bit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from infini.core import dtypes, errors

ROWS: Final = 16  # that lie together in arranged arrays: lanes of the widest registers
SCALE_DTYPES: Final = (dtypes.float16, dtypes.bfloat16, dtypes.float32)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How numbers are stored in few bits. Made by `int8`, `int4`, or one of ggml's: `Q4_0` ...

    Args:
        name: the name of the scheme, without its parameters.
        bits: bits of one code: 2 to 6, or 8.
        group: how many numbers of a row share a scale; None for the whole row.
        scale_dtype: dtype of the scales, and of the minima.
        beside: what each group has beside its scale: "", "minimum" or "zero_point".
        sub_scales: bytes of the sub-scales of a group; 0 in schemes without.
        part: how many numbers of a group share a sub-scale; 0 in schemes without.
        rows: how many rows lie together: 1, or `ROWS` in arrays that are arranged for kernels.
    """

    name: str
    bits: int
    group: int | None
    scale_dtype: np.dtype
    beside: Literal["", "minimum", "zero_point"] = ""
    sub_scales: int = 0
    part: int = 0
    rows: int = 1

    @property
    def is_ggml(self) -> bool:
        """Whether this is one of ggml's schemes, whose parameters are fixed."""
        return self.name in GGML

    @property
    def nbytes_of_group(self) -> int:
        """Bytes that the codes of one group take.

        Raises:
            ValueMismatchError: the group is the whole row, so it has no size yet.
        """
        return self._known_group() * self.bits // 8

    @property
    def center(self) -> int:
        """The code that stands for zero in symmetric schemes whose codes are unsigned."""
        return 0 if self.bits == 8 or self.beside else 1 << (self.bits - 1)

    @property
    def beside_dtype(self) -> np.dtype:
        """Dtype of what each group has beside its scale."""
        return dtypes.uint8 if self.beside == "zero_point" else self.scale_dtype

    @property
    def bits_per_number(self) -> float:
        """Bits that one number takes, with its share of the scales."""
        group = self._known_group()
        beside = self.beside_dtype.itemsize if self.beside else 0
        return self.bits + 8 * (self.scale_dtype.itemsize + beside + self.sub_scales) / group

    def for_row(self, size: int) -> Scheme:
        """This scheme with the group that rows of `size` numbers have.

        Raises:
            ValueMismatchError: groups do not divide the row.
        """
        group = size if self.group is None else self.group
        if group == 0 or size % group or group * self.bits % 8:
            raise errors.ValueMismatchError(
                f"rows of {size} numbers cannot be cut into the groups of {self}",
                got=f"a row of {size}",
                expected=f"a multiple of {group}" if group and group * self.bits % 8 == 0 else "an even size",
                fix="choose a group that divides the row, such as quantization.int8(group=None), which takes "
                "the whole row; or pad the row with zeros",
            )
        return self if self.group == group else replace(self, group=group)

    def __str__(self) -> str:
        rows = [f"x{self.rows}"] if self.rows > 1 else []
        if self.is_ggml:
            return ":".join([self.name, *rows])
        parts = [self.name, "row" if self.group is None else str(self.group), dtypes.short(self.scale_dtype)]
        return ":".join(parts + ([self.beside] if self.beside else []) + rows)

    def _known_group(self) -> int:
        if self.group is None:
            raise errors.ValueMismatchError(
                f"the group of {self} is the whole row, of a size that is not known here",
                fix="ask scheme.for_row(size), or the scheme of a QuantizedArray",
            )
        return self.group


def int8(group: int | None = None, scale_dtype: Any = dtypes.float32) -> Scheme:  # Any: what names a dtype
    """Signed bytes from -127 to 127 with a scale per group.

    Args:
        group: how many numbers of a row share a scale; None for the whole row.
        scale_dtype: float16, bfloat16 or float32.

    Raises:
        ValueMismatchError: the group is not positive, or the dtype is another one.
    """
    return Scheme("int8", 8, _checked_group("int8", group, 1), _checked_dtype("int8", scale_dtype))


def int4(
    group: int | None = 64,
    *,
    zero_point: bool = False,
    scale_dtype: Any = dtypes.float32,  # Any: what names a dtype
) -> Scheme:
    """Numbers of 4 bits, two in a byte, with a scale per group.

    Args:
        group: how many numbers of a row share a scale, even; None for the whole row.
        zero_point: whether groups have a code that stands for zero, which uses all 16 codes where the numbers
            of a group lie to one side.
        scale_dtype: float16, bfloat16 or float32.

    Raises:
        ValueMismatchError: the group is not positive and even, or the dtype is another one.
    """
    beside: Literal["", "zero_point"] = "zero_point" if zero_point else ""
    return Scheme("int4", 4, _checked_group("int4", group, 2), _checked_dtype("int4", scale_dtype), beside)


Q8_0: Final = Scheme("Q8_0", 8, 32, dtypes.float16)
Q4_0: Final = Scheme("Q4_0", 4, 32, dtypes.float16)
Q4_1: Final = Scheme("Q4_1", 4, 32, dtypes.float16, "minimum")
Q5_0: Final = Scheme("Q5_0", 5, 32, dtypes.float16)
Q5_1: Final = Scheme("Q5_1", 5, 32, dtypes.float16, "minimum")
Q2_K: Final = Scheme("Q2_K", 2, 256, dtypes.float16, "minimum", 16, 16)
Q3_K: Final = Scheme("Q3_K", 3, 256, dtypes.float16, "", 12, 16)
Q4_K: Final = Scheme("Q4_K", 4, 256, dtypes.float16, "minimum", 12, 32)
Q5_K: Final = Scheme("Q5_K", 5, 256, dtypes.float16, "minimum", 12, 32)
Q6_K: Final = Scheme("Q6_K", 6, 256, dtypes.float16, "", 16, 16)

GGML: Final = {scheme.name: scheme for scheme in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)}
_NAMES: Final = "int8, int4, " + ", ".join(GGML)


def scheme_of(x: Scheme | str) -> Scheme:
    """A scheme, or the one of a name: `int8`, `int4`, `Q4_0` ..., or a scheme as text.

    Raises:
        ValueMismatchError: there is none of that name.
    """
    if isinstance(x, Scheme):
        return x
    if not isinstance(x, str):
        raise errors.TypeMismatchError(
            "a scheme is expected", got=f"{x!r} of type {type(x).__name__}", expected=f"a Scheme, or {_NAMES}"
        )
    return parse(x)


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Scheme:
    """The scheme that `str(scheme)` wrote; a bare name stands for the scheme with its defaults.

    Raises:
        ValueMismatchError: the text is none.
    """
    if text.endswith(f":x{ROWS}"):
        return replace(parse(text.removesuffix(f":x{ROWS}")), rows=ROWS)
    name, *parts = text.split(":")
    if name in GGML and not parts:
        return GGML[name]
    try:
        if (
            name not in ("int8", "int4")
            or len(parts) not in (0, 2, 3)
            or parts[2:] not in ([], ["zero_point"])
        ):
            raise ValueError(text)
        if not parts:
            return int8() if name == "int8" else int4()
        group = None if parts[0] == "row" else int(parts[0])
        if name == "int8" and not parts[2:]:
            return int8(group, parts[1])
        if name == "int4":
            return int4(group, zero_point=bool(parts[2:]), scale_dtype=parts[1])
        raise ValueError(text)
    except (ValueError, TypeError):
        raise errors.ValueMismatchError(
            f"{text!r} is no scheme", expected=_NAMES, fix="or make one with quantization.int8 or .int4"
        ) from None


def _checked_group(name: str, group: int | None, multiple: int) -> int | None:
    if group is not None and (group <= 0 or group % multiple):
        raise errors.ValueMismatchError(
            f"{name}: a group needs a positive{' and even' if multiple == 2 else ''} size", got=repr(group)
        )
    return group


def _checked_dtype(name: str, dtype: Any) -> np.dtype:  # Any: what names a dtype
    found = dtypes.canonical(dtype)
    if found not in SCALE_DTYPES:
        raise errors.ValueMismatchError(
            f"{name}: scales do not have this dtype", got=found.name, expected="float16, bfloat16 or float32"
        )
    return found
