"""Errors for users. Each is built from four parts: what happened, what was given, what was expected, how
to fix it.

Every class also derives from the built-in exception JAX raises in the same place, so `except TypeError`
keeps working.
Imports nothing of ours but the finder of the user's line.
"""

from __future__ import annotations

from infini.core import source


class InfiniError(Exception):
    """Base of every error that infini raises for its user.

    Args:
        what: what happened, one sentence naming the operation and the argument.
        got: what was given, with types as the IR prints them.
        expected: what would have been accepted.
        fix: the change that makes it work.
        where: the user's line; found on the stack when absent.
    """

    def __init__(
        self,
        what: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
        where: source.Where | None = None,
    ) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        self.where = where if where is not None else source.here()
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [self.what]
        for label, text in (("got", self.got), ("expected", self.expected), ("fix", self.fix)):
            if text:
                parts.append(f"  {label + ':':<10}{text}")
        if self.where:
            parts.append(f"  {'at:':<10}{self.where}")
        return "\n".join(parts)


class TypeMismatchError(InfiniError, TypeError):
    """Shapes or dtypes of operands do not go together, or an argument has the wrong kind."""


class PromotionError(InfiniError, TypeError, ValueError):
    """Dtypes of operands have no common type."""


class ValueMismatchError(InfiniError, ValueError):
    """An argument has the right kind and a wrong value."""


class AxisError(ValueMismatchError, IndexError):
    """An array has no such axis. NumPy's error of this name is a value error and an index error, too."""


class IndexOutOfRangeError(InfiniError, IndexError):
    """A static index lies outside its dimension."""


class IndexBroadcastError(IndexOutOfRangeError, ValueError):
    """The arrays of an index do not broadcast: an index error in NumPy, a value error in JAX."""


class OutOfRangeError(InfiniError, OverflowError):
    """A Python or NumPy integer does not fit the dtype it has to become."""


class ConcretizationError(InfiniError, TypeError):
    """Python asked for the value of an array that is being traced."""


class TracerBoolConversionError(ConcretizationError):
    """A traced array decided a Python condition."""


class TracerIntegerConversionError(ConcretizationError):
    """A traced array was used as a Python index, a size, or the bound of a `range`."""


class TracerArrayConversionError(ConcretizationError):
    """A traced array was given to NumPy."""


class NonConcreteBooleanIndexError(ConcretizationError, IndexError):
    """A traced boolean mask was used as an index."""


class LeakedTracerError(InfiniError, TypeError, RuntimeError):
    """A traced value outlived the transformation that made it."""


class KeyReuseError(InfiniError, TypeError):
    """A random key was used twice."""


class NotFiniteError(InfiniError, FloatingPointError):
    """A program made a NaN or an infinity while the knobs `nan` or `inf` were set."""


class UnboundAxisError(InfiniError, NameError, ValueError):
    """A collective names an axis that no enclosing transformation has."""


class MissingDerivativeError(InfiniError, AttributeError):
    """A function with custom derivative rules was called before they were set."""


class MissingRuleError(InfiniError, NotImplementedError):
    """An operation has no rule for the transformation applied to it."""


class LoweringError(InfiniError, NotImplementedError):
    """A backend has no route for an operation."""


class UnsupportedError(InfiniError, NotImplementedError):
    """An argument, or a combination of arguments, that is not offered."""


class CheckError(InfiniError, TypeError):
    """A program is not well formed."""


class ParseError(InfiniError, ValueError):
    """A text is not a program."""


class DeviceError(InfiniError, RuntimeError):
    """A device or backend is missing, or two committed placements differ."""


class OutOfMemoryError(DeviceError, MemoryError):
    """A device has less memory left than was asked for."""


class DonationError(InfiniError, ValueError):
    """A donated buffer could not be reused, or was used after its donation."""


class DeletedBufferError(InfiniError, RuntimeError):
    """An array was used after it had been donated or deleted."""


class BufferExchangeError(InfiniError, BufferError, ValueError):
    """Memory cannot be shared with another library without a copy."""


class CollectiveError(InfiniError, RuntimeError):
    """Processes of one job disagree, or one of them failed."""


class InfiniWarning(UserWarning):
    """Category of every warning; each has a stable code, see `infini.core.events`."""
