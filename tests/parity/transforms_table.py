"""What the tables of transforms share: small programs, and a record of what JAX makes of them.

A program is a function of (api, its numpy, its lax), so the same one runs on both libraries. What JAX returns
or refuses is recorded in `tests/golden`, as compiling hundreds of programs takes JAX half a minute. Tests
marked slow compare the record with the JAX that is installed; with `--slow --update-golden` they write it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import infini

Case = Callable[[Any, Any, Any], Any]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@dataclass(frozen=True)
class Leaf:
    """An array without its library; `weak` is None for NumPy arrays."""

    host: np.ndarray
    weak: bool | None


def plain(x: Any) -> Any:
    """A result without its library: containers by name, with dictionaries in the order of their keys."""
    if isinstance(x, dict):
        return (type(x).__name__, *((str(key), plain(x[key])) for key in sorted(x)))
    if isinstance(x, (list, tuple)):
        return (type(x).__name__, *(plain(item) for item in x))
    if x is None or type(x) in (str, bool, int, float):
        return x
    if isinstance(x, (infini.ShapeDtypeStruct, jax.ShapeDtypeStruct)):
        return ("struct", tuple(x.shape), np.dtype(x.dtype).name, x.weak_type)
    if isinstance(x, (int, float)):  # JAX's own subclasses
        return x.real
    host = np.asarray(x)
    if host.dtype.fields is not None:
        return ("float0", host.shape)
    return Leaf(host, bool(x.weak_type) if isinstance(x, (infini.Array, jax.Array)) else None)


def compare(ours: Any, theirs: Any, path: str = "") -> None:
    """Assert that two plain results are equal: structure, dtypes, weak flags and values."""
    where = (path, ours, theirs)
    if isinstance(theirs, Leaf):
        assert isinstance(ours, Leaf), where
        assert ours.host.dtype == theirs.host.dtype and ours.host.shape == theirs.host.shape, where
        assert None in (ours.weak, theirs.weak) or ours.weak == theirs.weak, where
        if theirs.host.dtype.kind in "biu":
            np.testing.assert_array_equal(ours.host, theirs.host, err_msg=path)
            return
        kind = np.complex64 if theirs.host.dtype.kind == "c" else np.float32
        tolerance = 2e-2 if theirs.host.dtype.itemsize == 2 else 3e-5
        np.testing.assert_allclose(
            ours.host.astype(kind), theirs.host.astype(kind), rtol=tolerance, atol=tolerance, err_msg=path
        )
    elif isinstance(theirs, tuple):
        assert isinstance(ours, tuple) and len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            compare(a, b, f"{path}[{i}]")
    elif isinstance(theirs, float):
        # JAX hands numbers back where nothing was computed from them; arrays are as good.
        value = float(ours.host) if isinstance(ours, Leaf) else ours
        assert value == pytest.approx(theirs, rel=3e-5, nan_ok=True), where
    elif isinstance(ours, Leaf):
        assert ours.host == theirs, where
    else:
        assert ours == theirs, where


# --- the record -------------------------------------------------------------------------------------


def encoded(x: Any) -> Any:
    """A plain result as JSON."""
    if isinstance(x, Leaf):
        wide = (
            x.host.astype(np.float32) if x.host.dtype.itemsize == 2 and x.host.dtype.kind in "fV" else x.host
        )
        flat = wide.ravel()
        data = [[v.real, v.imag] for v in flat.tolist()] if flat.dtype.kind == "c" else flat.tolist()
        rounded = np.asarray(data, np.float64).round(7).tolist() if flat.dtype.kind in "fc" else data
        return {"dtype": x.host.dtype.name, "shape": list(x.host.shape), "weak": x.weak, "data": rounded}
    return [encoded(item) for item in x] if isinstance(x, tuple) else x


def decoded(x: Any) -> Any:
    """A plain result from JSON."""
    if isinstance(x, dict):
        dtype = infini.numpy.dtype(x["dtype"])
        data = np.asarray(x["data"], np.float64 if dtype.kind in "fcV" else dtype)
        values = data[..., 0] + 1j * data[..., 1] if dtype.kind == "c" and data.size else data
        return Leaf(values.reshape(x["shape"]).astype(dtype), x["weak"])
    return tuple(decoded(item) for item in x) if isinstance(x, list) else x


@dataclass(frozen=True)
class Table:
    """Programs by name: those that run, and those that are refused. `name` is that of the record."""

    name: str
    cases: Mapping[str, Case]
    refusals: Mapping[str, Case]

    @property
    def path(self) -> Path:
        """The file of the record."""
        return GOLDEN / f"transforms_{self.name}.json"

    def check(self, name: str) -> None:
        """Run a program on infini and compare with the record."""
        theirs = decoded(_record(self.path)[name])
        compare(plain(self.cases[name](infini, infini.numpy, infini.lax)), theirs)

    def check_refusal(self, name: str) -> None:
        """infini refuses what JAX refuses, with an error of the same built-in class and in four parts."""
        with pytest.raises(Exception) as found:  # the class is what is compared
            self.refusals[name](infini, infini.numpy, infini.lax)
        ours, built_in = found.value, _record(self.path)[name]
        assert built_in in [c.__name__ for c in type(ours).__mro__], (type(ours), str(ours), built_in)
        assert isinstance(ours, infini.InfiniError) or type(ours).__name__ == built_in, repr(ours)

    def check_record(self, *, is_update: bool) -> None:
        """Compare the record with the JAX that is installed, or write it."""
        results = {name: plain(case(jax, jax.numpy, jax.lax)) for name, case in self.cases.items()}
        refused = {name: _refused(case) for name, case in self.refusals.items()}
        if is_update:
            rows = {**{name: encoded(x) for name, x in results.items()}, **refused}
            lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
            self.path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
            return
        record = _record(self.path)
        assert list(record) == [*results, *refused]
        for name, theirs in results.items():
            compare(theirs, decoded(record[name]), name)
        assert {name: record[name] for name in refused} == refused


@functools.cache
def _record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _refused(case: Case) -> str:
    with pytest.raises(Exception) as found:  # the class is what is recorded
        case(jax, jax.numpy, jax.lax)
    return next(c.__name__ for c in type(found.value).__mro__ if c.__module__ == "builtins")
