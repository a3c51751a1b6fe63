"""Asserting counts, which are the same on every machine: how often a jitted function was traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from infini.transforms import staging


@contextlib.contextmanager
def assert_max_traces(function: staging.Jitted, count: int) -> Iterator[None]:
    """Assert that a jitted function is traced at most `count` times inside the block.

    Args:
        function: what `infini.jit` returned.
        count: largest number of traces.

    Raises:
        AssertionError: it was traced more often. `INFINI_EXPLAIN=1` logs the argument that differed each
            time.

    Example:
        >>> import infini
        >>> from infini.testing import assert_max_traces
        >>> double = infini.jit(lambda x: x * 2)
        >>> with assert_max_traces(double, 1):
        ...     _ = double(1.0), double(2.0)
    """
    before = function.num_traces
    yield
    made = function.num_traces - before
    assert made <= count, (
        f"{function!r} was traced {made} times, expected at most {count}; INFINI_EXPLAIN=1 tells why"
    )
