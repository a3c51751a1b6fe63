"""`jax.Array` as libraries test for it: arrays, tracers and typed keys, which are of another class here."""

from __future__ import annotations

from infini.core.value import Value
from infini.random import key_array


class _ArrayTest(type):
    """Makes `isinstance` and `issubclass` answer as for JAX's one class of arrays."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (Value, key_array.KeyArray))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, (Value, key_array.KeyArray))


class Array(Value, metaclass=_ArrayTest):
    """`jax.Array`: to test for and to annotate with; arrays are made by functions."""

    __slots__ = ()
