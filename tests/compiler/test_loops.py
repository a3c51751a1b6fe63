"""What loops repeat is moved before them, and their products are made for all steps at once."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.compiler.llvm import layouts, lower
from infini.compiler.llvm.target import host_target
from infini.compiler.passes import (
    contractions,
    cse,
    dead_code,
    inline,
    loop_panels,
    loop_products,
    loop_slices,
    loops,
    panels,
    simplify,
)
from infini.core import check
from tests.compiler.programs import evaluate, f32, inputs_for, ops, program_of
from tests.property.running import close, run

X, W, H = f32(5, 3, 4), f32(4, 4), f32(3, 4)


def canonical(f, *types):
    program = inline.inline_calls(program_of(f, *types))
    program = contractions.canonical_contractions(simplify.simplify(program))
    return dead_code.eliminate_dead(cse.eliminate_common(program))


def moved(f, *types, seed=0):
    """The program after all passes over loops but packing; its results are those of the program before."""
    before = canonical(f, *types)
    after = check.check(dead_code.eliminate_dead(loops.move_invariants(before)))
    after = check.check(dead_code.eliminate_dead(loop_products.leave_scans(after)))
    after = check.check(dead_code.eliminate_dead(loop_slices.absorb(after)))
    inputs = inputs_for(types, seed)
    for x, y in zip(evaluate(after, inputs), evaluate(before, inputs), strict=True):
        close(x, y, "loops")
    return after


def loop(program, name="scan", number=0):
    return [e for e in program.equations if e.op.name == name][number]


def body_ops(program, name="scan", number=0):
    return ops(loop(program, name, number).attrs["body"])


# --- invariants ------------------------------------------------------------------------------------


def test_what_reads_constants_only_leaves_a_scan():
    f = lambda w, x: lax.scan(lambda c, r: (c * inp.tanh(w @ w)[0, 0] + r, c), x[0], x)  # noqa: E731
    after = moved(f, W, X)
    assert body_ops(after).count("dot") == body_ops(after).count("tanh") == 0
    assert ops(after).count("dot") == 1


def test_what_reads_constants_only_leaves_a_while_and_its_condition():
    def f(w, x):
        return lax.while_loop(lambda c: inp.sum(w) + inp.max(c) < 3.0, lambda c: c + inp.exp(w @ w), x)

    after = moved(f, W, W)
    assert "dot" not in body_ops(after, "while")
    assert "reduce_sum" not in ops(loop(after, "while").attrs["cond"])


def test_a_loop_without_steps_keeps_its_start_whatever_moved():
    def f(w, x):
        return lax.while_loop(lambda c: c[0, 0] > 1e9, lambda c: c + inp.log(-inp.abs(w)) / 0.0, x)

    after = moved(f, W, W)
    assert "log" in ops(after)
    w, x = inputs_for([W, W])
    np.testing.assert_array_equal(evaluate(after, [w, x])[0], x)
    np.testing.assert_array_equal(np.asarray(infini.jit(f)(w, x)), x)


def test_an_inner_loop_leaves_through_both():
    def inner(c, r):
        return c + r, c

    def f(w, x):
        def outer(c, r):
            d, _ = lax.scan(lambda d, q: (d @ inp.exp(w @ w) * 0.01 + q, None), c, inp.stack([r, r]))
            return d, d

        return lax.scan(outer, x[0], x)

    after = moved(f, W, X)
    assert ops(after).count("dot") == 1
    assert body_ops(after).count("dot") == 0


def test_a_loop_that_may_not_end_stays_in_one_that_may_make_no_step():
    def f(w, x):
        forever = lambda _: lax.while_loop(lambda c: c < 9.0, lambda c: c * 0.5 + 1.0, w[0, 0])  # noqa: E731
        return lax.while_loop(lambda c: c[0, 0] > 1e9, lambda c: c + forever(c), x)

    assert "while" in body_ops(moved(f, W, W), "while")


def test_repeated_scalars_and_masks_stay_where_they_fuse():
    def f(s, x):
        def step(c, r):
            mask = lax.broadcasted_iota("int32", (3, 4), 0) >= lax.broadcasted_iota("int32", (3, 4), 1)
            return inp.where(mask, c, r) * inp.exp(s), c

        return lax.scan(step, x[0], x)

    after = moved(f, f32(), X)
    assert ops(after) == ["slice", "reshape", "scan"] or "iota" not in ops(after)
    assert {"iota", "ge", "exp"} <= set(body_ops(after))


def test_nothing_leaves_from_behind_a_barrier():
    f = lambda w, x: lax.scan(lambda c, r: (c + lax.optimization_barrier(w)[0] @ w, c), x[0], x)  # noqa: E731
    assert "optimization_barrier" in body_ops(moved(f, W, X))
    assert "dot" in body_ops(moved(f, W, X))


def test_effects_stay_in_their_steps():
    seen = []

    def f(w, x):
        def step(c, r):
            infini.debug.callback(lambda v: seen.append(float(v)), inp.sum(w))
            return c + r, c

        return lax.scan(step, x[0], x)[0]

    w, x = inputs_for([W, X])
    infini.block_until_ready(infini.jit(f)(w, x))
    assert len(seen) == X.shape[0]


def test_a_carry_that_no_step_changes_is_no_carry():
    def f(w, x):
        (c, same), ys = lax.scan(lambda c, r: ((c[0] @ c[1] + r, c[1]), c[1][0]), (x[0], w), x)
        return c, same, ys

    after = moved(f, W, X)
    assert loop(after).attrs["num_carry"] == 1
    assert [v.type for v in loop(after).outputs] == [H]


def test_a_carry_of_a_while_that_no_step_changes_is_no_carry():
    def f(w, x):
        cond = lambda c: inp.sum(c[0]) + inp.max(c[1]) < 9.0  # noqa: E731
        return lax.while_loop(cond, lambda c: (c[0] + 1.0, c[1]), (x, w))

    assert len(loop(moved(f, W, H), "while").outputs) == 1


def test_equal_slices_are_a_constant():
    def f(w, x):
        return lax.scan(lambda c, r: (c @ r[0] + r[1], c), x[0], (inp.broadcast_to(w, (5, 4, 4)), x))

    after = moved(f, W, X)
    assert loop(after).attrs["num_consts"] == 1
    assert "broadcast_in_dim" not in ops(after)


def test_slices_that_differ_are_not_taken_for_equal_ones():
    """The first dimension of what vmap repeats is vmap's, whose rows differ."""

    def f(x, w):
        rows = infini.vmap(lambda row: inp.broadcast_to(row[:, None], (4, 3)))(x)
        return lax.scan(lambda c, row: (c + (row * w).sum(), row @ w.T), 0.0, rows)

    x, w = np.arange(20, dtype=np.float32).reshape(5, 4), np.ones((4, 3), np.float32)
    total, products = infini.jit(f)(x, w)
    wide = np.repeat(x[:, :, None], 3, axis=2)
    assert float(total) == wide.sum()
    np.testing.assert_array_equal(products, wide @ w.T)


