"""Dtype and weak flag of every expression of a table equal JAX's, eagerly and under jit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp

# n: the numpy namespace. Arrays: f float32, b bfloat16, h float16, i int32, u uint8, s int8, t bool, w a
# weak float32 vector,
# k a weak int32 vector, and two weak scalars: one (float), two (int).
EXPRESSIONS = """
f + 1; f + 1.5; i + 1; i + 1.5; b + 1; b * 2.0; h - 1.5; t + 1; t + 1.0; t + t; t * t; u + 1; s * 2; u * 1.5
f + i; f + b; b + h; h + i; b + i; u + s; t + f; i / i; s / s; i / 2; f / 2; b / 3; t / t; i // 2; f // 2
b // 2; i // 2.0; i % 2; f % 2; i ** 2; f ** 2; i ** 2.0; b ** 0.5; f ** i; 2.0 ** i; 2 ** i; -f; -one
abs(one); abs(t); +b; w + 1; w * b; w + i; w + w; k + k; k + i; k * b; k / 2; k + u; one * b; two * u
one + two; one * two; two / two; two * f; one.astype("float32"); one + t; two + t; one[None]; one.reshape(1)
w[0]; w[1:]; w.T; w.sum(); w.mean(); k.sum(); one.sum(); b * n.sqrt(2.0); n.sqrt(2); n.sqrt(True); n.sqrt(i)
n.sqrt(s); n.sqrt(one); n.exp(1); n.exp(b); n.exp(i); n.tanh(two); n.log(h); n.log1p(b); n.expm1(i)
n.exp2(i); n.log2(f); n.sin(i); n.cos(b); n.square(2); n.square(t); n.reciprocal(2); n.abs(one); n.sign(b)
n.sign(two); n.floor(i); n.floor(b); n.ceil(f); n.round(i); n.round(f, 1); n.rint(i); n.trunc(f)
n.add(1, 2); n.add(True, 1); n.add(1, 2.5); n.multiply(b, one); n.true_divide(1, 2); n.power(2, 3)
n.power(b, 2); n.float_power(i, 2); n.maximum(1, 2.5); n.maximum(b, 0); n.minimum(i, f); n.logaddexp(b, 1)
n.hypot(f, 1); n.divmod(i, 2)[0]; n.clip(b, 0, 1); n.clip(i, 0.5, 1); n.clip(i, 0, 1); n.where(t, 1, 2.0)
n.where(t, b, 2.0); n.where(t, b, f); n.where(i, i, 1); n.where(t, one, two); n.where(t, w, b); f < 1
b == 1.0; t & t; i & 1; t | t; i ^ i; ~i; ~t; s << 1; i >> 1; n.equal(1, 2); n.less(f, i); n.isnan(f)
n.isnan(i); n.isfinite(b); n.logical_not(i); n.logical_and(t, f); n.isclose(f, 1.0); n.signbit(f); n.sum(i)
n.sum(s); n.sum(u); n.sum(t); n.sum(b); n.sum(one); n.sum(w); n.sum(1.0); n.sum(f, dtype="float16")
n.prod(s); n.mean(i); n.mean(b); n.mean(two); n.mean(t); n.var(i); n.var(b); n.std(h); n.max(s); n.max(w)
n.min(b); n.any(i); n.all(t); n.argmax(f); n.argmin(i); n.cumsum(f); n.cumsum(s); n.cumsum(t); n.cumsum(b)
n.count_nonzero(i); n.ptp(i); n.median(i); n.zeros(3); n.ones(3, "int8"); n.full(3, 1.0); n.full(3, 1)
n.full(3, b[0]); n.full_like(b, 1); n.full_like(w, 2); n.zeros_like(one); n.ones_like(i); n.asarray(1.0)
n.asarray(1); n.asarray(True); n.asarray([1.0]); n.asarray(1, "float32"); n.asarray([True, 1, 2.0])
n.asarray([one, 2]); n.asarray([b, b]); n.arange(3); n.arange(3.0); n.arange(0, 1, 0.25)
n.arange(3, dtype="float16"); n.linspace(0, 1, 3); n.eye(3); n.tri(3); n.tril(n.ones((3, 3), "int8"))
n.float32(1); n.bfloat16(1) * 2.0; n.int32(1) + 1.0; n.uint8(3) + 1; n.concatenate([b, f])
n.concatenate([i, b]); n.stack([one, 2.0]); n.stack([one, i[0]]); n.hstack([f, i]); n.append(i, 1.5)
n.reshape(1.0, (1,)); n.broadcast_to(1.0, (3,)); n.expand_dims(one, 0); n.ravel(w); n.pad(w, 1)
n.roll(w, 1); n.flip(k); n.repeat(w, 2); n.tile(k, 2); n.sort(w); n.argsort(f); n.take(b, i)
n.take_along_axis(f, i, 0); n.squeeze(w[None]); n.moveaxis(w[None], 0, 1); n.matmul(b, b); n.matmul(b, f)
n.matmul(i, b); n.dot(2.0, 3.0); n.dot(w, w); n.outer(i, b); n.inner(h, h); n.vdot(f, b)
n.tensordot(i, f, 1); n.einsum("i,i", b, f); n.einsum("i,j->ij", i, i); n.kron(i, b); f @ f; i @ b
np.float32(1) + b; np.float64(1) * b; np.int64(3) + s; np.ones(3) + f; np.arange(3) * i; f * np.float16(2)
n.nan_to_num(b); n.real(f); n.broadcast_arrays(one, f)[0]; n.searchsorted(f, f); n.meshgrid(f, i)[1]
f.at[0].set(1.5); i.at[0].add(1)
""".replace("\n", ";")
TABLE = sorted({text.strip() for text in EXPRESSIONS.split(";") if text.strip()})


def names(numpy: Any) -> dict[str, Any]:
    ones = {name: numpy.ones(3, dtype) for name, dtype in _DTYPES.items()}
    ones["i"] = numpy.arange(3)
    weak = {"w": numpy.broadcast_to(1.0, (3,)), "k": numpy.broadcast_to(2, (3,))}
    scalars = {"one": numpy.asarray(1.0), "two": numpy.asarray(2)}
    return {"n": numpy, "np": np, **ones, **weak, **scalars}


_DTYPES = {
    "f": "float32", "b": "bfloat16", "h": "float16", "u": "uint8", "s": "int8", "t": "bool",
}  # fmt: skip
OURS, THEIRS = names(inp), names(jnp)


@pytest.mark.parametrize("text", TABLE)
def test_dtype_and_weak_flag_are_jax_s(text: str) -> None:
    ours, theirs = eval(text, dict(OURS)), eval(text, dict(THEIRS))
    assert (ours.dtype, ours.weak_type, ours.shape) == (theirs.dtype, theirs.weak_type, theirs.shape)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=1e-2, atol=1e-6
    )


# Under jit the arrays are traced; the values are not compared again.
@pytest.mark.parametrize("text", TABLE)
def test_traced_types_are_jax_s(text: str) -> None:
    def evaluate(api: Any, numpy: Any, given: dict[str, Any]) -> Any:
        arrays = {name: x for name, x in given.items() if hasattr(x, "weak_type")}
        return api.eval_shape(lambda traced: eval(text, {"n": numpy, "np": np, **traced}), arrays)

    ours, theirs = evaluate(infini, inp, OURS), evaluate(jax, jnp, THEIRS)
    assert (ours.dtype, ours.weak_type, ours.shape) == (theirs.dtype, theirs.weak_type, theirs.shape)
