"""Typed keys: arrays whose elements are keys, with the methods of arrays that make sense for them.

A `KeyArray` is a pytree of one leaf, its uint32 words of shape (..., 2), so every transformation takes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

import infini.numpy as inp
from infini.core import array as array_, array_class, dtypes, errors, tree
from infini.core.value import Value
from infini.lax import view
from infini.numpy import _axes

Index: TypeAlias = Any  # Any: as of arrays


@dataclass(frozen=True, slots=True)
class KeyDType(dtypes.ExtendedDType):
    """The dtype of typed keys.

    Args:
        implementation: name of the generator.
        tag: its short name, which is printed.
    """

    implementation: str
    tag: str

    @property
    def name(self) -> str:
        """The dtype as it is printed."""
        return f"key<{self.tag}>"

    @property
    def itemsize(self) -> int:
        """Bytes of one key."""
        return 8

    def __repr__(self) -> str:
        return self.name


THREEFRY = KeyDType("threefry2x32", "fry")


class KeyArray:
    """An array of keys; made by `random.key`, `random.split` and `random.wrap_key_data`.

    Args:
        words: uint32 words of shape (..., 2).
    """

    __slots__ = ("words",)
    __hash__ = None  # type: ignore[assignment]  # as of arrays

    def __init__(self, words: Value) -> None:
        self.words = words

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of keys."""
        return self.words.shape[:-1]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of keys."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> KeyDType:
        """The kind of keys, printed as `key<fry>`."""
        return THREEFRY

    @property
    def itemsize(self) -> int:
        """Bytes of one key."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all keys."""
        return self.size * self.itemsize

    @property
    def T(self) -> KeyArray:
        """The dimensions in reverse order."""
        return self.transpose()

    @property
    def at(self) -> KeyIndexUpdateHelper:
        """`keys.at[index].set(other)`: a copy with other keys at an index."""
        return KeyIndexUpdateHelper(self)

    def reshape(self, *shape: Any) -> KeyArray:  # Any: sizes, or one sequence of sizes
        """The same keys in another shape; one size may be -1."""
        sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)
        if sizes.count(-1) == 1:
            known = -math.prod(sizes)
            sizes[sizes.index(-1)] = self.size // known if known else 0
        return KeyArray(view.reshape(self.words, (*_axes.shape("reshape", sizes), 2)))

    def ravel(self) -> KeyArray:
        """The keys in one dimension."""
        return self.reshape(-1)

    def flatten(self) -> KeyArray:
        """The keys in one dimension."""
        return self.reshape(-1)

    def squeeze(self, axis: int | tuple[int, ...] | None = None) -> KeyArray:
        """The keys without dimensions of size 1."""
        axes = [d for d, n in enumerate(self.shape) if n == 1] if axis is None else axis
        return KeyArray(inp.squeeze(self.words, _axes.several("squeeze", axes, self.ndim)))

    def transpose(self, *axes: Any) -> KeyArray:  # Any: axes, or one sequence of axes
        """The keys with permuted dimensions."""
        given = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        order = [_axes.one("transpose", a, self.ndim) for a in given or range(self.ndim)[::-1]]
        return KeyArray(view.transpose(self.words, (*order, self.ndim)))

    def swapaxes(self, axis1: int, axis2: int) -> KeyArray:
        """The keys with two dimensions swapped."""
        first, second = (_axes.one("swapaxes", a, self.ndim) for a in (axis1, axis2))
        return KeyArray(inp.swapaxes(self.words, first, second))

    def repeat(self, repeats: Any, axis: int | None = None) -> KeyArray:  # Any: as numpy.repeat
        """Each key several times, as `numpy.repeat`."""
        keys, place = self._along("repeat", axis)
        return KeyArray(inp.repeat(keys.words, repeats, place))

    def take(self, indices: Any, axis: int | None = None) -> KeyArray:  # Any: integers
        """The keys at some places, as `numpy.take`."""
        keys, place = self._along("take", axis)
        return KeyArray(inp.take(keys.words, indices, place))

    def _along(self, name: str, axis: int | None) -> tuple[KeyArray, int]:
        return (self.ravel(), 0) if axis is None else (self, _axes.one(name, axis, self.ndim))

    def copy(self) -> KeyArray:
        """The same keys; arrays never change."""
        return self

    @property
    def device(self) -> Any:  # Any: a device or a sharding
        """The device of the words, or their sharding when they are on several."""
        return self._concrete().device

    @property
    def sharding(self) -> Any:  # Any: a sharding
        """Where the words live."""
        return self._concrete().sharding

    @property
    def committed(self) -> bool:
        """Whether the placement was asked for."""
        return self._concrete().committed

    def devices(self) -> set[Any]:  # Any: devices
        """The devices that hold a part."""
        return self._concrete().devices()

    def block_until_ready(self) -> KeyArray:
        """Wait until the words are there."""
        self._concrete().block_until_ready()
        return self

    def delete(self) -> None:
        """Release the words."""
        self._concrete().delete()

    def is_deleted(self) -> bool:
        """Whether the words have been donated or released."""
        return self._concrete().is_deleted()

    def _concrete(self) -> array_.Array:
        if not isinstance(self.words, array_.Array):
            raise errors.ConcretizationError("traced keys live on no device yet", got=repr(self))
        return self.words

    def __getitem__(self, index: Index) -> KeyArray:
        return KeyArray(self.words[_of_words(index)])

    def __len__(self) -> int:
        if not self.shape:
            raise errors.TypeMismatchError(
                "a single key has no length", fix="split it with infini.random.split"
            )
        return self.shape[0]

    def __iter__(self) -> Iterator[KeyArray]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> Any:  # Any: an array of booleans
        if not isinstance(other, KeyArray):
            return NotImplemented
        return inp.all(inp.equal(self.words, other.words), -1)

    def __ne__(self, other: object) -> Any:  # Any: an array of booleans
        if not isinstance(other, KeyArray):
            return NotImplemented
        return inp.any(inp.not_equal(self.words, other.words), -1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # Any: NumPy's protocol
        raise errors.TypeMismatchError(
            "typed keys are not numbers", got=f"keys of shape {self.shape}", fix="use random.key_data(keys)"
        )

    def __repr__(self) -> str:
        if not isinstance(self.words, array_.Array):
            return f"KeyArray({self.shape}, dtype={self.dtype}) overlaying:\n{self.words!r}"
        return f"Array({self.shape}, dtype={self.dtype}) overlaying:\n{self.words}"


def _of_words(index: Index) -> tuple[Any, ...]:  # Any: items of an index
    """An index of keys as one of their words."""
    items = index if isinstance(index, tuple) else (index,)
    rest = () if any(item is Ellipsis for item in items) else (Ellipsis,)
    return (*items, *rest, slice(None))


@dataclass(frozen=True, slots=True)
class KeyIndexUpdateHelper:
    """`keys.at`."""

    keys: KeyArray

    def __getitem__(self, index: Index) -> KeyIndexUpdateRef:
        return KeyIndexUpdateRef(self.keys, index)


@dataclass(frozen=True, slots=True)
class KeyIndexUpdateRef:
    """One place of an array of keys, to be read or written."""

    keys: KeyArray
    index: Index

    def get(self) -> KeyArray:
        """The keys at the index."""
        return self.keys[self.index]

    def set(self, values: KeyArray) -> KeyArray:
        """A copy with other keys at the index.

        Raises:
            TypeMismatchError: the values are not typed keys.
        """
        if not isinstance(values, KeyArray):
            raise errors.TypeMismatchError(
                "only typed keys can be written into an array of keys",
                got=f"an argument of type {type(values).__name__}",
                fix="wrap raw words with random.wrap_key_data",
            )
        return KeyArray(self.keys.words.at[_of_words(self.index)].set(values.words))


tree.register_pytree_node(KeyArray, lambda keys: ((keys.words,), None), lambda _, words: KeyArray(*words))
array_class.count_as_array(KeyArray)