def test_slices_that_are_handed_on_are_not_copied():
    f = lambda x: lax.scan(lambda c, r: (c + r, (c, r)), x[0], x)[1]  # noqa: E731
    assert len(loop(moved(f, X)).outputs) == 2  # the carry and what it was


# --- products --------------------------------------------------------------------------------------


def cell(w, u, b):
    def step(carry, x):
        h, m = carry
        gates = x @ u + h @ w + b
        i, f, g, o = inp.split(gates, 4, axis=-1)
        m = lax.logistic(f) * m + lax.logistic(i) * inp.tanh(g)
        h = lax.logistic(o) * inp.tanh(m)
        return (h, m), h

    return step


def recurrent(w, u, b, x):
    zeros = inp.zeros((x.shape[1], w.shape[0]))
    _, h = lax.scan(cell(w, u, b), (zeros, zeros), x)
    return inp.sum(h * h)


RECURRENT = [f32(4, 16), f32(5, 16), f32(16), f32(6, 3, 5)]


def test_the_input_projection_is_one_product_before_the_loop():
    after = moved(recurrent, *RECURRENT)
    assert body_ops(after).count("dot") == 1
    assert ops(after).count("dot") == 1


def test_gradients_of_weights_are_products_after_the_loop():
    after = moved(infini.grad(recurrent, argnums=(0, 1, 2, 3)), *RECURRENT)
    assert [body_ops(after, number=i).count("dot") for i in (0, 1)] == [1, 1]
    # The projection; after the loop backwards the gradients of both weights and of x.
    assert ops(after).count("dot") == 4
    assert loop(after, number=1).attrs["num_carry"] == 2


