"""checkpoint: what each policy keeps, what is computed again, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import checkpoint_policies as policies, lax
from infini.ad_checkpoint import checkpoint_name, print_saved_residuals, saved_residuals
from infini.core import errors, text
from tests.transforms.test_control_flow import equations

W = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
X = np.array([0.3, -0.2, 0.9], np.float32)


def network(w: Any, x: Any) -> Any:
    h = checkpoint_name(inp.sin(w @ x), "first")
    return inp.exp(w @ checkpoint_name(inp.cos(w @ h), "second")).sum()


POLICIES = {
    "everything": policies.everything_saveable,
    "nothing": policies.nothing_saveable,
    "dots": policies.dots_saveable,
    "dots without batch": policies.dots_with_no_batch_dims_saveable,
    "one name": policies.save_only_these_names("second"),
    "other names": policies.save_any_names_but_these("second"),
    "all but a name": policies.save_anything_except_these_names("second"),
    "either": policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names("first")
    ),
    "of one's own": lambda op, *types, **attrs: op.name == "exp",
}  # fmt: skip
SAVED = {
    "nothing": [],
    "dots": ["output of dot"] * 3,
    "dots without batch": ["output of dot"] * 3,
    "one name": ["named 'second'"],
    "other names": ["named 'first'"],
    "of one's own": ["output of exp"],
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_changes_no_gradient(name):
    expected = inf.grad(network, argnums=(0, 1))(W, X)
    f = inf.checkpoint(network, policy=POLICIES[name])
    for transformed in (inf.grad(f, argnums=(0, 1)), inf.jit(inf.grad(inf.jit(f), argnums=(0, 1)))):
        for a, b in zip(transformed(W, X), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAVED)
def test_a_policy_saves_what_it_says(name):
    found = saved_residuals(inf.checkpoint(network, policy=POLICIES[name]), W, X)
    assert [r.origin for r in found if "argument" not in r.origin] == SAVED[name]


def test_names_that_are_excluded_are_not_saved_while_the_rest_is():
    origins = [
        r.origin for r in saved_residuals(inf.checkpoint(network, policy=POLICIES["all but a name"]), W, X)
    ]
    assert "named 'second'" not in origins and "named 'first'" in origins


@pytest.mark.parametrize(
    ("policy", "exponentials"), [(None, 2), (policies.dots_saveable, 2), (policies.everything_saveable, 1)]
)
def test_only_what_is_not_saved_is_computed_again(policy, exponentials):
    program = inf.make_jaxpr(inf.grad(inf.checkpoint(network, policy=policy)))(W, X)
    assert len(equations(program, "exp")) == exponentials


def test_contractions_over_a_batch_are_told_apart():
    f = inf.checkpoint(lambda x: inp.sin(x @ W).sum(), policy=policies.dots_with_no_batch_dims_saveable)
    batched = inf.checkpoint(
        lambda x: inp.sin(inf.vmap(lambda a: a @ a.T)(x)).sum(),
        policy=policies.dots_with_no_batch_dims_saveable,
    )
    origins = [r.origin for r in saved_residuals(f, np.ones((2, 3), np.float32))]
    assert origins == ["output of dot"]
    origins = [r.origin for r in saved_residuals(batched, np.ones((2, 3, 3), np.float32))]
    assert "output of dot" not in origins


def test_values_saved_inside_a_scan_are_stacked():
    policy = policies.save_only_these_names("h")

    def f(w):
        step = lambda c, _: (inp.cos(checkpoint_name(inp.sin(w @ c), "h")), None)  # noqa: E731
        return lax.scan(step, X, None, length=5)[0].sum()

    (saved,) = [r for r in saved_residuals(inf.checkpoint(f, policy=policy), W) if "argument" not in r.origin]
    assert saved.type.shape == (5, 3)
    np.testing.assert_allclose(inf.grad(inf.checkpoint(f, policy=policy))(W), inf.grad(f)(W), rtol=1e-5)


def test_the_fence_can_be_left_out():
    def barriers(**options):
        program = inf.make_jaxpr(inf.grad(inf.checkpoint(network, **options)))(W, X)
        return len(equations(program, "optimization_barrier"))

    assert barriers() == 1 and barriers(prevent_cse=False) == 0


def test_programs_with_policies_print_and_parse():
    policy = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names("h"))
    program = inf.make_jaxpr(inf.checkpoint(network, policy=policy))(W, X)
    assert text.parse(repr(program)) == program


def test_equal_policies_make_equal_programs():
    def program(policy):
        return inf.make_jaxpr(inf.checkpoint(network, policy=policy))(W, X)

    assert program(policies.save_only_these_names("a", "b")) == program(
        policies.save_only_these_names("b", "a")
    )
    assert program(policies.save_only_these_names("a")) != program(policies.save_only_these_names("b"))


def test_a_policy_that_is_no_function_is_an_error():
    with pytest.raises(errors.TypeMismatchError, match="policy"):
        inf.checkpoint(network, policy="dots")


def test_residuals_are_printed_with_their_lines(capsys):
    print_saved_residuals(inf.checkpoint(network, policy=policies.save_only_these_names("first")), W, X)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("f32[3] named 'first' at test_checkpoint.py:") for line in lines)
    assert any("from the argument [0]" in line for line in lines)


def test_a_custom_vjp_inside_is_recomputed_by_its_rule():
    calls = []

    @inf.custom_vjp
    def f(x):
        return inp.sin(x)

    def forward(x):
        calls.append(1)
        return inp.sin(x), x

    f.defvjp(forward, lambda x, ct: (10 * ct * inp.cos(x),))
    assert float(inf.grad(inf.checkpoint(lambda x: f(f(x))))(0.0)) == 100.0
    assert len(calls) == 2
