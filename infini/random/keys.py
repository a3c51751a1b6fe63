"""Keys of random streams: raw uint32 arrays of shape (..., 2), and typed keys that wrap them.

A key is split or folded, never changed, so equal keys give equal numbers on every device and mesh. The
algorithms are those of JAX with `jax_threefry_partitionable`,
https://docs.jax.dev/en/latest/jep/263-prng.html
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final, TypeAlias

import numpy as np

from infini.core import array as array_, dtypes, errors, trace, value
from infini.core.value import Value
from infini.lax import elementwise as e, random_bits, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes
from infini.numpy._promotion import convert
from infini.random import key_array
from infini.random.key_array import KeyArray, KeyDType
from infini.transforms import staging

IMPLEMENTATION: Final = key_array.THREEFRY.implementation

KeyLike: TypeAlias = Any  # Any: a typed key, or a raw uint32 array of shape (2,)


def PRNGKey(seed: Any, *, impl: str | None = None) -> Value:  # Any: integer or array of one; JAX's name
    """A raw key, uint32[2], from a seed.

    Args:
        seed: integer; as in JAX only the low 32 bits of Python integers count.
        impl: name of the generator; only threefry2x32.

    Raises:
        TypeMismatchError: the seed is not one integer.
        ValueMismatchError: the generator is another one.
    """
    _check_implementation(impl)
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        words = np.array([0, int(seed) & 0xFFFFFFFF], np.uint32)
        return array_.materialize(value.literal(words))
    number = trace.as_value(seed)
    if number.ndim or number.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError("a seed has to be one integer", got=str(number.type))
    low = e.convert_element_type(number, dtypes.uint32)
    high = _high_word(number) if number.dtype.itemsize == 8 else convert(0, dtypes.uint32)
    return view.concatenate([view.reshape(high, (1,)), view.reshape(low, (1,))], 0)


def _high_word(number: Value) -> Value:
    unsigned = e.convert_element_type(number, dtypes.uint64)
    return e.convert_element_type(bind_scalars(e.shift_right_logical_p, unsigned, 32), dtypes.uint32)


def key(
    seed: Any, *, impl: str | None = None, dtype: KeyDType | None = None
) -> KeyArray:  # Any: integer or array of one
    """A typed key from a seed, with the words of `PRNGKey`.

    Args:
        seed: integer; as in JAX only the low 32 bits of Python integers count.
        impl: name of the generator; only threefry2x32.
        dtype: the same as a dtype, from `key_dtype()`.

    Example:
        >>> from infini import random
        >>> random.normal(random.key(0), (2,)).shape
        (2,)
    """
    _check_dtype(dtype)
    return KeyArray(PRNGKey(seed, impl=impl))


def key_dtype(impl_spec: str | None = None) -> KeyDType:
    """The dtype of typed keys of a generator."""
    _check_implementation(impl_spec)
    return key_array.THREEFRY


def key_data(keys: KeyLike) -> Value:
    """The words of keys, uint32 of shape (..., 2)."""
    return keys.words if isinstance(keys, KeyArray) else raw(keys, "key_data", is_single=False)


def wrap_key_data(
    key_bits_array: Any, *, impl: str | None = None, dtype: KeyDType | None = None
) -> KeyArray:  # Any: uint32 array of shape (..., 2)
    """Typed keys with these words.

    Raises:
        TypeMismatchError: these are no words of keys.
        ValueMismatchError: the generator is another one than threefry2x32.
    """
    _check_implementation(impl)
    _check_dtype(dtype)
    if isinstance(key_bits_array, KeyArray):
        raise errors.TypeMismatchError(
            "wrap_key_data: these are typed keys already", got=repr(key_bits_array)
        )
    return KeyArray(raw(key_bits_array, "wrap_key_data", is_single=False))


def key_impl(keys: KeyLike) -> str:
    """Name of the generator of keys."""
    raw(keys, "key_impl", is_single=False)
    return IMPLEMENTATION


def clone(key: KeyLike) -> KeyLike:
    """The same key; infini does not track the reuse of keys."""
    return key


def _check_implementation(impl: str | None) -> None:
    if impl not in (None, IMPLEMENTATION):
        raise errors.ValueMismatchError(
            f"there is no random generator {impl!r}",
            expected=f"{IMPLEMENTATION!r} or None",
            fix="leave out impl=",
        )


def _check_dtype(dtype: KeyDType | None) -> None:
    if dtype not in (None, key_array.THREEFRY):
        raise errors.ValueMismatchError(
            "this is no dtype of keys", got=repr(dtype), expected="infini.random.key_dtype()"
        )


def raw(key: KeyLike, name: str, *, is_single: bool = True) -> Value:
    """The words of a key given to the function `name`.

    Raises:
        TypeMismatchError: it is no key.
        ValueMismatchError: it is an array of keys and the function takes one.
    """
    words = key.words if isinstance(key, KeyArray) else None
    if words is None and (isinstance(key, (Value, np.ndarray)) or hasattr(key, "__infini_array__")):
        words = trace.as_value(key)
    if words is None or words.dtype != dtypes.uint32 or not words.ndim or words.shape[-1] != 2:
        raise errors.TypeMismatchError(
            f"random.{name} needs a key",
            got=str(words.type) if words is not None else f"an argument of type {type(key).__name__}",
            expected="infini.random.key(seed), infini.random.PRNGKey(seed), or uint32 words of shape (2,)",
        )
    if is_single and words.ndim > 1:
        raise errors.ValueMismatchError(
            f"random.{name} takes one key",
            got=f"keys of shape {words.shape[:-1]}",
            fix="map over the keys with infini.vmap",
        )
    return words


def _like(key: KeyLike, words: Value) -> KeyLike:
    return KeyArray(words) if isinstance(key, KeyArray) else words


def encrypt(words: Value, shape: tuple[int, ...]) -> tuple[Value, Value]:
    """Two 32-bit words per element of `shape`, from its position in C order.

    Raises:
        ValueMismatchError: there are 2**32 elements or more.
    """
    size = math.prod(shape)
    if size >= 1 << 32:
        raise errors.ValueMismatchError(
            "one call draws fewer than 2**32 numbers",
            got=f"shape {shape}",
            fix="split the key and draw in parts",
        )
    counter = view.reshape(view.iota(dtypes.uint32, size), shape)
    return random_bits.threefry2x32(_word(words, 0), _word(words, 1), convert(0, dtypes.uint32), counter)


def split(key: KeyLike, num: int | tuple[int, ...] = 2) -> KeyLike:
    """New keys from one, to be used instead of it.

    Args:
        key: a key.
        num: how many, or the shape of the array of new keys.

    Returns:
        Typed keys of shape `num`, or raw ones of shape (num..., 2), as the key was.
    """
    return _like(key, split_words(raw(key, "split"), _axes.shape("split", num)))


@functools.partial(staging.jit, static_argnums=(1,))
def split_words(words: Value, shape: tuple[int, ...]) -> Value:
    """Words of new keys, (shape..., 2), from those of one."""
    pair = encrypt(words, shape)
    return view.concatenate([view.expand_dims(word, (word.ndim,)) for word in pair], len(shape))


def fold_in(key: KeyLike, data: Any) -> KeyLike:  # Any: integer or array of one
    """A new key from a key and an integer, such as a step or a layer number.

    Raises:
        TypeMismatchError: `data` is not one integer.
        OutOfRangeError: a Python integer is negative or has more than 32 bits.
    """
    words = raw(key, "fold_in")
    number = convert(data, dtypes.uint32) if type(data) is int else trace.as_value(data)
    if number.ndim or number.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError("fold_in takes one integer", got=str(number.type))
    return _like(key, _folded(words, convert(number, dtypes.uint32)))


@staging.jit
def _folded(words: Value, count: Value) -> Value:
    mixed = random_bits.threefry2x32(_word(words, 0), _word(words, 1), convert(0, dtypes.uint32), count)
    return view.concatenate([view.reshape(word, (1,)) for word in mixed], 0)


def _word(words: Value, i: int) -> Value:
    return view.reshape(view.slice(words, (i,), (i + 1,)), ())