def test_weights_are_no_residual_of_each_step():
    after = moved(infini.grad(recurrent, argnums=(0, 1, 2, 3)), *RECURRENT)
    assert all(v.type.shape[1:] != RECURRENT[0].shape[::-1] for v in loop(after).outputs)
    assert all(v.type.shape[1:] != RECURRENT[0].shape for v in loop(after).outputs)


def test_a_product_that_is_only_stacked_is_made_after_the_loop():
    f = lambda w, x: lax.scan(lambda c, r: (inp.tanh(c + r), inp.tanh(c + r) @ w), x[0], x)  # noqa: E731
    after = moved(f, W, X)
    assert body_ops(after).count("dot") == 0
    assert ops(after).count("dot") == 1


def test_a_loop_that_saves_memory_keeps_its_products():
    def f(w, x):
        step = lambda c, r: (c + inp.sum(lax.logistic(r @ w)), None)  # noqa: E731
        return lax.scan(step, inp.float32(0), x)[0]

    after = moved(f, f32(4, 64), X)
    assert "dot" in body_ops(after)


def test_a_large_sum_of_products_is_kept_when_its_operands_would_have_to_be_stacked():
    def f(x):
        step = lambda c, r: (c + inp.exp(r).T @ inp.tanh(r), None)  # noqa: E731
        return lax.scan(step, inp.zeros((2, 2)), x)[0]

    assert "dot" in body_ops(moved(f, f32(4, 256, 2)))
    assert "scan" not in ops(moved(f, f32(4, 8, 2))) or "dot" not in body_ops(moved(f, f32(4, 8, 2)))


@pytest.mark.parametrize("seed", range(14))
@pytest.mark.parametrize("order", [1, 0], ids=["gradient", "forward"])
def test_random_loops_keep_their_results(seed, order):
    f = random_loop(seed)
    wanted = (
        infini.grad(lambda *xs: sum(inp.sum(inp.tanh(y)) for y in f(*xs)), argnums=(0, 1, 2)) if order else f
    )
    types = [W, X, f32(4)]
    after = moved(wanted, *types, seed=seed)
    if seed < 3:
        inputs = inputs_for(types, seed)
        for x, y in zip(run("cpu", after, inputs), evaluate(after, inputs), strict=True):
            close(x, y, "cpu")


def random_loop(seed):
    """A function of a weight, an array of xs and a vector: a scan, perhaps in a scan, of random steps."""

    def f(w, x, b):
        rng = np.random.default_rng(seed)
        recipe = [int(n) for n in rng.integers(0, 12, rng.integers(3, 10))]
        picks = [[int(n) for n in rng.integers(0, 99, 2)] for _ in recipe]
        kept = [int(n) for n in rng.integers(0, 99, 3)]
        is_reversed, is_nested, grows = (bool(n) for n in rng.integers(0, 2, 3))

        def step(carry, r):
            c, total, same = carry
            values = [c, r, inp.broadcast_to(b, (3, 4)), same]
            for number, (i, j) in zip(recipe, picks, strict=True):
                p, q = values[i % len(values)], values[j % len(values)]
                made = [
                    lambda p, q: p @ w * 0.3, lambda p, q: p @ w.T * 0.3, lambda p, q: p @ inp.tanh(w @ w),
                    lambda p, q: p * 0.5 + q, lambda p, q: inp.tanh(p), lambda p, q: p * inp.exp(-inp.abs(b)),
                    lambda p, q: p + inp.sum(inp.sin(w), axis=0), lambda p, q: p - q, lambda p, q: q * b,
                    lambda p, q: p + (p.T @ q)[:3] * 0.1, lambda p, q: p * inp.mean(q), lambda p, q: p[::-1],
                ][number](p, q)  # fmt: skip
                values.append(made)
            p, q, s = (values[k % len(values)] for k in kept)
            grown = total + (p.T @ q if grows else inp.sum(q, axis=0))
            new = (inp.tanh(p + 0.5 * c), grown, same)
            return new, (p, s @ w, r)

        total = inp.zeros((4, 4)) if grows else b
        start = (x[0], total, x[1])
        if not is_nested:
            (c, total, same), ys = lax.scan(step, start, x, reverse=is_reversed)
            return (c, total, same, *ys)

        def outer(carry, r):
            carry, ys = lax.scan(step, carry, x[:3] + r, reverse=is_reversed)
            return carry, ys[1]

        (c, total, same), ys = lax.scan(outer, start, x[:2])
        return c, total, same, ys

    return f


