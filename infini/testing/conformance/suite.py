"""All checks, in the order of their sections."""

from __future__ import annotations

from infini.testing.conformance import backend, collectives, kernels, memory, streams
from infini.testing.conformance.checks import SECTIONS, Check


def all_checks() -> tuple[Check, ...]:
    """Every check, in the order of the sections."""
    found = (*backend.CHECKS, *memory.CHECKS, *streams.CHECKS, *collectives.CHECKS, *kernels.CHECKS)
    return tuple(sorted(found, key=lambda check: SECTIONS.index(check.section)))
