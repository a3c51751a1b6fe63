"""Random bits: the Threefry-2x32 block cipher with 20 rounds, as an elementwise operation of two words
and two keys.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The stream of an element
    depends on the key
and its global counter alone, so neither mesh nor batching changes it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import families
from infini.lax.families import bind_scalars

_ROTATIONS: Final = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY: Final = 0x1BD11BDA


def _type(*types: ArrayType) -> tuple[ArrayType, ...]:
    families.accept("threefry2x32", {dtypes.uint32}, types)
    result = ArrayType(families.loop_shape("threefry2x32", types, [0] * 4), dtypes.uint32)
    return result, result


def _rounds(
    key0: Any, key1: Any, x0: Any, x1: Any, add: Any, xor: Any, rotate: Any, word: Any
) -> tuple[Any, Any]:
    """The cipher over any arithmetic of 32-bit words."""
    keys = (key0, key1, xor(xor(key0, key1), word(_PARITY)))
    x0, x1 = add(x0, keys[0]), add(x1, keys[1])
    for block in range(5):
        for distance in _ROTATIONS[block % 2]:
            x0 = add(x0, x1)
            x1 = xor(rotate(x1, distance), x0)
        x0 = add(x0, keys[(block + 1) % 3])
        x1 = add(add(x1, keys[(block + 2) % 3]), word(block + 1))
    return x0, x1


def _reference(
    key0: np.ndarray, key1: np.ndarray, x0: np.ndarray, x1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        first, second, third, fourth = np.broadcast_arrays(key0, key1, x0, x1)
        return _rounds(
            first,
            second,
            third,
            fourth,
            np.add,
            np.bitwise_xor,
            lambda x, n: (x << np.uint32(n)) | (x >> np.uint32(32 - n)),
            np.uint32,
        )


def _decompose(key0: Value, key1: Value, x0: Value, x1: Value) -> tuple[Value, Value]:
    op = primitive.by_name

    def rotate(x: Value, distance: int) -> Value:
        left = bind_scalars(op("shift_left"), x, distance)
        return bind_scalars(op("or"), left, bind_scalars(op("shift_right_logical"), x, 32 - distance))

    return _rounds(
        key0,
        key1,
        x0,
        x1,
        lambda x, y: bind_scalars(op("add"), x, y),
        lambda x, y: bind_scalars(op("xor"), x, y),
        rotate,
        lambda n: families.like(n, key0),
    )


threefry2x32_p: Primitive = primitive.register(
    Primitive(
        "threefry2x32",
        Signature(((),) * 4, ((), ())),
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: families.no_jvp,
            primitive.DECOMPOSE: _decompose,
            primitive.COST: families.PerElement(80.0),
            primitive.WEAK: lambda weak, attrs: False,
        },
    )
)


def threefry2x32(key0: Any, key1: Any, x0: Any, x1: Any) -> tuple[Value, Value]:
    """Encrypt pairs of 32-bit words.

    Args:
        key0: first key word, uint32.
        key1: second key word, uint32.
        x0: first words of the counters, uint32; operands broadcast.
        x1: second words of the counters, uint32.

    Returns:
        Two uint32 arrays of the broadcast shape.
    """
    first, second = trace.bind(threefry2x32_p, key0, key1, x0, x1)
    return first, second
