"""Every transform against JAX: the same function runs on both by changing the namespaces, and all results
agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


W1, W2, X, Y = normal(3, 4), normal(4, 2), normal(5, 3), normal(5, 2)
PROGRAMS = {}


def program(f):
    PROGRAMS[f.__name__] = f
    return f


def squared_error(np_):
    def loss(weights, x, y):
        difference = np_.tanh(x @ weights[0]) @ weights[1] - y
        return (difference * difference).sum()

    return loss


@program
def grad_commutes_with_jit_and_checkpoint(api, lax, np_):
    loss, weights = squared_error(np_), (W1, W2)
    return (
        api.grad(loss)(weights, X, Y),
        api.jit(api.grad(loss))(weights, X, Y),
        api.grad(api.jit(loss))(weights, X, Y),
        api.grad(api.checkpoint(loss))(weights, X, Y),
        api.value_and_grad(loss, argnums=(0, 1))(weights, X, Y),
    )


@program
def vmap_of_grad(api, lax, np_):
    return api.vmap(api.grad(squared_error(np_)), in_axes=(None, 0, 0))((W1, W2), X[:, None], Y[:, None])


@program
def second_derivatives(api, lax, np_):
    def f(v):
        return (np_.sin(v) * np_.exp(v)).sum()

    v = np.array([0.1, 0.2, 0.3], np.float32)
    return (
        api.hessian(f)(v),
        api.jacfwd(api.jacfwd(f))(v),
        api.jacrev(api.jacrev(f))(v),
        api.jit(api.hessian(f))(v),
        api.vmap(api.grad(f))(np.stack([v, 2 * v])),
    )


def recurrence(api, lax, np_, reverse, is_checkpointed):
    def f(matrix, start, xs):
        def cell(carry, x):
            return np_.tanh(matrix @ carry + x)

        step = api.checkpoint(cell) if is_checkpointed else cell

        def body(carry, x):
            carry = step(carry, x)
            return carry, carry * x

        _, ys = lax.scan(body, start, xs, reverse=reverse)
        return (ys * ys).sum()

    return f


@program
def scan_under_every_transform(api, lax, np_):
    matrix, start = np.eye(3, dtype=np.float32) * 0.9, np.ones(3, np.float32)
    xs = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    found = []
    for reverse, is_checkpointed in ((False, False), (True, True)):
        f = recurrence(api, lax, np_, reverse, is_checkpointed)
        every = api.grad(f, argnums=(0, 1, 2))
        found += [
            every(matrix, start, xs),
            api.jit(every)(matrix, start, xs),
            api.vmap(every, in_axes=(None, 0, None))(matrix, np.stack([start, 2 * start]), xs),
            api.jvp(f, (matrix, start, xs), (matrix, start, xs)),
            api.jacfwd(api.grad(f, 1), 1)(matrix, start, xs),
            api.jacrev(api.grad(f, 1), 1)(matrix, start, xs),
        ]
    return found


@program
def cond_under_every_transform(api, lax, np_):
    def f(p, x):
        return lax.cond(p < 1.0, lambda x: np_.sin(x), lambda x: x * x, x)

    x, batch = np.float32(2.0), np.array([2.0, 3.0], np.float32)
    found = []
    for p in (np.float32(0.5), np.float32(1.5)):
        found += [
            f(p, x),
            api.grad(f, 1)(p, x),
            api.jit(api.grad(f, 1))(p, x),
            api.grad(api.grad(f, 1), 1)(p, x),
        ]
    predicates = np.array([0.5, 1.5], np.float32)
    return found, api.vmap(f)(predicates, batch), api.vmap(api.grad(f, 1))(predicates, batch)


@program
def while_in_forward_mode(api, lax, np_):
    def f(x):
        return lax.while_loop(lambda c: c < 10.0, lambda c: c * 2.0, x)

    xs = np.array([1.0, 3.0, 20.0], np.float32)
    one = np.float32(1.0)
    return f(one), api.jvp(f, (one,), (one,)), api.vmap(f)(xs), api.jit(api.vmap(api.jacfwd(f)))(xs)


@program
def fori_loop_with_static_bounds_has_a_gradient(api, lax, np_):
    one = np.float32(1.0)
    return (
        api.grad(lambda x: lax.fori_loop(0, 3, lambda i, c: np_.sin(c) * i, x))(one),
        lax.fori_loop(0, np.int32(3), lambda i, c: np_.sin(c), one),
    )


@program
def dynamic_slices(api, lax, np_):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    u, i, several = np.ones((2, 2), np.float32), np.int32(1), np.array([0, 1, 5], np.int32)

    def read(x, i):
        return lax.dynamic_slice(x, (i, 1), (2, 2))

    def write(x, u, i):
        return lax.dynamic_update_slice(x, u, (i, 1))

    return (
        read(x, i),
        api.vmap(read, (None, 0))(x, several),
        api.vmap(read)(np.stack([x, x + 1, x + 2]), several),
        api.grad(lambda x: (read(x, i) ** 2).sum())(x),
        write(x, u, i),
        api.vmap(write, (None, None, 0))(x, u, several),
        api.vmap(write, (None, 0, None))(x, np.stack([u, 2 * u]), i),
        api.grad(lambda u: (write(x, u, i) * x).sum())(u),
    )


@program
def custom_vjp_under_every_transform(api, lax, np_):
    @api.custom_vjp
    def f(x, y):
        return np_.sin(x) * y

    def forward(x, y):
        return f(x, y), (x, y)

    def backward(residuals, ct):
        x, y = residuals
        return ct * np_.cos(x) * y * 2.0, ct * np_.sin(x)

    f.defvjp(forward, backward)
    a, b, xs = np.float32(0.3), np.float32(2.0), np.array([1.0, 2.0], np.float32)

    def repeated(x):
        return lax.scan(lambda c, _: (f(c, x), c), x, None, length=3)[0]

    return (
        api.grad(f, (0, 1))(a, b),
        api.vmap(api.grad(f), (0, None))(xs, b),
        api.jit(api.vmap(api.grad(f), (None, 0)))(a, xs),
        api.grad(repeated)(a),
        api.grad(lambda x: api.vmap(f)(x, x).sum())(xs),
        api.grad(lambda x: api.vmap(f, (0, None))(x, b).sum())(xs),
    )


@program
def custom_jvp_under_every_transform(api, lax, np_):
    @api.custom_jvp
    def f(x):
        return np_.exp(x)

    @f.defjvp
    def rule(primals, tangents):
        return f(primals[0]), tangents[0] * f(primals[0]) * 3.0

    a, xs = np.float32(0.3), np.array([1.0, 2.0], np.float32)
    return (
        api.grad(f)(a),
        api.vmap(api.grad(f))(xs),
        api.jvp(f, (a,), (a,)),
        api.grad(api.grad(f))(a),
        api.jit(api.grad(f))(a),
    )


@program
def sort_and_ties_of_max(api, lax, np_):
    x = np.array([[3, 1, 2, 5, 4], [0, 0, 2, 1, 1]], np.float32)
    return (
        lax.sort(x),
        lax.sort(x, dimension=0),
        api.grad(lambda x: (lax.sort(x) ** 2).sum())(x + 0.1 * np.arange(5, dtype=np.float32)),
        api.vmap(lax.sort)(x),
        api.grad(lambda x: np_.max(x, axis=1).sum())(np.ones((2, 3), np.float32)),
    )


@program
def collectives_over_a_mapped_axis(api, lax, np_):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)

    def mapped(f):
        return api.vmap(f, axis_name="i")(x)

    def mixing(x):
        return api.vmap(lambda x: x * lax.psum(np_.sin(x), "i"), axis_name="i")(x).sum()

    return (
        mapped(lambda x: lax.psum(x, "i")),
        mapped(lambda x: lax.pmean(x, "i")),
        mapped(lambda x: lax.pmax(x, "i")),
        mapped(lambda x: lax.all_gather(x, "i")),
        mapped(lambda x: lax.ppermute(x, "i", [(0, 1), (1, 2), (2, 0)])),
        mapped(lambda x: x + lax.axis_index("i")),
        api.grad(mixing)(x),
    )


@program
def scan_of_checkpoint_of_cond_under_grad_of_vmap(api, lax, np_):
    def f(x):
        near = api.checkpoint(lambda y: (np_.sin(y * x) * x).sum())

        def body(carry, y):
            return carry + lax.cond(y < 0.5, near, lambda y: y * y, y), carry

        total, _ = lax.scan(body, np.float32(0.0), x)
        return total

    v = np.array([0.1, 0.7, 0.9], np.float32)
    return (
        api.grad(f)(v),
        api.jit(api.grad(f))(v),
        api.vmap(api.grad(f))(np.stack([v, 2 * v])),
        api.grad(lambda b: api.vmap(f)(b).sum())(np.stack([v, 2 * v])),
        api.hessian(f)(v),
    )


@program
def linearize_and_vjp(api, lax, np_):
    def f(x, y):
        return {"a": np_.sin(x) * y, "b": (x * x).sum()}

    out, push = api.linearize(f, X, 2 * X)
    result, pull = api.vjp(f, X, 2 * X)
    return out, push(X, X), result, pull({"a": X, "b": np.float32(3.0)})


@program
def auxiliary_outputs(api, lax, np_):
    def f(x):
        return (x * x).sum(), {"doubled": x * 2}

    return (
        api.grad(f, has_aux=True)(X),
        api.value_and_grad(f, has_aux=True)(X),
        api.vjp(f, X, has_aux=True)[2],
    )


@program
def python_control_flow_under_grad(api, lax, np_):
    def f(x):
        return np_.sin(x) if x > 0 else x * x

    return api.grad(f)(1.0), api.grad(f)(-1.0)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_results_equal_those_of_jax(name):
    ours = PROGRAMS[name](infini, infini.lax, inp)
    theirs = PROGRAMS[name](jax, jax.lax, jnp)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)
