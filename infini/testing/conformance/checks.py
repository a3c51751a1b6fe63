"""Checks and their outcomes: what a check gets, how it fails, and how all of them run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from infini.backends.vendors.adapter import AdapterBackend
from infini.backends.vendors.runtime import Runtime
from infini.core import backend as backend_, errors
from infini.core.backend import Backend, Device

Status: TypeAlias = Literal["passed", "failed", "not available"]
SECTIONS = ("backend", "memory", "streams", "events", "collectives", "kernels", "programs")


class Failed(errors.InfiniError):
    """A device did something else than it should."""


class NotAvailable(errors.InfiniError):
    """Something that a check needs is not here, or the device does without it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a device has to do.

    Args:
        section: one of `SECTIONS`.
        name: what it does.
        run: does it; gives a word about what was seen, and raises `Failed` or `NotAvailable`.
    """

    section: str
    name: str
    run: Callable[[Subject], str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a check."""

    section: str
    name: str
    status: Status
    detail: str


class Subject:
    """The backend under test, and what checks use to look at it.

    Args:
        name: of the backend.
        chosen: the backend; the one of that name when absent.
    """

    def __init__(self, name: str, chosen: Backend | None = None) -> None:
        self.name = name
        self.backend = backend_.get(name) if chosen is None else chosen

    @property
    def adapter(self) -> AdapterBackend:
        """The backend as an adapter.

        Raises:
            NotAvailable: it is made in another way.
        """
        if not isinstance(self.backend, AdapterBackend):
            raise NotAvailable(f"{self.name} is no adapter: its runtime has no table to check")
        return self.backend

    @property
    def runtime(self) -> Runtime:
        """The runtime, with the first device current in this thread.

        Raises:
            NotAvailable: there is no device, or no table.
        """
        adapter = self.adapter
        self.need_device()
        adapter.runtime.use(0)
        return adapter.runtime

    def need_device(self) -> None:
        """Go on only where there is a device; an adapter's may lack a compiler.

        Raises:
            NotAvailable: there is none.
        """
        adapter = self.backend if isinstance(self.backend, AdapterBackend) else None
        reason = self.backend.why_unavailable() if adapter is None else adapter.why_no_runtime()
        if reason is not None:
            raise NotAvailable(reason)

    def device(self, number: int) -> Device:
        """A device, whether or not there is a compiler for its kernels."""
        return Device(self.name, number)

    def stream(self) -> Scope:
        """A stream for a block of code."""
        runtime = self.runtime
        return Scope(runtime.stream_create, runtime.stream_destroy)

    def event(self) -> Scope:
        """An event for a block of code."""
        runtime = self.runtime
        return Scope(runtime.event_create, runtime.event_destroy)

    def block(self, nbytes: int) -> Scope:
        """Memory of the device for a block of code."""
        runtime = self.runtime
        return Scope(functools.partial(runtime.allocate, nbytes), runtime.free)

    def upload(self, address: int, host: np.ndarray) -> None:
        """Copy an array to the device, and wait."""
        self.runtime.copy(address, host.ctypes.data, host.nbytes, "h2d")

    def download(self, address: int, nbytes: int) -> np.ndarray:
        """Bytes of the device."""
        host = np.zeros(nbytes, np.uint8)
        self.runtime.copy(host.ctypes.data, address, nbytes, "d2h")
        return host


class Scope:
    """Something of the device that is given back at the end of a block."""

    def __init__(self, make: Callable[[], int], give_back: Callable[[int], None]) -> None:
        self._make, self._give_back = make, give_back

    def __enter__(self) -> int:
        self._value = self._make()
        return self._value

    def __exit__(self, *_: object) -> None:
        self._give_back(self._value)


def expect(holds: bool, what: str, *, got: object = None, expected: object = None) -> None:
    """Go on only when something holds.

    Raises:
        Failed: it does not.
    """
    if not holds:
        raise Failed(
            what,
            got=None if got is None else str(got),
            expected=None if expected is None else str(expected),
        )


def expect_equal(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Go on only when two arrays have the same elements.

    Raises:
        Failed: they have not; the message has the first that differs.
    """
    if np.array_equal(got, wanted):
        return
    wrong = np.flatnonzero(got.reshape(-1) != wanted.reshape(-1)) if got.shape == wanted.shape else [0]
    first = int(wrong[0])
    raise Failed(
        f"{what}: {len(wrong)} of {wanted.size} elements differ, the first is number {first}",
        got=str(got.reshape(-1)[first] if got.size else "nothing"),
        expected=str(wanted.reshape(-1)[first] if wanted.size else "nothing"),
    )


def data(nbytes: int, seed: int = 0) -> np.ndarray:
    """Bytes that differ from each other and between seeds."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def run(subject: Subject, checks: Sequence[Check]) -> Iterator[Outcome]:
    """Run checks one after another; one that breaks does not stop the others.

    Args:
        subject: the backend.
        checks: which; see `suite.all_checks`.
    """
    for check in checks:
        status: Status = "passed"
        try:
            detail = check.run(subject)
        except NotAvailable as error:
            status, detail = "not available", error.what
        except Failed as error:
            status, detail = "failed", _in_a_line(error)
        except Exception as error:  # noqa: BLE001  # a device may break in any way
            status, detail = "failed", f"{type(error).__name__}: {_in_a_line(error)}"
        yield Outcome(check.section, check.name, status, detail)


def _in_a_line(error: Exception) -> str:
    if not isinstance(error, errors.InfiniError):
        return str(error)
    parts = [error.what]
    parts += [f"{word} {text}" for word, text in (("got", error.got), ("expected", error.expected)) if text]
    return "; ".join(parts)
