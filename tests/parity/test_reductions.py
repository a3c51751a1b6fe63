"""Reductions, cumulative operations and ordering: values, dtypes, derivatives and refusals are JAX's.

What JAX gives is recorded in `tests/golden/reductions.json`, because compiling every row takes it long;
`pytest --slow` compares the record with JAX, and with `--update-golden` writes it. Ours run on the reference
backend: the oracle tests compare it with the others.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.testing import tolerances

NAN = float("nan")
GIVEN: dict[str, Any] = {
    "f": np.array([3.0, 1.0, 2.0], np.float32),
    "i": np.array([3, 1, 2], np.int32),
    "j": np.array([3, 1, 2], np.int8),
    "w": np.array([3, 1, 2], np.uint8),
    "b": np.array([True, False]),
    "n": np.array([1.0, NAN, 3.0], np.float32),
    "h": np.array([3.0, 1.0, 2.0], np.float16),
    "c": np.array([1 + 2j, 3 - 1j], np.complex64),
    "m": np.arange(6, dtype=np.float32).reshape(2, 3),
    "e": np.zeros((0, 3), np.float32),
    "u": np.array([3, 1, 3, 2], np.int32),
    "z": np.array([NAN, 1.0, NAN, 0.0, -0.0], np.float32),
    "k": np.array([[1, 2], [0, 1], [1, 2]], np.int32),
    "r": np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32),
}
# x: the numpy namespace, lax: the lax namespace
VALUES = """
x.sum(f, dtype='int8'); x.sum(f, where=f > 1, initial=2.5); x.sum(i, initial=2.5); x.sum(w)
x.sum(j, promote_integers=False); x.sum(c); x.sum(m, axis=(0, 1), keepdims=True); x.prod(b); x.prod(j)
x.prod(c); x.mean(i, dtype='int32'); x.mean(f, dtype='int32'); x.mean(b); x.mean(h); x.mean(e, axis=0)
x.mean(c); x.mean(m, where=m > 2); x.var(c); x.std(c); x.var(f, ddof=3); x.var(f, ddof=5)
x.var(f, mean=0.0); x.var(h); x.var(e, axis=0); x.std(m, axis=1, correction=1)
x.var(m, where=m > 2, ddof=1); x.max(e, axis=1); x.max(e, axis=0, initial=3)
x.max(f, where=f > 1, initial=0); x.min(b); x.max(c); x.ptp(i); x.all(f, axis=(0,)); x.any(e, axis=0)
x.all(m, where=m > 0); x.count_nonzero(b); x.count_nonzero(m, axis=0, keepdims=True); x.average(i)
x.average(f, weights=i); x.average(m, axis=0, weights=f[:2], returned=True)
x.average(m, axis=1, weights=f, keepdims=True); x.average(b, returned=True)
x.average(m, axis=(0, 1), weights=m); x.argmax(e, axis=1); x.argmax(m, keepdims=True); x.argmin(n)
x.argmax(b); x.argmin(w); x.argmax(1.0); x.nanargmax(n); x.nanargmax(n * x.nan); x.nanargmin(i)
x.nanargmax(m, axis=1, keepdims=True); x.nansum(n); x.nanprod(n); x.nanmax(n); x.nanmin(n * x.nan)
x.nanmax(n, initial=9); x.nanmin(i); x.nanmax(n * x.nan, initial=2.0); x.nanmean(n); x.nanmean(i)
x.nanmean(n * x.nan); x.nanvar(n); x.nansum(i); x.nanvar(n, ddof=2); x.nanstd(n); x.nanmedian(n)
x.nanquantile(n, 0.25); x.nanpercentile(n, 25); x.nancumsum(n); x.nancumprod(n); x.nanmean(n, where=f > 1)
x.nanmedian(n * x.nan); x.cumsum(b); x.cumsum(j); x.cumsum(m); x.cumsum(m, axis=-1)
x.cumsum(f, dtype='int8'); x.cumsum(2); x.cumprod(b); x.cumsum(h); x.cumprod(m + 1, axis=0)
x.cumulative_sum(m, axis=1, include_initial=True); x.cumulative_sum(j)
x.cumulative_prod(i, include_initial=True); x.cumulative_sum(b); x.diff(m); x.diff(b); x.diff(m, n=2)
x.diff(m, n=0); x.diff(f, prepend=0, append=f); x.diff(f, n=9); x.diff(m, axis=0)
x.ediff1d(m, to_begin=9, to_end=i[:2]); x.ediff1d(i, to_begin=2.5); x.trapezoid(m); x.trapezoid(f, f)
x.trapezoid(m, f[:2], axis=0); x.trapezoid(i, dx=0.5); x.trapezoid(m, m); x.median(m); x.median(i)
x.median(m, axis=(0, 1), keepdims=True); x.median(n); x.median(h); x.median(b); x.median(e, axis=1)
x.quantile(m, 0.3); x.quantile(m, f / 4, axis=1); x.quantile(m, 1.5); x.quantile(m, -1.0)
x.quantile(m, x.nan); x.quantile(i, 0.5); x.quantile(m, 0.3, method='lower')
x.quantile(m, 0.3, method='higher'); x.quantile(i, 0.3, method='nearest')
x.quantile(m, 0.25, method='midpoint'); x.quantile(m, 0.3, method='inverted_cdf')
x.quantile(m, 0.3, method='inverted_cdf', weights=m)
x.quantile(m, 0.3, axis=1, method='inverted_cdf', weights=f); x.percentile(i, i * 10); x.quantile(h, 0.5)
x.quantile(n, 0.5); x.nanquantile(n, 0.5, method='lower'); x.quantile(1.0, 0.5); x.quantile(b, 0.5)
x.quantile(x.array([1.0, x.inf]), 0.5); x.percentile(m, 30, axis=0, keepdims=True)
x.quantile(x.arange(5.0), h[1] / 2); x.sort(f, stable=False); x.sort(z); x.sort(c)
x.sort(m, axis=None, descending=True); x.argsort(f, dtype='int8'); x.argsort(m, axis=None)
x.argsort(u, descending=True); x.argsort(z); x.argsort(m, axis=0); x.sort_complex(i); x.lexsort((f, i))
x.lexsort(m); x.lexsort((u, u // 2)); x.lexsort((1.0, 2.0)); x.lexsort((m, m // 2), axis=0)
x.partition(f, 1); x.partition(m, 1, axis=0); x.argpartition(f, 1); x.partition(f, -1)
x.searchsorted(n[::2], f); x.searchsorted(x.sort(z), z); x.searchsorted(x.sort(z), z, side='right')
x.searchsorted(f, 2.0, sorter=x.argsort(f)); x.searchsorted(x.arange(9), 2.5); x.searchsorted(e[:, 0], f)
x.searchsorted(x.arange(99), i, method='scan_unrolled'); x.searchsorted(x.arange(99), i * 7.5, side='right')
x.searchsorted(x.sort(r[0]), r, method='sort'); x.searchsorted(x.sort(r[0]), r, side='right', method='sort')
x.searchsorted(x.sort(r[0]), r, method='compare_all'); x.digitize(f, f[1:])
x.digitize(f, x.array([3.0, 2.0, 1.0]), right=True); x.digitize(f, e[:, 0]); x.digitize(2, i[1:])
x.bincount(i); x.bincount(i, minlength=6); x.bincount(i, length=2); x.bincount(i, weights=f); x.bincount(-i)
x.bincount(i[:0]); x.bincount(i, weights=i); x.bincount(i, minlength=-1); x.histogram(f); x.histogram(i, 3)
x.histogram(f, x.array([0.0, 2.0, 3.0])); x.histogram(x.ones(3), 2)
x.histogram(f, 2, range=(0, 4), density=True); x.histogram(f, 2, weights=i); x.histogram_bin_edges(i, 2)
x.histogram_bin_edges(f, x.array([1, 2])); x.histogram2d(f, f, 2); x.histogram(m, 2)
x.histogram(r, 4, range=(-1, 1)); x.histogramdd(x.stack([f, f], 1), 2)
x.histogram2d(f, f, [2, x.array([0.0, 2.0, 4.0])])
x.histogram2d(f, f, x.array([0.0, 2.0, 4.0]), density=True, weights=i)
x.histogramdd(m.T, bins=[2, 3], range=[(0, 4), (0, 4)])
x.unique(u, return_index=True, return_inverse=True, return_counts=True); x.unique(u, size=2)
x.unique(u, size=5)
x.unique(u, size=5, fill_value=9, return_counts=True, return_index=True, return_inverse=True); x.unique(z)
x.unique(z, equal_nan=False); x.unique(k, axis=0)
x.unique(k, axis=1, return_inverse=True, return_index=True); x.unique(k, return_inverse=True); x.unique(c)
x.unique(b); x.unique(e); x.unique(u, sorted=False); x.unique(e[:, 0], size=2, fill_value=3)
x.unique(k, axis=0, size=4, return_counts=True, return_inverse=True)
x.unique(k, axis=0, size=4, fill_value=7); x.unique(e, axis=0); x.unique(e, axis=1); x.unique(u, size=0)
tuple(x.unique_all(k)); tuple(x.unique_counts(z)); tuple(x.unique_inverse(k)); x.unique_values(z)
x.union1d(u, k); x.union1d(u, f * 3, size=8); x.intersect1d(u, k); x.intersect1d(u, k, return_indices=True)
x.intersect1d(u, k, size=3); x.intersect1d(u, k, size=3, return_indices=True, fill_value=9)
x.setdiff1d(u, i[1:2]); x.setdiff1d(u, i[1:2], size=3, fill_value=9)
x.setdiff1d(u, i[1:2], assume_unique=True); x.setxor1d(u, x.array([1, 7]))
x.setxor1d(u, x.array([1, 7]), size=5); x.isin(k, i[1:2]); x.isin(z, z); x.isin(k, 1, invert=True)
x.isin(k, x.arange(99), method='sort'); x.isin(k, x.arange(2, 99)); x.setdiff1d(k, u)
lax.reduce_sum(m, (1,)); lax.reduce_prod(m + 1, (0,)); lax.reduce_max(e, (0,)); lax.reduce_max(j[:0], (0,))
lax.reduce_and(k, (0,)); lax.reduce_or(k, (1,)); lax.reduce_xor(k, (0, 1)); lax.reduce_and(b, (0,))
lax.reduce_sum(m, ()); lax.argmax(n, 0, 'int32'); lax.argmin(n, 0, 'int16'); lax.cumsum(m, 1, True)
lax.cumprod(m, 0); lax.cummax(n); lax.cummin(m, 1, True); lax.cumlogsumexp(m, 1); lax.cumsum(h)
lax.cumsum(j); lax.cumlogsumexp(c); lax.cumlogsumexp(x.array([-x.inf, 1.0, x.inf])); lax.cumprod(c)
lax.cumsum(c, reverse=True); tuple(lax.top_k(f, 2)); tuple(lax.top_k(m, 2, axis=0)); tuple(lax.top_k(z, 5))
tuple(lax.top_k(w, 3)); tuple(lax.top_k(b, 2)); tuple(lax.top_k(n, 0)); lax.sort((u, u))
lax.sort_key_val(u, -u); lax.sort((k, -k), dimension=0); lax.sort((u // 2, -u), num_keys=2)
tuple(lax.approx_max_k(r, 2)); tuple(lax.approx_min_k(r, 2, reduction_dimension=0))
lax.reduce(m, 1.0, lax.add, (0,)); lax.reduce(m, -x.inf, lax.max, (0, 1)); lax.reduce(i, 0, lax.add, (0,))
lax.reduce(m, 1.0, lambda p, q: p * q + p + q, (1,)); lax.reduce(e, 7.0, lax.add, (0,))
lax.reduce(m, 0.0, lax.add, ())
lax.reduce((m, m), (0.0, 1.0), lambda p, q: (p[0] + q[0], p[1] * q[1]), (0,))
""".replace("\n", ";")
REFUSALS = """
x.sum(f, out=f); x.argmax(f, out=f); x.cumsum(f, out=f); x.var(f, ddof=1, correction=1)
x.var(c, dtype='float32'); x.max(e); x.max(f, where=f > 1); x.ptp(b); x.average(m, weights=f[:2])
x.average(f, axis=0, weights=m); x.argmax(e); x.argmax(c); x.nanargmax(e); x.nanmax(e, axis=0)
x.cumsum(m, axis=2); x.cumsum(m, axis=(0, 1)); x.sum(m, axis=(0, 0)); x.cumulative_sum(m)
x.cumulative_sum(2.0); x.diff(m, n=-1); x.diff(1.0); x.median(c); x.median(m, out=m); x.quantile(m, m)
x.quantile(m, 0.3, method='x'); x.quantile(m, 0.3, weights=m); x.sort(f, kind='stable')
x.sort(f, order='a'); x.sort(1.0); x.sort(m, axis=5); x.lexsort([]); x.partition(f, 9)
x.searchsorted(m, 1.0); x.searchsorted(f, 1.0, side='x'); x.searchsorted(f, 1.0, method='x')
x.digitize(f, m); x.bincount(f); x.bincount(k); x.histogram(f, 'auto'); x.histogram(e[:, 0], 2)
x.unique(e[:, 0], size=2); x.unique(k, axis=5); x.isin(k, 1, method='x'); x.trapezoid(1.0)
x.trapezoid(f, axis=3); x.sum([1, 2]); lax.reduce_sum(b, (0,)); lax.reduce_and(f, (0,))
lax.reduce_sum(m, (0, 0)); lax.reduce_sum(m, (2,)); lax.reduce_sum(m, (-1,)); lax.cumsum(m, 2)
lax.cumsum(m, -1); lax.cumsum(b); lax.argmax(m, -1, 'int32'); lax.argmax(m, 0, 'float32')
lax.argmax(e, 0, 'int32'); lax.argmax(c, 0, 'int32'); tuple(lax.top_k(f, 4)); tuple(lax.top_k(f, -1))
tuple(lax.top_k(c, 1)); lax.sort((f, m)); lax.sort((f,), num_keys=2); lax.sort(()); lax.sort_key_val(f, m)
lax.approx_max_k(i, 1); lax.reduce(m, f, lax.add, (0,)); lax.reduce(m, 0.0, lax.add, (-1,))
lax.reduce((m, m), (1.0,), lambda p, q: p, (0,))
""".replace("\n", ";")
GRADIENTS = """
x.prod(r); x.prod(r * (r > 0), axis=0).sum(); x.prod(r * 0 + r[0, 0] * 0); (lax.cumprod(r, 1) * r).sum()
(lax.cumprod(r * (r > 0), 0) ** 2).sum(); (lax.cummax(r) * r).sum(); (lax.cummax(x.maximum(r, 0)) * r).sum()
(lax.cummin(r, 1, True) ** 2).sum(); (lax.cumlogsumexp(r, 1) * r).sum(); (lax.cumsum(r, 1, True) * r).sum()
lax.top_k(r, 2)[0].sum(); (lax.sort(r, 0) * x.arange(5)).sum(); x.quantile(r, 0.3)
x.median(r, axis=0).sum(); x.nanmean(x.where(r > 1, x.nan, r)); x.nanvar(r, axis=0).sum()
x.average(r, weights=x.abs(r) + 1); x.std(r); (lax.sort((r, -r * r), num_keys=1)[1] * r).sum()
x.trapezoid(r, x.cumsum(r, 1)).sum(); x.max(x.maximum(r, 0))
lax.reduce(r, 0.0, lambda p, q: p * q + p + q, (0, 1)); x.diff(r, n=2).sum(); x.var(r, axis=1, ddof=1)[0]
lax.reduce_max(r, (1,))[0]; x.nanprod(r); x.prod(r, axis=1)[0]; lax.cumprod(x.zeros_like(r) * r, 1).sum()
""".replace("\n", ";")


def rows(text: str) -> list[str]:
    return sorted({row.strip() for row in text.split(";") if row.strip()})


def ours(text: str) -> Any:
    given = {name: inp.asarray(x) for name, x in GIVEN.items()}
    return eval(text, {"x": inp, "lax": infini.lax, **given})


def theirs(text: str) -> Any:
    given = {name: jnp.asarray(x) for name, x in GIVEN.items()}
    return eval(text, {"x": jnp, "lax": jax.lax, **given})


def our_gradient(text: str) -> Any:
    def loss(r: Any) -> Any:
        return eval(text, {"x": inp, "lax": infini.lax, "r": r})

    return infini.grad(loss)(inp.asarray(GIVEN["r"]))


def their_gradient(text: str) -> Any:
    def loss(r: Any) -> Any:
        return eval(text, {"x": jnp, "lax": jax.lax, "r": r})

    return jax.grad(loss)(jnp.asarray(GIVEN["r"]))


# --- the record -----------------------------------------------------------------------------------


def written(x: Any) -> Any:
    """Arrays, lists and tuples as JSON."""
    if isinstance(x, (list, tuple)):
        return {type(x).__name__: [written(item) for item in x]}
    array = np.asarray(x)
    parts = [array.real, array.imag] if array.dtype.kind == "c" else [array]
    numbers = [p.astype(np.float64).tolist() if p.dtype.kind in "fV" else p.tolist() for p in parts]
    return {"dtype": str(array.dtype), "weak": bool(x.weak_type), "shape": array.shape, "parts": numbers}


def refusal(function: Any, text: str) -> str:
    """The built-in class of what JAX raises."""
    with pytest.raises(Exception) as caught:  # its class is what is recorded
        function(text)
    return next(c.__name__ for c in type(caught.value).__mro__ if c.__module__ == "builtins")


def what_jax_gives() -> dict[str, Any]:
    return {
        "values": {text: written(theirs(text)) for text in rows(VALUES)},
        "gradients": {text: written(their_gradient(text)) for text in rows(GRADIENTS)},
        "refusals": {text: refusal(theirs, text) for text in rows(REFUSALS)},
    }


@functools.cache
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


RECORD = Path(__file__).resolve().parent.parent / "golden" / "reductions.json"


@pytest.mark.slow
def test_the_record_is_what_jax_gives(request: Any) -> None:
    found = json.loads(json.dumps(what_jax_gives()))
    if request.config.getoption("update_golden"):
        lines = [f"{json.dumps(section)}: {{\n" + ",\n".join(
            f"{json.dumps(text)}: {json.dumps(value)}" for text, value in found[section].items()
        ) + "\n}" for section in found]  # fmt: skip
        RECORD.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
        recorded.cache_clear()
    assert found["refusals"] == recorded()["refusals"]
    for section in ("values", "gradients"):
        assert list(found[section]) == list(recorded()[section])
        for text, value in found[section].items():
            check_against(value, recorded()[section][text], "reduction")


def check_against(found: Any, expected: Any, kind: tolerances.Kind) -> None:
    """Compare what `written` gives."""
    assert found.keys() == expected.keys()
    if "dtype" not in expected:
        ((mine, other),) = zip(found.values(), expected.values(), strict=True)
        for x, y in zip(mine, other, strict=True):
            check_against(x, y, kind)
        return
    for key in ("dtype", "weak", "shape"):
        assert found[key] == expected[key], key
    bound = tolerances.tolerance(np.dtype(found["dtype"]), kind)
    for x, y in zip(found["parts"], expected["parts"], strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=bound, atol=bound
        )


# --- the comparison -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def on_reference() -> Any:
    with infini.config(device="reference"):
        yield


def as_recorded(x: Any) -> Any:
    return json.loads(json.dumps(written(x)))


@pytest.mark.parametrize("text", rows(VALUES))
def test_values(text: str) -> None:
    check_against(as_recorded(ours(text)), recorded()["values"][text], "reduction")


@pytest.mark.parametrize("text", rows(GRADIENTS))
def test_gradients(text: str) -> None:
    check_against(as_recorded(our_gradient(text)), recorded()["gradients"][text], "program")


@pytest.mark.parametrize("text", rows(REFUSALS))
def test_refusals(text: str) -> None:
    with pytest.raises(infini.InfiniError) as caught:
        ours(text)
    names = [c.__name__ for c in type(caught.value).__mro__]
    assert recorded()["refusals"][text] in names, str(caught.value)
