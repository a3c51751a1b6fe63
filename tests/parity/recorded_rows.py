"""What JAX gives for many small expressions, recorded: evaluating them takes a minute, reading a file none.

A file has one row per expression, `expression => outcome`. `python -m tests.parity.recorded_rows` evaluates
the expressions of every file in JAX and writes the outcomes anew; a slow test does the same and compares.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

FOLDER: Final = Path(__file__).resolve().parent / "recorded"
ARROW: Final = " => "


def rows(path: Path) -> Iterator[tuple[str, str]]:
    """Expression and outcome of each row."""
    for line in path.read_text(encoding="utf-8").splitlines():
        expression, _, outcome = line.partition(ARROW)
        yield expression, outcome


def outcome(expression: str, numpy: Any, lax: Any, api: Any) -> str:  # Any: modules of either library
    """What an expression gives in a library: dtype, shape, weak flag and elements, or its class of error."""
    given = {"np": np, "lax": lax, "api": api, **_given(numpy)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return shown(eval(expression, given))
        except Exception as error:  # noqa: BLE001  # classes of errors are what is compared
            classes = [c for c in type(error).__mro__ if c.__module__ == "builtins"]
            return "raises " + " ".join(c.__name__ for c in classes[: classes.index(Exception)])


@functools.cache
def _given(numpy: Any) -> dict[str, Any]:  # Any: a module, and its arrays
    return {
        "n": numpy, "x": numpy.arange(6.0).reshape(2, 3), "v": numpy.arange(5), "e": numpy.zeros((0, 3)),
        "y": numpy.arange(24).reshape(2, 3, 4),
    }  # fmt: skip


def shown(result: Any) -> str:  # Any: arrays of either library, and trees of them
    """A text that is equal where results are; floats to four places."""
    if isinstance(result, (list, tuple)):
        return f"{type(result).__name__}({', '.join(map(shown, result))})"
    if not hasattr(result, "weak_type"):
        return repr(result)
    host = np.asarray(result)
    if host.dtype.kind not in "biu":
        host = np.round(host.astype(np.complex128 if host.dtype.kind == "c" else np.float64), 4) + 0.0
    weak = " weak" if result.weak_type else ""
    return f"{result.dtype}{list(result.shape)}{weak} {host.tolist()}"


def agrees(found: str, expected: str) -> bool:
    """Whether an outcome is the recorded one; an error may have further built-in classes."""
    if expected.startswith("raises "):
        return found.startswith("raises ") and expected.split()[1] in found.split()
    return found == expected


def _record() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy

    for path in sorted(FOLDER.glob("*.txt")):
        lines = [f"{text}{ARROW}{outcome(text, jax.numpy, jax.lax, jax)}" for text, _ in rows(path)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _record()
