"""Names that libraries touch while they load and that infini does not have: using one is the error, so that
what a library does without it still works."""

from __future__ import annotations

from typing import NoReturn

from infini.core import errors


class Refused:
    """A function of JAX that infini does not have; it may be passed around and not called.

    Args:
        name: its full name in JAX.
        fix: what to do without it.
    """

    def __init__(self, name: str, fix: str) -> None:
        self.__name__ = self.__qualname__ = name.rpartition(".")[2]
        self.__module__ = name.rpartition(".")[0]
        self._name = name
        self._fix = fix

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Say that it does not exist.

        Raises:
            UnsupportedError: always.
        """
        raise errors.UnsupportedError(f"infini does not have {self._name}", fix=self._fix)

    def __repr__(self) -> str:
        return f"<{self._name}, which infini does not have>"


def refused_class(name: str, *bases: type) -> type:
    """A class of JAX of which infini has no objects: it may be named and tested for, and not constructed."""

    def refuse(cls: type, *args: object, **kwargs: object) -> NoReturn:
        raise errors.UnsupportedError(
            f"infini does not have {name}", got=f"{cls.__name__}(...)", fix="do without objects of this class"
        )

    module, _, short = name.rpartition(".")
    return type(
        short,
        bases,
        {"__new__": refuse, "__module__": module, "__doc__": f"`{name}`, of which infini has none."},
    )
