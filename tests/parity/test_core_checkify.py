"""`checkify` as JAX's: the same message, output and kind of exception for the same program in both."""

from __future__ import annotations

import types

import jax
import jax.experimental.checkify
import jax.numpy as jnp
import numpy as np
import pytest

import infini as inf
import infini.experimental.checkify
import infini.numpy as inp
from infini.core import text


def names(library, np_, ck):
    found = {
        name: getattr(library, name) for name in ("lax", "jit", "vmap", "grad", "checkpoint", "custom_vjp")
    }
    return types.SimpleNamespace(np=np_, ck=ck, **found)


OURS = names(inf, inp, infini.experimental.checkify)
THEIRS = names(jax, jnp, jax.experimental.checkify)

F = np.float32
X = np.asarray([1.0, -1.0, -2.0, 3.0], F)
I3 = np.arange(3, dtype=np.int32)


def positive(l):
    def f(x):
        l.ck.check(x > 0, "must be positive, got {x} and {}", x + 1, x=x)
        return l.np.log(x)

    return f


def stepping(l, limit):
    def step(carry, v):
        l.ck.check(v < limit, "v too big: {}", v)
        return carry + v, carry

    return lambda x: l.lax.scan(step, l.np.float32(0), x)


def looping(l, where, limit):
    def test(c):
        if where == "cond":
            l.ck.check(c < limit, "cond {}", c)
        return c < 5

    def body(c):
        if where == "body":
            l.ck.check(c < limit, "body {}", c)
        return c + 1

    return lambda x: l.lax.while_loop(test, body, x)


def branching(l):
    def big(x):
        l.ck.check(x < 5, "big {}", x)
        return x * 2

    def small(x):
        l.ck.check(x > -5, "small {}", x)
        return x

    return lambda x: l.lax.cond(x > 0, big, small, x)


def two_checks(l):
    def f(x, y):
        l.ck.check(x > 0, "first")
        l.ck.check(y > 0, "second")
        return x + y

    return f


def rechecked(l):
    def f(x):
        err, y = l.ck.checkify(positive(l))(x)
        l.ck.check_error(err)
        return y

    return f


def ruled(l):
    @l.custom_vjp
    def f(x):
        l.ck.check(x > 0, "inside {}", x)
        return l.np.sin(x)

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (ct * 10.0,))
    return f


def tree_of_values(l):
    def f(x):
        l.ck.check(x[0] > 5, "values {} and {more[a]}", x, more={"a": x[1]})
        return x

    return f


