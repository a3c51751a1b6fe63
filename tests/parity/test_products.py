"""Matrix products, einsum and convolutions of sequences as JAX's: values, dtypes, weak types and errors."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax as jax_lax

import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.testing.tolerances import assert_close

# n: the module, l: its lax; a: 3 x 4, b: 4 x 3, s: 3 x 3, t: 2 x 3 x 4, i: integers, m: booleans, c: complex
EQUAL = """
n.einsum("ij,jk", a, b); n.einsum("ij,jk->ki", a, b); n.einsum("ij->ji", a); n.einsum("ij->", a)
n.einsum("ii", s); n.einsum("ii->i", s); n.einsum("...ij,...jk->...ik", t, t.swapaxes(-1, -2))
n.einsum("...ij,jk", t, b); n.einsum("ij,jk,kl,lm", a, b, a, b)
n.einsum("ij,jk,kl,lm->mi", a, b, a, b, optimize=False)
n.einsum("ij,jk,kl,lm->mi", a, b, a, b, optimize="greedy"); n.einsum(a, [0, 1], b, [1, 2], [0, 2])
n.einsum(a, [0, 1], b, [1, 2]); n.einsum(t, [..., 0, 1], [..., 1, 0])
n.einsum("iij->j", n.stack([s, s], -1)); n.einsum("bij,bjk,bk->bi", t, t.swapaxes(1, 2), t[:, :, 0])
n.einsum("ij,jk->ik", i, i.T); n.einsum("ij,jk->ik", m, m.T); n.einsum("ij,jk->ik", a, i.T)
n.einsum("ij,jk->ik", c, c.T); n.einsum(" i j , j k ", a, b); n.einsum("ba", a); n.einsum("i...->...", t)
n.einsum("ij,ij,ij->i", a, a, a); n.einsum("ij,j->i", a, n.ones((1,)))
n.einsum("ij,jk->ik", a, b, preferred_element_type="float32", precision="highest")
n.einsum(",ij->ij", 2.0, a); n.einsum("ij,jk,kl->il", a, b, a, optimize=[(1, 2), (0, 1)])
n.einsum("ij,jk", n.zeros((2, 0)), n.zeros((0, 3))); n.dot(a, b); n.dot(t, b); n.dot(2.0, a)
n.dot(a[0], a[0]); n.dot(t, t.swapaxes(1, 2)); n.vdot(c, c); n.vdot(a, a); n.inner(a, a); n.inner(t, a[:1])
n.inner(2.0, a); n.outer(c, i); n.outer(2, 3.0); a @ b; t @ b; n.matmul(m, m.T); n.matmul(a[0], b)
n.matmul(a, b[:, 0]); n.matmul(i, b); n.matmul(i, i.T, preferred_element_type="float32"); n.vecdot(c, c)
n.vecdot(a, a, axis=0); n.vecdot(t, a[0]); n.matvec(t, a[0]); n.matvec(a, c[0]); n.vecmat(c[0], b)
n.vecmat(a, t[:, None, 0, :, None]); n.tensordot(a, b, 1); n.tensordot(t, t, ((0, 1), (0, 1)))
n.tensordot(a, b, 0); n.tensordot(a, a, (1, 1)); n.kron(a, b); n.kron(a[0], b); n.kron(t, a); n.kron(i, m)
n.cross(p, p[::-1]); n.cross(p, p[0]); n.cross(p.T, p.T, axis=0); n.cross(p[:, :2], p[:, 1:])
n.cross(p[:, :2], p); n.cross(p, p[::-1][:, :2]); n.cross(p, p[0], axisc=0)
n.cross(n.ones(3, "int32"), n.arange(3)); n.convolve(a[0], b[:, 0]); n.convolve(a[0], b[0], "same")
n.convolve(b[0], a[0], "valid"); n.convolve(i[0], i[1]); n.convolve(c[0], c[1]); n.correlate(a[0], b[0])
n.correlate(b[0], a[0]); n.correlate(a[0], b[0], "full"); n.correlate(c[1, :2], c[0], "full")
n.convolve(i[0], i[1], preferred_element_type="int32"); n.convolve(n.ones(1000), n.arange(300.0))
n.polyval(a[0], s); n.polyval(a, b[:, 0]); n.polyval(i[0], 3); n.trace(s); n.trace(s, 1)
n.trace(t, 0, 1, 2); n.trace(m[:, :3]); n.trace(i[:, :3], dtype="float32"); n.diagonal(t)
n.diagonal(t, -1, 1, 2); n.diagonal(s, 9); n.matmul(n.zeros((3, 0)), n.zeros((0, 2)))
n.dot(n.zeros((0,)), n.zeros((0,))); l.batch_matmul(t, t.swapaxes(1, 2)); l.dot(a, b); l.dot(a[0], b)
l.dot_general(t, t, (((2,), (2,)), ((0,), (0,)))); l.dot(i, b); l.dot(a, c.T)
l.dot_general(t, s, (((1,), (0,)), ((), ())), preferred_element_type="bfloat16"); l.dot(m, m.T)
""".replace("\n", ";")

REFUSED = """
n.einsum("ij,jk", a, a); n.einsum("ij,jk", a); n.einsum("ijk", a); n.einsum("ij->ijk", a)
n.einsum("ij->ii", a); n.einsum("i.j", a); n.cross(a, a); n.cross(p, p, axis=4); n.convolve(a, a)
n.convolve(a[0], a[0, :0]); n.convolve(a[0], a[0], "foo"); n.matvec(a, b); n.vecmat(a, a); n.vecdot(a, b)
n.vdot(a, a[0]); n.tensordot(a, b, 3); n.tensordot(a, b, ((0,), (1, 0))); n.trace(a[0]); n.trace(s, 0, 0, 0)
n.outer(a, b, out=a); n.inner(a, b); n.dot(a, a); n.matmul(a, a); n.matmul(a, b, precision="foo")
n.tensordot(a, b, ((7,), (0,))); n.einsum("ii", a); n.einsum(a, [0, 1], b); n.dot([1, 2], [3, 4])
n.matmul(i, i.T, preferred_element_type="int8"); n.einsum("..i..", a); n.kron([1], a); n.diagonal(a[0])
n.einsum_path("ij", a, a); n.einsum("ij,jk->k", a, b, out=a); l.dot(a, 2.0); l.dot(a, a)
l.batch_matmul(t, a); l.dot_general(a, b, (((1,), (-2,)), ((), ())))
l.dot_general(a, b, (((1, 1), (0, 0)), ((), ()))); l.dot_general(a, b, (((0,), (0,)), ((), ())))
l.ragged_dot(a, t, n.ones(2)); l.ragged_dot(a, n.ones((2, 4, 5)), n.ones(3, "int32"))
""".replace("\n", ";")


def rows(table: str) -> list[str]:
    return [row.strip() for row in table.split(";") if row.strip()]


def environment(numpy: Any, functions: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {
        "a": drawn(3, 4), "b": drawn(4, 3), "s": drawn(3, 3), "t": drawn(2, 3, 4), "p": drawn(5, 3),
        "i": rng.integers(-4, 5, (3, 4)).astype(np.int32), "m": rng.integers(0, 2, (3, 4)).astype(bool),
        "c": (drawn(3, 4) + 1j * drawn(3, 4)).astype(np.complex64),
    }  # fmt: skip
    return {"n": numpy, "l": functions, **{name: numpy.asarray(x) for name, x in arrays.items()}}


OURS, THEIRS = environment(inp, lax), environment(jnp, jax_lax)


@pytest.mark.parametrize("text", rows(EQUAL))
def test_values_dtypes_and_weak_types(text: str) -> None:
    ours, theirs = eval(text, dict(OURS)), eval(text, dict(THEIRS))
    assert ours.dtype == theirs.dtype and ours.weak == theirs.weak_type
    assert_close(ours, np.asarray(theirs), "contraction")


@pytest.mark.parametrize("text", rows(REFUSED))
def test_refusals(text: str) -> None:
    def refused(names: dict[str, Any]) -> BaseException:
        with pytest.raises(Exception) as caught:  # the class is what is compared
            eval(text, dict(names))
        return caught.value

    ours, theirs = refused(OURS), refused(THEIRS)
    built_in = next(c for c in type(theirs).__mro__ if c.__module__ == "builtins")
    assert isinstance(ours, built_in), (type(ours), type(theirs), theirs)
    assert isinstance(ours, errors.InfiniError)


def test_a_path_of_einsum_is_no_dearer_than_opt_einsums() -> None:
    shapes = [(2, 30), (30, 40), (40, 3), (3, 50), (50, 4)]
    arrays = [np.zeros(shape, np.float32) for shape in shapes]
    path, info = inp.einsum_path("ab,bc,cd,de,ef", *arrays)
    for strategy in ("optimal", "greedy"):
        theirs, _ = jnp.einsum_path("ab,bc,cd,de,ef", *arrays, optimize=strategy)
        _, cost = inp.einsum_path("ab,bc,cd,de,ef", *arrays, optimize=theirs)
        assert info.opt_cost <= cost.opt_cost
    assert len(path) == 4 and "products along path" in str(info)


def test_einsum_calls_what_it_is_given_in_place_of_dot_general() -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[2])
        return lax.dot_general(*args, **kwargs)

    a, t = OURS["a"], OURS["t"]
    found = inp.einsum("bij,kj,ki->bk", t, a, a[:, :3], _dot_general=counted)
    np.testing.assert_allclose(found, np.einsum("bij,kj,ki->bk", t, a, a[:, :3]), rtol=1e-5, atol=1e-5)
    assert len(calls) == 2
