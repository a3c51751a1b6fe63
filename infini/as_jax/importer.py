"""The importer: a finder that answers for `jax` and `jaxlib`, and modules whose names are infini's.

A module holds nothing but a pointer: a name is looked up in `table.ADDED`, then in the module of infini that
`table.MODULES` names, then among the modules of JAX themselves.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, Final

from infini.as_jax import table
from infini.core import errors

PACKAGES: Final = ("jax", "jaxlib")


class JaxModule(types.ModuleType):
    """A module of JAX: its names are those of a module of infini and those that `table.ADDED` adds."""

    def __getattr__(self, name: str) -> Any:  # Any: a module holds anything
        module = self.__name__
        added = table.ADDED.get(module, {})
        if name in added:
            return added[name]
        inner = f"{module}.{name}"
        if inner in table.MODULES:
            return importlib.import_module(inner)
        if not name.startswith("__"):
            for source in table.MODULES[module]:
                found = getattr(_source(source), name, _ABSENT)
                # What a module of infini imports for itself is no name of JAX.
                if found is not _ABSENT and not isinstance(found, types.ModuleType):
                    return found
            stand_ins = table.STAND_INS.get(module, {})
            if name in stand_ins:
                return stand_ins[name]
        raise AttributeError(
            f"module {module!r} has no attribute {name!r}: infini does not have {inner}", name=name, obj=self
        )

    def __dir__(self) -> list[str]:
        names = {*table.ADDED.get(self.__name__, {}), *table.STAND_INS.get(self.__name__, {})}
        for source in table.MODULES[self.__name__]:
            found = _source(source)
            names |= {
                name
                for name in dir(found)
                if not name.startswith("_") and not isinstance(getattr(found, name), types.ModuleType)
            }
        prefix = f"{self.__name__}."
        names |= {
            name.removeprefix(prefix)
            for name in table.MODULES
            if name.startswith(prefix) and "." not in name.removeprefix(prefix)
        }
        return sorted(names)


_ABSENT: Final = object()


def _source(name: str) -> types.ModuleType:
    """A module of infini; the table names only those that exist."""
    return importlib.import_module(name)


class Loader(importlib.abc.Loader):
    """Makes an empty `JaxModule`; there is nothing to run."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module that looks its names up."""
        return JaxModule(spec.name, f"`{spec.name}`, served by infini.")

    def exec_module(self, module: types.ModuleType) -> None:
        """Give the module its list of names, for `from module import *`."""
        module.__file__ = __file__
        if module.__name__ not in PACKAGES:
            module.__dict__["__all__"] = [name for name in dir(module) if not name.startswith("_")]


class Finder(importlib.abc.MetaPathFinder):
    """Answers for every module of JAX and of jaxlib: those of the table exist, the others do not."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module of JAX, and None for modules of others.

        Raises:
            ModuleNotFoundError: it is a module of JAX that infini does not have.
        """
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        if fullname not in table.MODULES:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: infini does not have this module of JAX", name=fullname
            )
        return importlib.machinery.ModuleSpec(fullname, Loader(), origin=__file__, is_package=True)


_finder: Final = Finder()


def is_installed() -> bool:
    """Whether `import jax` finds infini in this process."""
    return _finder in sys.meta_path


def install() -> None:
    """Make `import jax` find infini, from now on and in the whole process. A second call does nothing.

    Raises:
        ValueMismatchError: JAX itself has been imported, so that one program would hold arrays of both.

    Example:
        >>> import infini.as_jax
        >>> with infini.as_jax.installed():
        ...     import jax.numpy
        ...
        ...     print(jax.numpy.arange(3))
        [0 1 2]
    """
    if is_installed():
        return
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] in PACKAGES)
    if loaded:
        raise errors.ValueMismatchError(
            "JAX is imported already, so infini cannot stand in for it",
            got=f"{loaded[0]} from {getattr(sys.modules[loaded[0]], '__file__', 'an unknown place')}",
            expected="a process that has not imported jax or jaxlib",
            fix="call infini.as_jax.install() before the first `import jax`, or start the program with "
            "`python -m infini.as_jax PROGRAM.py`",
        )
    sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Undo `install`: `import jax` finds JAX again, if there is one. Imported libraries keep infini."""
    if is_installed():
        sys.meta_path.remove(_finder)
    for name in [name for name, module in sys.modules.items() if isinstance(module, JaxModule)]:
        del sys.modules[name]


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """`install` for a block, and `uninstall` after it unless infini stood in for JAX before.

    Raises:
        ValueMismatchError: as `install`.
    """
    was_installed = is_installed()
    install()
    try:
        yield
    finally:
        if not was_installed:
            uninstall()