# name: (function of a library, arguments, which checks)
CASES = {
    "holds": (positive, (F(1),), "user_checks"),
    "fails": (positive, (F(-1),), "user_checks"),
    "without user checks": (lambda l: l.np.log, (F(-1),), "user_checks"),
    "first of two": (two_checks, (F(-1), F(-1)), "user_checks"),
    "second of two": (two_checks, (F(1), F(-1)), "user_checks"),
    "trees of values": (tree_of_values, (X,), "user_checks"),
    "nan": (lambda l: l.np.log, (F(-1),), "nan_checks"),
    "nan in bfloat16": (lambda l: lambda x: l.np.log(x.astype("bfloat16")), (X,), "nan_checks"),
    "nan that came in": (lambda l: lambda x: x + 1, (np.asarray([np.nan], F),), "nan_checks"),
    "nan that is masked": (lambda l: lambda x: l.np.where(x > 0, l.np.log(x), 0.0), (X,), "nan_checks"),
    "nan only in moves": (lambda l: lambda x: x[::-1].reshape(2, 2).T, (X * np.nan,), "nan_checks"),
    "division": (lambda l: lambda x, y: l.lax.div(x, y), (F(1), F(0)), "div_checks"),
    "integer division": (lambda l: lambda x, y: l.lax.div(x, y), (np.int32(1), np.int32(0)), "div_checks"),
    "division of arrays": (lambda l: lambda x: x / (x - 1), (X,), "div_checks"),
    "zero by zero": (lambda l: lambda x: x / x, (F(0),), "float_checks"),
    "zero by zero without division": (lambda l: lambda x: x / x, (F(0),), "nan_checks"),
    "index": (lambda l: lambda x, i: x[i], (X, np.int32(5)), "index_checks"),
    "index from the end": (lambda l: lambda x, i: x[i], (X, np.int32(-9)), "index_checks"),
    "index inside": (lambda l: lambda x, i: x[i], (X, np.int32(-1)), "index_checks"),
    "index in the second dimension": (
        lambda l: lambda x, i: x[1, i],
        (X.reshape(2, 2), np.int32(7)),
        "index_checks",
    ),
    "vector of indices": (lambda l: lambda x, i: x[i], (X, np.asarray([0, 9, 7], np.int32)), "index_checks"),
    "two vectors of indices": (
        lambda l: lambda x, i: x[i, i + 1],
        (X.reshape(2, 2), np.asarray([0, 1], np.int32)),
        "index_checks",
    ),
    "update": (lambda l: lambda x, i: x.at[i].set(1.0), (X, np.asarray([5], np.int32)), "index_checks"),
    "addition": (lambda l: lambda x, i: x.at[i].add(1.0), (X, np.asarray([1, 6], np.int32)), "index_checks"),
    "dynamic slice": (
        lambda l: lambda x, i: l.lax.dynamic_slice(x, (i,), (2,)),
        (X, np.int32(3)),
        "index_checks",
    ),
    "dynamic slice inside": (
        lambda l: lambda x, i: l.lax.dynamic_slice(x, (i,), (2,)),
        (X, np.int32(2)),
        "index_checks",
    ),
    "dynamic update": (
        lambda l: lambda x, i: l.lax.dynamic_update_slice(x, l.np.zeros(2), (i,)),
        (X, np.int32(3)),
        "index_checks",
    ),
    "scan": (lambda l: stepping(l, 2.0), (np.arange(4, dtype=F),), "user_checks"),
    "scan that holds": (lambda l: stepping(l, 9.0), (np.arange(4, dtype=F),), "user_checks"),
    "scan with automatic checks": (
        lambda l: lambda x: l.lax.scan(lambda c, v: (c, l.np.log(v)), 0.0, x),
        (X,),
        "all_checks",
    ),
    "while body": (lambda l: looping(l, "body", 3), (np.int32(0),), "user_checks"),
    "while condition": (lambda l: looping(l, "cond", 3), (np.int32(0),), "user_checks"),
    "first while condition": (lambda l: looping(l, "cond", 3), (np.int32(4),), "user_checks"),
    "while that holds": (lambda l: looping(l, "cond", 9), (np.int32(0),), "user_checks"),
    "one branch": (branching, (np.int32(7),), "user_checks"),
    "other branch": (branching, (np.int32(-7),), "user_checks"),
    "no branch": (branching, (np.int32(1),), "user_checks"),
    "jit inside": (lambda l: l.jit(positive(l)), (F(-1),), "user_checks"),
    "checkpoint inside": (lambda l: l.checkpoint(positive(l)), (F(-1),), "user_checks"),
    "vmap inside": (lambda l: l.vmap(positive(l)), (X,), "user_checks"),
    "vmap inside that holds": (lambda l: l.vmap(positive(l)), (np.abs(X),), "user_checks"),
    "vmap inside with indices": (
        lambda l: l.vmap(lambda r, i: r[i]),
        (X.reshape(2, 2), np.asarray([1, 3], np.int32)),
        "index_checks",
    ),
    "grad inside": (lambda l: l.grad(positive(l)), (F(-1),), "user_checks"),
    "grad inside with automatic checks": (lambda l: l.grad(l.np.sqrt), (F(0),), "all_checks"),
    "custom rule": (ruled, (F(-1),), "user_checks"),
    "grad of a custom rule": (lambda l: l.grad(ruled(l)), (F(-1),), "user_checks"),
    "error passed on": (rechecked, (F(-1),), "user_checks"),
    "debug check": (lambda l: lambda x: (l.ck.debug_check(x > 0, "debug"), x)[1], (F(-1),), "user_checks"),
}


def run(library, name, wrap):
    make, args, categories = CASES[name]
    checked = library.ck.checkify(make(library), errors=getattr(library.ck, categories))
    error, out = wrap(checked)(*map(library.np.asarray, args))
    return error, library.np.asarray(out[0] if isinstance(out, tuple) else out) if out is not None else None


# Outside of jit the rewritten program runs operation by operation; one case of each kind shows it.
OP_BY_OP = ("fails", "nan", "index", "scan", "while condition", "other branch", "vmap inside", "custom rule")


