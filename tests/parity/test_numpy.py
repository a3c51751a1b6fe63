"""Values that NumPy does not settle: what JAX gives for fills, special numbers, conversions, and
derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import nn
from infini.testing import tolerances

RNG = np.random.default_rng(1)
GIVEN: dict[str, Any] = {
    "f": RNG.standard_normal((3, 4)).astype(np.float32),
    "p": RNG.uniform(0.2, 3, (3, 4)).astype(np.float32),
    "x": np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5, 3e9, -3e9], np.float32),
    "i": np.array([-3, 0, 2, 5], np.int32),
    "z": np.zeros(4, np.int32),
    "v": np.arange(3, dtype=np.float32),
    "k": np.array([[1, 0, 2, 1], [3, 3, 0, 9]], np.int32),
}
# n: the numpy namespace, nn: the nn namespace, api: the package
VALUES = """
x.astype("int32"); x.astype("uint8"); x.astype("bool"); x.astype("float16"); i // z; i % z
n.array([1, -1, 0]) / 0; x % 3; x // 2; x % x; n.take(v, n.array([5, -1, -5])); n.take(i, n.array([9, 0]))
n.take_along_axis(v, n.array([7]), 0); v[7]; v[n.array([7, -9])]; v.at[n.array([7, -9, 1])].set(5)
v.at[n.array([7])].get(mode="fill"); v.at[5].get(); n.maximum(x, 1); n.minimum(x, n.nan); n.sign(x)
n.sort(x); n.argsort(x); n.sort(x, descending=True); n.argsort(n.array([1, 1, 0]), descending=True)
n.argmax(x); n.argmin(x); n.round(n.array([0.5, 1.5, 2.5, -0.5]))
n.power(n.array([-8.0, 0.0, 0.0]), n.array([3.0, 0.0, -1.0])); n.logaddexp(x, x); n.logaddexp(x, 1)
n.clip(x, -1, 1); n.nan_to_num(x); n.cumsum(i); n.median(f, 0); n.var(f, ddof=1); n.square(i); i ** 5
n.power(i, n.array([3, 2, 1, 0])); n.divmod(f, 0.7)[0]; n.divmod(f, -0.7)[1]; n.exp2(f); n.sinh(f * 5)
n.cosh(f * 5); n.hypot(x, 1); n.reciprocal(i); n.trunc(x); n.where(f > 0, f, 0).sum(0); f[::-1, ::2]
f[k[:, :1] % 3, k]; f[:, None, k % 4]; n.linspace(-1, 3, 9); n.arange(0, 2, 0.3)
n.einsum("ij,kj->ik", f, p); n.einsum("ij,ij,ik->k", f, p, f); n.tensordot(f, p, ((1,), (1,)))
n.float32(3e9).astype("int8"); n.unstack(f)[1]
""".replace("\n", ";")
NN = """
nn.relu(f); nn.relu(x); nn.relu6(f * 5); nn.gelu(f); nn.gelu(f, approximate=False); nn.silu(f); nn.swish(f)
nn.sigmoid(f); nn.sigmoid(x); nn.softmax(f); nn.softmax(f, axis=0); nn.softmax(f, axis=(0, 1))
nn.softmax(f, where=f > 0); nn.log_softmax(f); nn.log_softmax(f * 100, axis=0); nn.logsumexp(f)
nn.logsumexp(f, axis=1, keepdims=True); nn.logsumexp(f * 200, axis=0)
nn.logsumexp(n.array([-n.inf, -n.inf])); nn.logsumexp(f, b=p, axis=1); nn.logsumexp(f, where=f > 0)
nn.softplus(f); nn.softplus(x); nn.tanh(f); nn.elu(f); nn.selu(f); nn.celu(f, 0.7); nn.leaky_relu(f)
nn.log_sigmoid(f * 50); nn.mish(f); nn.soft_sign(f); nn.squareplus(f); nn.glu(f); nn.hard_tanh(f)
nn.hard_sigmoid(f * 4); nn.hard_silu(f * 4); nn.one_hot(k, 4); nn.one_hot(k, 3, dtype="int8", axis=0)
nn.one_hot(k % 2, 2, axis=1); nn.standardize(f); nn.logmeanexp(f, axis=1); nn.logmeanexp(f, where=f > 0)
nn.identity(f)
""".replace("\n", ";")
GRADIENTS = """
nn.relu(f - f).sum(); nn.relu(f).sum(); nn.gelu(f).sum(); nn.gelu(f, approximate=False).sum()
(nn.softmax(f) * p).sum(); nn.silu(f).sum(); (nn.log_softmax(f) * p).sum(); nn.logsumexp(f)
nn.elu(f * 200).sum(); nn.softplus(f * 100).sum(); n.maximum(f, f).sum(); n.max(f)
n.max(n.zeros((2, 2)) * f[0, 0]); n.abs(f - f).sum(); (f[k % 3] ** 2).sum(); n.sort(f, 0)[0].sum(); n.var(f)
n.std(f); (f ** 3).sum(); n.power(p, f).sum(); (f % 0.7).sum(); n.cumsum(f, 1)[:, -2:].sum(); n.prod(f)
n.where(f > 0, f * f, 2 * f).sum(); n.take(f, n.array([0, 0, 9])).sum(); n.pad(f, 1)[0:2].sum()
n.concatenate([f, f * 2])[2:5].sum(); n.tril(f).sum(); n.clip(f, -0.5, 0.5).sum(); n.logaddexp(f, p).sum()
nn.standardize(f)[0, 0]; n.einsum("ij,ij,kj->", f, f, p); (f @ p.T)[0].sum(); n.roll(f, 1)[0].sum()
n.linspace(f[0], f[1], 5)[2].sum(); n.median(f); nn.celu(f).sum(); nn.log_sigmoid(f).sum()
n.hypot(f, p).sum(); n.tan(f).sum(); n.sinh(f).sum(); n.round(f).sum() + f.sum()
""".replace("\n", ";")


def rows(text: str) -> list[str]:
    return sorted({row.strip() for row in text.split(";") if row.strip()})


def both(text: str) -> tuple[Any, Any]:
    ours = {name: inp.asarray(x) for name, x in GIVEN.items()}
    theirs = {name: jnp.asarray(x) for name, x in GIVEN.items()}
    return (
        eval(text, {"n": inp, "nn": nn, "api": infini, **ours}),
        eval(text, {"n": jnp, "nn": jax.nn, "api": jax, **theirs}),
    )


@pytest.mark.parametrize("text", rows(VALUES))
def test_values(text: str) -> None:
    ours, theirs = both(text)
    assert ours.dtype == theirs.dtype
    tolerances.assert_close(ours, theirs, "contraction" if "ein" in text or "dot" in text else "elementwise")


@pytest.mark.parametrize("text", rows(NN))
def test_nn(text: str) -> None:
    ours, theirs = both(text)
    assert (ours.dtype, ours.weak_type) == (theirs.dtype, theirs.weak_type)
    tolerances.assert_close(ours, theirs, "reduction")


@pytest.mark.parametrize("text", rows(GRADIENTS))
def test_gradients(text: str) -> None:
    def derivative(api: Any, numpy: Any, nn_: Any) -> Any:
        others = {name: numpy.asarray(x) for name, x in GIVEN.items() if name != "f"}
        return api.grad(lambda f: eval(text, {"n": numpy, "nn": nn_, **others, "f": f}))(
            numpy.asarray(GIVEN["f"])
        )

    tolerances.assert_close(derivative(infini, inp, nn), derivative(jax, jnp, jax.nn), "program")
