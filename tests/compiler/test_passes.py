"""Passes keep results bit for bit, give programs the checker accepts, and do what their rules say."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.compiler import pipeline
from infini.compiler.passes import (
    contractions,
    cse,
    dead_code,
    decompose,
    inline,
    one_hot,
    reductions,
    simplify,
)
from infini.core import check, dtypes, errors, primitive
from tests.compiler.programs import evaluate, f32, i32, inputs_for, ops, program_of

X = f32(3, 4)
IDENTITIES = {
    "mul_one": (lambda x: x * 1.0, [X], []),
    "div_one": (lambda x: x / 1.0, [X], []),
    "add_minus_zero": (lambda x: x + (-0.0), [X], []),
    "sub_zero": (lambda x: x - 0.0, [X], []),
    "integer_add_zero": (lambda x: x + 0, [i32(5)], []),
    "integer_mul_zero": (lambda x: x * 0, [i32(5)], ["broadcast_in_dim"]),
    "neg_neg": (lambda x: inp.negative(-x), [X], []),
    "add_neg": (lambda x, y: x + (-y), [X, X], ["sub"]),
    "sub_neg": (lambda x, y: x - (-y), [X, X], ["add"]),
    "max_self": (lambda x: inp.maximum(x, x), [X], []),
    "select_same": (lambda x: lax.select(x > 0, x, x), [X], []),
    "select_known": (lambda x, y: lax.select(inp.full((3, 4), True), x, y), [X, X], []),
    "transpose_twice": (lambda x: x.T.T, [X], []),
    "transpose_of_ones": (lambda x: lax.transpose(x, (2, 0, 1)), [f32(3, 4, 1)], ["reshape"]),
    "reshape_twice": (lambda x: x.reshape(2, 6).reshape(12), [X], ["reshape"]),
    "reshape_back": (lambda x: x.reshape(12).reshape(3, 4), [X], []),
    "broadcast_twice": (
        lambda x: lax.broadcast_in_dim(lax.broadcast_in_dim(x, (3, 4), (1,)), (2, 3, 4), (1, 2)), [f32(4)],
        ["broadcast_in_dim"],
    ),
    "convert_back": (lambda x: x.astype("float32").astype("bfloat16"), [X.update(dtype=dtypes.bfloat16)], []),
    "slice_twice": (lambda x: x[1:, 1:][1:, ::2], [f32(6, 7)], ["slice"]),
    "slice_of_concatenate": (lambda x, y: inp.concatenate([x, y])[3:], [X, X], []),
    "rev_rev": (lambda x: lax.rev(lax.rev(x, (0,)), (0,)), [X], []),
    "max_of_one": (lambda x: x.max(axis=0), [f32(1, 4)], ["reshape"]),
    "sum_of_one": (lambda x: x.sum(axis=0), [f32(1, 4)], ["reshape", "add"]),
    "max_of_max": (lambda x: x.max(axis=0).max(axis=0), [X], ["reduce_max"]),
    "sum_of_nothing": (lambda x: x.sum(axis=0), [f32(0, 4)], ["broadcast_in_dim"]),
}  # fmt: skip


def simplified(program):
    return check.check(dead_code.eliminate_dead(simplify.simplify(inline.inline_calls(program))))


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_is_applied_and_changes_no_bit(name):
    f, types, expected = IDENTITIES[name]
    before = inline.inline_calls(program_of(f, *types))
    after = simplified(before)
    inputs = inputs_for(types)
    for x in inputs:
        if x.dtype.kind == "f" and x.size > 2:
            x.reshape(-1)[:3] = [-0.0, np.nan, np.inf]
    assert ops(after) == expected
    for a, b in zip(evaluate(before, inputs), evaluate(after, inputs), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x + 0.0,
        lambda x: x * 0.0,
        lambda x: 0.0 - x,
        lambda x: x - x,
        lambda x: x / x,
        lambda x: (x + 1.0) - 1.0,
    ],
)
def test_what_is_no_identity_of_floats_stays(f):
    assert ops(simplified(program_of(f, X))) == ops(inline.inline_calls(program_of(f, X)))


def test_lossy_conversions_stay():
    assert len(ops(simplified(program_of(lambda x: x.astype("float16").astype("float32"), X)))) == 2


def test_provenance_names_the_rule():
    after = simplify.simplify(program_of(lambda x, y: x + (-y), X, X))
    assert [e.via for e in after.equations if e.op.name == "sub"] == ["simplify/add_neg"]


def test_a_branch_chosen_by_a_constant_is_inlined():
    f = lambda x: lax.switch(inp.int32(1), [lambda x: x + 1, lambda x: x * 2, lambda x: x], x)  # noqa: E731
    assert ops(simplified(inline.inline_calls(simplified(program_of(f, X))))) == ["mul"]


def test_equal_equations_become_one():
    program = cse.eliminate_common(program_of(lambda x: inp.exp(x) + inp.exp(x), X))
    assert ops(check.check(program)) == ["exp", "add"]


def test_common_subexpressions_stop_at_a_barrier():
    f = lambda x: inp.exp(x) + inp.exp(lax.optimization_barrier(x))  # noqa: E731
    assert ops(cse.eliminate_common(program_of(f, X))).count("exp") == 2


def test_effects_are_neither_merged_nor_removed():
    def f(x):
        infini.debug.print("{}", x[0, 0])
        infini.debug.print("{}", x[0, 0])
        return x * 2

    program = dead_code.eliminate_dead(cse.eliminate_common(program_of(f, X)))
    assert ops(program).count("debug_callback") == 2


def test_dead_equations_go_away():
    assert ops(dead_code.eliminate_dead(program_of(lambda x: (inp.exp(x), x)[1], X))) == []


def test_a_scan_loses_what_nobody_needs():
    def f(x, unused):
        _, (ys, _) = lax.scan(lambda c, xs: (c + xs[0], (c, inp.exp(xs[1]))), x[0], (x, unused))
        return ys

    program = check.check(dead_code.eliminate_dead(program_of(f, X, X)))
    (scan,) = [e for e in program.equations if e.op.name == "scan"]
    assert len(scan.outputs) == 2
    assert "exp" not in ops(scan.attrs["body"])


def test_operations_without_a_route_are_replaced_by_their_definition():
    program = program_of(inp.expm1, X)
    found = decompose.decompose(program, lambda e: e.op.name != "expm1", backend="test")
    assert "expm1" not in ops(check.check(found))
    inputs = inputs_for([X])
    np.testing.assert_allclose(evaluate(found, inputs)[0], np.expm1(inputs[0]), rtol=1e-5)


def test_an_operation_without_any_route_is_an_error_that_names_it():
    with pytest.raises(errors.LoweringError, match="test backend has no route for 'exp'"):
        decompose.decompose(program_of(inp.exp, X), lambda e: e.op.name != "exp", backend="test")


@pytest.mark.parametrize(
    ("f", "types", "specs"),
    [
        (lambda x, y: x.T @ y, [f32(3, 4), f32(3, 5)], ["ba,bc->ac"]),
        (lambda x, y: x @ y.T, [f32(3, 4), f32(5, 4)], None),
        (lambda x, y: (x @ y).T, [f32(3, 4), f32(4, 5)], None),
        (infini.vmap(lambda x, y: x @ y), [f32(2, 3, 4), f32(2, 4, 5)], None),
        (infini.vmap(lambda x, y: x @ y, in_axes=(0, None)), [f32(2, 3, 4), f32(4, 5)], None),
        (lambda x, y: x[None] @ y[None], [f32(3, 4), f32(4, 5)], None),
    ],
)
def test_contractions_have_letters_for_everything_and_take_transposes(f, types, specs):
    before = inline.inline_calls(program_of(f, *types))
    after = check.check(dead_code.eliminate_dead(contractions.canonical_contractions(before)))
    (dot,) = [e for e in after.equations if e.op.name == "dot"]
    a, b = dot.attrs["spec"].split("->")[0].split(",")
    assert (len(a), len(b)) == tuple(v.type.ndim for v in dot.inputs)
    assert "transpose" not in ops(after)
    inputs = inputs_for(types)
    np.testing.assert_allclose(evaluate(after, inputs)[0], evaluate(before, inputs)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "axes", "count"),
    [((3, 4, 5), (0, 2), 2), ((1 << 16,), (0,), 2), ((64, 1024), (0, 1), 2), ((8, 8), (0, 1), 1)],
)
def test_long_and_scattered_reductions_take_stages(shape, axes, count):
    program = program_of(lambda x: lax.reduce_sum(x, axes), f32(*shape))
    found = check.check(dead_code.eliminate_dead(reductions.canonical_reductions(program)))
    assert ops(found).count("reduce_sum") == count
    inputs = inputs_for([f32(*shape)])
    np.testing.assert_allclose(
        evaluate(found, inputs)[0], inputs[0].astype(np.float64).sum(axis=axes), rtol=1e-4, atol=1e-2
    )


def test_stages_of_16_bit_sums_stay_in_float32():
    program = program_of(lambda x: x.sum(), f32(1 << 16).update(dtype=dtypes.bfloat16))
    found = reductions.canonical_reductions(program)
    assert {e.inputs[0].type.dtype for e in found.equations if e.op.name == "reduce_sum"} == {
        np.dtype("float32")
    }


def test_every_pass_of_a_gradient_is_well_formed_and_equal():
    def loss(w, x):
        h = inp.tanh(x @ w)
        return (h * h).sum() + lax.scan(lambda c, r: (c * 0.5 + r.sum(), c), 0.0, h)[0]

    before = program_of(infini.value_and_grad(loss), f32(4, 5), f32(3, 4))
    inputs = inputs_for(before.in_types)
    expected = evaluate(before, inputs)
    for name, program in pipeline.trace_passes(before):
        for a, b in zip(evaluate(check.check(program), inputs), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_rule_says_why():
    tables = (simplify.RULES, contractions.RULES, reductions.RULES, one_hot.RULES)
    assert all(rule.why and primitive.by_name(rule.op) for table in tables for rule in table)


@pytest.mark.parametrize("mode", ["fill", "clip", "promise_in_bounds"])
def test_one_element_per_row_becomes_comparisons(mode):
    def f(x, i):
        def pick(x):
            return inp.take_along_axis(x, i[:, None], axis=-1, mode=mode)

        return pick(x), x * 2.0, infini.grad(lambda x: pick(x).sum())(x)

    before = cse.eliminate_common(inline.inline_calls(program_of(f, f32(6, 5), i32(6))))
    after = check.check(one_hot.one_per_row(before))
    assert not {"gather", "scatter_add"} & set(ops(after))
    index = [0, 1, 4, 3, 2, 1] if mode == "promise_in_bounds" else [0, 7, 4, -9, -1, 1]
    inputs = [inputs_for([f32(6, 5)])[0], np.array(index, np.int32)]
    inputs[0][0, 0], inputs[0][2, 4] = np.nan, -0.0
    for a, b in zip(evaluate(after, inputs), evaluate(before, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_lookup_that_alone_reads_its_rows_stays_a_gather():
    program = one_hot.one_per_row(
        program_of(lambda x, i: inp.take_along_axis(x, i[:, None], axis=-1), f32(6, 5), i32(6))
    )
    assert "gather" in ops(inline.inline_calls(program))