@pytest.mark.parametrize("name", CASES)
def test_message_and_output(name):
    expected_error, expected = run(THEIRS, name, jax.jit)
    for wrap in (inf.jit, lambda f: f) if name in OP_BY_OP else (inf.jit,):
        error, found = run(OURS, name, wrap)
        assert error.get() == expected_error.get()
        np.testing.assert_allclose(found.astype(F), expected.astype(F), rtol=1e-6)


def test_of_a_batch_every_failure_is_told():
    for library in (OURS, THEIRS):
        error, _ = library.vmap(library.ck.checkify(positive(library)))(library.np.asarray(X))
        told = "at mapped index {}: must be positive, got {} and {} (`check` failed)"
        assert error.get() == "\n".join([told.format(1, -1.0, 0.0), told.format(2, -2.0, -1.0)])


def test_gradients_pass_through_a_checkified_function():
    def output(l, f):
        return lambda x: l.ck.checkify(f)(x)[1]

    for library in (OURS, THEIRS):
        two = library.np.float32(2)
        assert library.grad(output(library, positive(library)))(two) == 0.5
        assert library.grad(output(library, ruled(library)))(two) == 10.0


def test_an_error_may_be_carried():
    def f(x):
        init = OURS.ck.checkify(positive(OURS))(inp.float32(1))[0]
        return inf.lax.scan(lambda c, v: (OURS.ck.checkify(positive(OURS))(v)[0], v), init, x)[0]

    assert inf.jit(f)(X[:2]).get() == "must be positive, got -1.0 and 0.0 (`check` failed)"


RAISING = {
    "fails": lambda l: positive(l)(l.np.float32(-1)),
    "fails under grad": lambda l: l.grad(positive(l))(l.np.float32(-1)),
    "fails under vmap": lambda l: l.vmap(positive(l))(l.np.asarray(X)),
    "passed on": lambda l: rechecked(l)(l.np.float32(-1)),
    "thrown": lambda l: l.ck.checkify(positive(l))(l.np.float32(-1))[0].throw(),
    "traced without checkify": lambda l: l.jit(positive(l))(l.np.float32(1)),
    "scanned without checkify": lambda l: stepping(l, 2.0)(l.np.arange(4.0)),
    "no scalar": lambda l: l.ck.check(l.np.asarray([True, False]), "x"),
    "no boolean": lambda l: l.ck.check(l.np.int32(1), "x"),
    "a Python number": lambda l: l.ck.check(1, "x"),
    "text for a value": lambda l: l.ck.check(l.np.asarray(False), "x {}", "y"),
    "number for a value": lambda l: l.ck.check(l.np.asarray(False), "x {}", 1.0),
    "no error": lambda l: l.ck.check_error(5),
}


@pytest.mark.parametrize("name", RAISING)
def test_kind_of_exception(name):
    with pytest.raises((ValueError, TypeError)) as theirs:
        RAISING[name](THEIRS)
    with pytest.raises(ValueError if isinstance(theirs.value, ValueError) else TypeError) as ours:
        RAISING[name](OURS)
    assert isinstance(ours.value, inf.InfiniError) and ours.value.where.file == __file__


@pytest.mark.parametrize("name", ["fails", "passed on", "thrown"])
def test_a_failure_names_the_line_of_the_check(name):
    with pytest.raises(OURS.ck.CheckFailedError) as raised:
        RAISING[name](OURS)
    assert raised.value.where.line == positive.__code__.co_firstlineno + 2


def test_the_first_failure_in_the_program_is_told():
    # JAX numbers user's checks before automatic ones and would tell the user's.
    def f(x):
        y = inp.log(x)
        OURS.ck.check(x > 0, "user")
        return y

    error, _ = OURS.ck.checkify(f, errors=OURS.ck.all_checks)(inp.float32(-1))
    assert error.get() == "nan generated by primitive: log."


def test_debug_checks_vanish_without_checkify():
    f = CASES["debug check"][0](OURS)
    assert f(inp.float32(-1)) == inf.jit(f)(-1.0) == -1.0


def test_a_program_with_checks_prints_and_parses():
    found = []

    def f(x):
        found.append(inf.make_jaxpr(positive(OURS))(x))
        return x

    OURS.ck.checkify(f)(inp.float32(1))
    assert "check(" in repr(found[0]) and text.parse(repr(found[0])) == found[0]


def test_names():
    theirs = {name for name in dir(jax.experimental.checkify) if not name.startswith("_")}
    assert theirs <= set(dir(infini.experimental.checkify))
