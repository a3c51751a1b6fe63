"""Finding leaked tracers: values of a transformation that something still refers to when it has finished.

Looked for when the knob `check_tracer_leaks` is set: after each trace, and at the end of `checking_leaks` for
transformations that run without tracing. The collector of Python knows who refers to whom.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

from infini.core import config, errors

_watched: list[weakref.ref[Any]] = []  # Any: interpreters, whose module imports this one


def watch(interpreter: Any) -> None:  # Any: as in _watched
    """Look at an interpreter that has finished at the end of the block that checks."""
    _watched.append(weakref.ref(interpreter))


@contextlib.contextmanager
def checking_leaks() -> Iterator[None]:
    """Raise where a traced value outlives its transformation, as `jax.checking_leaks`.

    Functions that were traced before are not traced again, and not looked at.

    Raises:
        LeakedTracerError: something still refers to a traced value; the message says what.

    Example:
        >>> import infini
        >>> seen = []
        >>> try:
        ...     with infini.checking_leaks():
        ...         infini.jit(lambda x: seen.append(x))(1.0)
        ... except infini.errors.UnexpectedTracerError as error:
        ...     print(error.what)
        a traced value of type f32[] outlives jit of <lambda>
    """
    with config.config(check_tracer_leaks=True):
        _watched.clear()
        yield
        gc.collect()
        alive = [interpreter for interpreter in (reference() for reference in _watched) if interpreter]
        _watched.clear()
        for interpreter in alive:
            check(interpreter)


def check(interpreter: Any) -> None:  # Any: as in _watched
    """Raise when anything but the caller refers to a tracer of an interpreter.

    Raises:
        LeakedTracerError: something does.
    """
    found = _tracers(interpreter)
    if not found:
        return
    gc.collect()
    found = _tracers(interpreter)
    for tracer in found:
        holders = [text for text in (_holder(tracer, found)) if text]
        if holders:
            raise errors.LeakedTracerError(
                f"a traced value of type {tracer.type} outlives {interpreter}",
                got=f"a value {tracer.origin()}, which is still referred to by {', and by '.join(holders)}",
                expected="nothing that refers to traced values when the function has returned",
                fix="return it from the transformed function instead of storing it",
                where=tracer.born,
            )


def _tracers(interpreter: Any) -> list[Any]:  # Any: tracers, whose module imports this one
    return [
        referrer
        for referrer in gc.get_referrers(interpreter)
        if getattr(type(referrer), "origin", None) is not None and referrer.owner is interpreter
    ]


def _holder(tracer: Any, ours: list[Any]) -> Iterator[str]:  # Any: as in _tracers
    """What refers to a tracer, frames and lists of ours left out."""
    for referrer in gc.get_referrers(tracer):
        if referrer is ours or isinstance(referrer, (types.FrameType, types.GeneratorType)):
            continue
        if isinstance(referrer, types.CellType):
            yield f"a variable of an enclosing function{_name_of_cell(referrer)}"
        elif isinstance(referrer, dict):
            yield _described_dict(referrer, tracer)
        else:
            yield f"{_attribute_of(referrer, tracer)}a {type(referrer).__name__}{_where_from(referrer)}"


def _attribute_of(owner: Any, tracer: Any) -> str:  # Any: objects of any kind
    """The name of the attribute in which an object holds a tracer, when it holds it in one."""
    held = getattr(owner, "__dict__", {})
    return next((f"the attribute {name!r} of " for name, item in held.items() if item is tracer), "")


def _described_dict(holder: dict[Any, Any], tracer: Any) -> str:  # Any: keys and values of any kind
    key = next((key for key, item in holder.items() if item is tracer), None)
    for name, module in list(sys.modules.items()):
        if getattr(module, "__dict__", None) is holder:
            return f"the global variable {key!r} of {name}"
    owner = next((r for r in gc.get_referrers(holder) if getattr(r, "__dict__", None) is holder), None)
    if owner is not None:
        return f"the attribute {key!r} of a {type(owner).__name__}"
    return f"a dict under {key!r}{_where_from(holder)}"


def _where_from(container: Any) -> str:  # Any: whatever holds a tracer
    """The global variable or attribute behind a container, when there is one."""
    for referrer in gc.get_referrers(container):
        if isinstance(referrer, dict):
            described = _described_dict(referrer, container)
            if described.startswith("the "):
                return f" in {described}"
        if isinstance(referrer, types.CellType):
            return f" in a variable of an enclosing function{_name_of_cell(referrer)}"
    return ""


def _name_of_cell(cell: types.CellType) -> str:
    closures: list[tuple[types.CellType, ...]] = [r for r in gc.get_referrers(cell) if isinstance(r, tuple)]
    for closure in closures:
        for function in gc.get_referrers(closure):
            if isinstance(function, types.FunctionType) and function.__closure__ is closure:
                (name,) = (
                    n for n, c in zip(function.__code__.co_freevars, closure, strict=True) if c is cell
                )
                return f", {name!r} in {function.__qualname__}"
    return ""
