"""jit: keys and why they miss, stages, inlining, devices, scopes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, stages
from infini.core import errors, ir, text
from infini.sharding import P, make_mesh
from tests.transforms.test_control_flow import equations

X = np.array([0.5, -1.0, 2.0], np.float32)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda f: f({"w": X[:2]}, X), "params['w'] is f32[2] instead of f32[3]"),
        (lambda f: f({"w": X}, 1.0), "x is weak f32[] instead of f32[3]"),
        (lambda f: f({"w": X}, X, mode="b"), "static argument mode: 'b' instead of 'a'"),
        (lambda f: f({"w": X}, X, mode="a", y=X), "structure of the arguments"),
        (lambda f: f({"v": X}, X), "structure of the arguments"),
    ],
)
def test_a_miss_is_explained_by_the_argument_that_differs(call, expected):
    f = inf.jit(lambda params, x, mode="a", y=None: x * 2, static_argnames="mode")
    f({"w": X}, X, mode="a")
    call(f)
    assert any(expected in line for line in inf.debug.explain_cache(f)), inf.debug.explain_cache(f)


def test_equal_static_arguments_of_other_types_are_told_apart():
    f = inf.jit(lambda x, k: x * k, static_argnums=1)
    assert f(np.arange(3), 2).dtype == "int32" and f(np.arange(3), 2.0).dtype == "float32"
    assert "types of static arguments" in inf.debug.explain_cache(f)[0]


def test_hits_explain_nothing():
    f = inf.jit(lambda x: x)
    f(X), f(2 * X)
    assert inf.debug.explain_cache(f) == [] and f.num_traces == 1
    with pytest.raises(TypeError, match="jitted"):
        inf.debug.explain_cache(abs)


def test_stages_know_arguments_and_results():
    f = inf.jit(lambda x, y: {"o": x @ y["a"], "d": x * 2}, donate_argnums=0)
    traced = f.trace(X, {"a": X})
    assert isinstance(traced, stages.Traced) and isinstance(traced.jaxpr, ir.Program)
    assert traced.fun_name == "<lambda>" and traced.out_info["o"].shape == ()
    lowered = traced.lower()
    assert isinstance(lowered, stages.Lowered) and "dot" in lowered.as_text()
    assert lowered.args_info[0][0].donated and not lowered.args_info[0][1]["a"].donated
    assert lowered.donate_argnums == (0,)
    compiled = lowered.compile()
    assert isinstance(compiled, stages.Compiled) and compiled.in_tree == traced.in_tree
    assert compiled.cost_analysis()["flops"] > 0
    assert compiled.memory_analysis().argument_size_in_bytes == 24


def test_a_compiled_function_cannot_be_transformed():
    compiled = inf.jit(inp.sin).lower(1.0).compile()
    with pytest.raises(TypeError, match="transform the jitted function"):
        inf.vmap(compiled)(X)


def test_inline_leaves_no_call():
    def names(**options):
        inner = inf.jit(lambda x: inp.sin(x) * 2, **options)
        return [e.op.name for e in inf.make_jaxpr(lambda x: inner(x) + 1)(1.0).equations]

    assert "call" in names() and "call" not in names(inline=True)


def test_options_of_another_compiler_are_refused():
    with pytest.raises(errors.ValueMismatchError, match="xla_dump"):
        inf.jit(inp.sin, compiler_options={"xla_dump": True})


def test_a_backend_is_chosen_by_name():
    assert inf.jit(lambda x: x * 2, backend="reference")(X).devices() == {inf.devices("reference")[0]}
    with pytest.raises(errors.ValueMismatchError):
        inf.jit(inp.sin, device=inf.devices()[0], backend="cpu")


def test_donated_arrays_are_deleted_by_device_put():
    x = inp.ones(3)
    moved = inf.device_put({"x": x}, inf.devices("reference")[0], donate=True)
    assert x.is_deleted() and moved["x"].shape == (3,)
    kept = inp.ones(3)
    inf.device_put(kept, donate=True)
    assert not kept.is_deleted()


def test_scopes_are_shown_in_programs_and_errors():
    @inf.named_scope("layer")
    def f(x):
        with inf.named_scope("attention"):
            y = inp.sin(x)
        return inf.named_call(inp.exp, name="soft")(y)

    program = inf.make_jaxpr(inf.grad(f))(1.0)
    shown = {e.op.name: e.where.scope for e in program.equations if e.where}
    assert shown["sin"] == shown["cos"] == "layer/attention" and shown["exp"] == "layer/soft"
    assert "(layer/attention)" in repr(program) and text.parse(repr(program)) == program
    with pytest.raises(TypeError, match=r"\(block\)"), inf.named_scope("block"):
        inp.ones(3) @ inp.ones(4)


def test_constants_are_computed_while_tracing():
    @inf.jit
    def f(x):
        with inf.ensure_compile_time_eval():
            count = int(inp.asarray([1, 2]).sum())
        return x * count

    assert float(f(2.0)) == 6.0
    assert [e.op.name for e in inf.make_jaxpr(f)(2.0).equations] == ["mul"]


def test_a_mapped_axis_is_split_over_the_mesh_it_names():
    mesh = make_mesh((1, 1), ("data", "model"))
    sharding = inf.sharding.NamedSharding(mesh, P("model"))

    def f(x):
        return lax.with_sharding_constraint(x, sharding)

    program = inf.make_jaxpr(inf.vmap(f, spmd_axis_name="data"))(np.ones((2, 3), np.float32))
    (constraint,) = equations(program, "sharding_constraint")
    assert constraint.attrs["spec"] == ("data", "model")


def test_collectives_inside_nested_calls_see_the_mapped_axis():
    f = inf.jit(
        lambda x: lax.scan(
            lambda c, _: (c + lax.axis_index("i") + lax.psum(x, "i"), None), x, None, length=2
        )[0]
    )
    found = inf.vmap(f, axis_name="i")(X)
    np.testing.assert_allclose(found, X + 2 * (np.arange(3) + X.sum()), rtol=1e-6)
    # Nothing that goes in is mapped, and the result still is.
    np.testing.assert_array_equal(
        inf.vmap(lambda _: inf.jit(lambda: lax.axis_index("i"))(), axis_name="i")(X), [0, 1, 2]
    )


def test_the_knob_prints_why_a_function_is_traced_again():
    source = "import infini as i, infini.numpy as n; f = i.jit(lambda x: x * 2); f(n.ones(3)); f(n.ones(4))"
    environment = {**os.environ, "INFINI_EXPLAIN": "1"}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert "traced again because of other types: x is f32[4] instead of f32[3]" in done.stderr