# --- slices --------------------------------------------------------------------------------------


def test_a_bias_is_added_in_the_loop_that_reads_the_sum():
    f = lambda b, x: lax.scan(lambda c, r: (inp.tanh(c + r), c), x[0], x * 2.0 + b)  # noqa: E731
    after = moved(f, f32(4), X)
    assert "mul" not in ops(after)
    assert body_ops(after).count("add") == 2


def test_what_others_read_too_is_made_outside():
    def f(x):
        y = inp.exp(x)
        c, _ = lax.scan(lambda c, r: (inp.tanh(c + r), None), x[0], y)
        return c, y

    assert "exp" not in body_ops(moved(f, X))


def test_what_a_product_reads_is_made_outside():
    f = lambda w, x: lax.scan(lambda c, r: (inp.tanh(r.T @ c + w), None), w, inp.exp(x[:, :, :4]))[0]  # noqa: E731
    assert "exp" not in body_ops(moved(f, W, f32(5, 4, 4)))


def test_cheap_residuals_are_computed_again_by_their_reader():
    def f(x):
        step = lambda c, r: (lax.logistic(c + r) * c, None)  # noqa: E731
        return inp.sum(lax.scan(step, x[0], x)[0])

    after = moved(infini.grad(f), X)
    first, second = loop(after), loop(after, number=1)
    # The carry, c and s in all steps; s * (1 - s) is computed where it is read.
    assert len(first.outputs) == 3
    assert "sub" in ops(second.attrs["body"])


def test_a_scalar_of_each_step_does_not_broadcast_over_all_of_them():
    def f(x):
        def step(c, r):
            s = inp.sum(r)
            return inp.tanh(c * s), (s, s - 1.0, (s - 1.0) * c)

        _, (s, t, u) = lax.scan(step, x[0], x)
        return lax.scan(lambda c, r: (c * r[0] + r[1] * r[2], None), x[0], (s, t, u))[0]

    moved(f, X)
    moved(infini.grad(lambda x: inp.sum(f(x))), f32(3, 3, 3))


# --- panels ----------------------------------------------------------------------------------------


def packed(f, *types):
    """The program of the CPU with weights packed before its loops."""
    target = host_target()
    before = canonical(f, *types)
    after = loop_panels.pack_before(before, lambda body, number: layouts.wanted(body, number, target))
    return check.check(panels.products(after, lambda equation: lower.reads_panels(equation, target)))


BIG = f32(256, 512)


@pytest.mark.parametrize("f", [
    lambda w, x: lax.scan(lambda c, r: (inp.tanh(c @ w)[:, :256] + r, None), x[0], x)[0],
    lambda w, x: lax.fori_loop(0, 5, lambda i, c: inp.tanh(c @ w)[:, :256], x[0]),
], ids=["scan", "while"])  # fmt: skip
def test_weights_are_packed_before_a_loop(f):
    types = [BIG, f32(4, 32, 256)]
    after = packed(f, *types)
    equations = [e for e in after.equations if e.op.name in ("scan", "while")]
    assert "from_panels" not in ops(equations[0].attrs["body"])
    assert ops(equations[0].attrs["body"]).count("packed_dot") == 1
    inputs = [x * 0.05 for x in inputs_for(types)]
    for x, y in zip(evaluate(after, inputs), evaluate(canonical(f, *types), inputs), strict=True):
        close(x, y, "panels")
    found = np.asarray(infini.jit(f)(*inputs))
    close(found, evaluate(canonical(f, *types), inputs)[0], "cpu")


def test_a_packed_weight_is_packed_once():
    f = lambda w, x: lax.scan(lambda c, r: (inp.tanh(c @ w)[:, :256] + r, None), x[0], x)[0]  # noqa: E731
    after = packed(f, BIG, f32(4, 32, 256))
    assert ops(loop(after).attrs["body"]).count("packed_dot") == 1
    assert loop(after).inputs[0].type.ndim == 4
    short = packed(f, BIG, f32(2, 32, 256))
    assert ops(loop(short).attrs["body"]).count("dot") == 1
