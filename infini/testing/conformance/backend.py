"""The backend itself: it is found, says what it has, and refuses what is not there."""

from __future__ import annotations

from infini.core import backend as backend_, errors
from infini.core.backend import Broken
from infini.testing.conformance.checks import Check, Failed, NotAvailable, Subject, expect


def is_loaded(subject: Subject) -> str:
    """It can be loaded, and says why it has no device or has one."""
    if isinstance(subject.backend, Broken):
        raise Failed(f"the backend {subject.name!r} {subject.backend.reason}")
    expect(subject.backend.name == subject.name, "its name is another one", got=subject.backend.name)
    reason = subject.backend.why_unavailable()
    devices = subject.backend.devices()
    expect((reason is None) == bool(devices), "it says why it has no device when it has none, and only then")
    if reason is not None:
        expect(len(reason) > 20, "its reason helps nobody", got=reason)
        raise NotAvailable(reason)
    return ", ".join(map(str, devices))


def is_known(subject: Subject) -> str:
    """Its devices can be asked for by name."""
    reason = subject.backend.why_unavailable()
    if reason is not None:
        raise NotAvailable(reason)
    if subject.name not in backend_.names() or backend_.get(subject.name) is not subject.backend:
        raise NotAvailable("it was given to the checks and is not the one that is advertised")
    found = backend_.devices(subject.name)
    expect(found == subject.backend.devices(), "the registry gives other devices", got=found)
    return f"{len(found)} devices"


def has_facts(subject: Subject) -> str:
    """Name, kind of processor, and facts of the first device."""
    runtime = subject.runtime
    known = {name: runtime.attribute(name, 0) for name in runtime.table.attributes}
    facts = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return f"{runtime.name(0)}, {subject.adapter.target(0).arch}" + (f", {facts}" if facts else "")


def refuses_devices(subject: Subject) -> str:
    """A device that does not exist is an error with the vendor's words."""
    runtime = subject.runtime
    count = runtime.device_count()
    try:
        runtime.use(count)
    except errors.DeviceError as error:
        return error.got or error.what
    finally:
        runtime.use(0)
    raise Failed(f"device {count} of {count} could be set")


CHECKS = (
    Check("backend", "is loaded", is_loaded),
    Check("backend", "is found by name", is_known),
    Check("backend", "has a name and facts", has_facts),
    Check("backend", "refuses a device that is not there", refuses_devices),
)
