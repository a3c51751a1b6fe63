"""`Array`, the class to test for and to annotate with: arrays, tracers, and typed keys, which are of a
class of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infini.core.value import Value


class _ArrayTest(type):
    """Makes `isinstance` and `issubclass` answer as for JAX's one class of arrays."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _CLASSES)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _CLASSES)


_CLASSES: tuple[type, ...] = (Value,)


def count_as_array(cls: type) -> type:
    """Make objects of a class, which is no `Value`, instances of `Array`; returns the class."""
    global _CLASSES
    _CLASSES = (*_CLASSES, cls)
    return cls


if TYPE_CHECKING:
    Array = Value
else:

    class Array(Value, metaclass=_ArrayTest):
        """Arrays, tracers and typed keys: to test for and to annotate with. Arrays are made by functions.

        Example:
            >>> import infini
            >>> isinstance(infini.numpy.ones(3), infini.Array), isinstance(infini.random.key(0), infini.Array)
            (True, True)
        """

        __slots__ = ()
