"""Attention of a split sequence: every form computes what one device does, and sends what the literature
says.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, nn, parallel
from infini.backends.spmd import schedule
from infini.core import errors
from infini.core.machine import Collectives, Link, Machine
from infini.sharding import P, make_mesh
from infini.testing import count_collectives, predicted

FORMS = ("gather", "ring", "all_to_all")
B, T, D = 2, 16, 4


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operands(heads: int = 8, key_heads: int = 8, keys: int = T) -> tuple[np.ndarray, ...]:
    return (
        numbers(B, T, heads, D),
        numbers(B, keys, key_heads, D, seed=1),
        numbers(B, keys, key_heads, D, seed=2),
    )


BIAS = numbers(8, T, T, seed=3)
NEAR = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) < 5
MASK = (np.random.default_rng(4).random((B, 1, T, T)) < 0.7) | np.eye(T, dtype=bool)
LONE = MASK & (np.arange(T) != 3)[:, None]  # row 3 looks at nothing
# Names of options: operands beside queries, keys and values, and options of `dot_product_attention`.
OPTIONS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "window behind": ({}, {"is_causal": True, "local_window_size": (3, 0)}),
    "window around": ({}, {"local_window_size": (2, 1)}),
    "bias": ({"bias": BIAS}, {"is_causal": True}),
    "bias that hides": ({"bias": np.where(NEAR, 0, -np.inf).astype(np.float32)}, {}),
    "mask": ({"mask": MASK}, {}),
    "mask of a row without keys": ({"mask": LONE}, {"is_causal": True}),
    "lengths": ({"key_value_seq_lengths": np.array([5, 16], np.int32)}, {"is_causal": True}),
}


def attention(name: str) -> Any:
    extras, options = OPTIONS[name]

    def f(q: Any, k: Any, v: Any) -> Any:
        return nn.dot_product_attention(q, k, v, **extras, **options)

    return f


def with_gradients(f: Any) -> Any:
    """Results, and gradients for queries, keys and values."""

    def run(*args: Any) -> Any:
        value, back = inf.vjp(f, *args)
        return value, *back(inp.cos(value))

    return run


def sharded(f: Any, form: str, count: int, **options: Any) -> Any:
    mesh = make_mesh((count,), ("cp",))
    return inf.shard(
        f,
        mesh=mesh,
        in_specs=P(None, "cp"),
        out_specs=P(None, "cp"),
        strategies={"attention": form},
        **options,
    )


def assert_equal(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_results_and_gradients_are_those_of_one_device(form: str, name: str, count: int) -> None:
    f, args = with_gradients(attention(name)), operands()
    with inf.config(device="reference", cpu_devices=8, check=1):
        assert_equal(sharded(f, form, count)(*args), inf.jit(f)(*args))


@pytest.mark.parametrize("name", ["causal", "window around", "bias", "mask"])
@pytest.mark.parametrize("form", FORMS)
def test_kernels_compute_the_same(form: str, name: str) -> None:
    """Blocks of eight queries and keys, for which the compiler has kernels."""
    f, args = with_gradients(attention(name)), operands()
    with inf.config(cpu_devices=2):
        assert_equal(sharded(f, form, 2)(*args), inf.jit(f)(*args))


@pytest.mark.parametrize(("key_heads", "count"), [(4, 4), (2, 2), (2, 8), (1, 4)])
@pytest.mark.parametrize("form", FORMS)
def test_queries_that_share_keys(form: str, key_heads: int, count: int) -> None:
    f, args = with_gradients(attention("causal")), operands(8, key_heads)
    with inf.config(device="reference", cpu_devices=8, check=1):
        assert_equal(sharded(f, form, count)(*args), inf.jit(f)(*args))


@pytest.mark.parametrize("form", FORMS)
def test_narrow_floats_are_carried_wide(form: str) -> None:
    f, args = with_gradients(attention("causal")), operands()
    with inf.config(device="reference", cpu_devices=8, check=1):
        narrow = [inp.asarray(x).astype("bfloat16") for x in args]
        wanted = inf.jit(f)(*(x.astype("float32") for x in narrow))
        for a, b in zip(sharded(f, form, 8)(*narrow), wanted, strict=True):
            assert a.dtype == "bfloat16"
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("form", ["ring", "all_to_all"])
def test_more_keys_than_queries(form: str) -> None:
    f, args = with_gradients(attention("plain")), operands(keys=24)
    with inf.config(device="reference", cpu_devices=8, check=1):
        assert_equal(sharded(f, form, 4)(*args), inf.jit(f)(*args))


@pytest.mark.parametrize("form", FORMS)
def test_heads_and_sequence_over_two_axes(form: str) -> None:
    f, args = with_gradients(attention("window behind")), operands(8, 4)
    with inf.config(device="reference", cpu_devices=8, check=1):
        mesh = make_mesh((4, 2), ("cp", "tp"))
        spec = P(None, "cp", "tp")
        run = inf.shard(f, mesh=mesh, in_specs=spec, out_specs=spec, strategies={"attention": form})
        assert_equal(run(*args), inf.jit(f)(*args))


@pytest.mark.parametrize("form", FORMS)
def test_vmapped_queries_of_the_same_keys(form: str) -> None:
    f = with_gradients(inf.vmap(attention("window behind"), in_axes=(0, None, None)))
    query, *keys = operands()
    args = np.stack([query, -query]), *keys
    with inf.config(device="reference", cpu_devices=8, check=1):
        mesh = make_mesh((N,), ("cp",))
        specs = P(None, None, "cp"), P(None, "cp"), P(None, "cp")
        run = inf.shard(f, mesh=mesh, in_specs=specs, strategies={"attention": form})
        assert_equal(run(*args), inf.jit(f)(*args))


@pytest.mark.parametrize("form", FORMS)
def test_a_sequence_over_two_axes_at_once(form: str) -> None:
    f, args = with_gradients(attention("causal")), operands()
    with inf.config(device="reference", cpu_devices=8, check=1):
        mesh = make_mesh((2, 4), ("a", "b"))
        spec = P(None, ("a", "b"))
        run = inf.shard(f, mesh=mesh, in_specs=spec, out_specs=spec, strategies={"attention": form})
        assert_equal(run(*args), inf.jit(f)(*args))


# --- what is sent ---------------------------------------------------------------------------------

N = 4
KEYS = 4 * B * (T // N) * 8 * D  # bytes of the keys of one device
ROWS = 4 * B * (T // N) * 8


def explained(f: Any, form: str | None, args: Any, count: int = N, **options: Any) -> Any:
    mesh = make_mesh((count,), ("cp",))
    asked = {} if form is None else {"attention": form}
    run = inf.shard(
        f, mesh=mesh, in_specs=P(None, "cp"), out_specs=P(None, "cp"), strategies=asked, **options
    )
    return parallel.explain_sharding(run, *args, memory=False)


def sent(shown: Any) -> dict[str, tuple[int, int]]:
    """For each collective how many arrays it takes, and how many bytes a device gives in all."""
    arrays: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for c in shown.collectives:
        arrays[c.name] += c.num_operands
        nbytes[c.name] += c.nbytes
    return {name: (arrays[name], nbytes[name]) for name in arrays}


def test_a_ring_passes_keys_and_values_on() -> None:
    """One step less than there are devices, whether causal or not: some device needs the keys."""
    with inf.config(device="reference", cpu_devices=8):
        for name in ("plain", "causal"):
            found = sent(explained(attention(name), "ring", operands()))
            assert found == {"ppermute": (2 * (N - 1), 2 * (N - 1) * KEYS)}


def test_a_ring_backwards_passes_on_their_gradients_as_well() -> None:
    with inf.config(device="reference", cpu_devices=8):
        found = sent(explained(with_gradients(attention("causal")), "ring", operands()))
        assert found == {"ppermute": (6 * (N - 1), 6 * (N - 1) * KEYS)}


def test_keys_that_are_gathered_cost_as_much() -> None:
    with inf.config(device="reference", cpu_devices=8):
        nothing = Collectives(window_bytes=0)  # nothing is kept from the forward pass
        found = explained(with_gradients(attention("causal")), "gather", operands(), collectives=nothing)
        assert sent(found) == {"all_gather": (4, 4 * KEYS), "psum_scatter": (2, 2 * N * KEYS)}
        assert sum(c.wire_bytes for c in found.collectives) == 6 * (N - 1) * KEYS


@pytest.mark.parametrize(("name", "turns"), [("window behind", 1), ("window around", 2), ("plain", 7)])
def test_a_ring_leaves_out_what_no_device_sees(name: str, turns: int) -> None:
    """Of eight blocks of two tokens a window of three before has one before a device's own; one around it
    has one on either side.
    """
    options = {"window behind": (2, 0), "window around": (2, 1)}
    f = lambda q, k, v: nn.dot_product_attention(q, k, v, local_window_size=options.get(name))  # noqa: E731
    with inf.config(device="reference", cpu_devices=8):
        assert sent(explained(f, "ring", operands(), 8)) == {"ppermute": (2 * turns, 2 * turns * KEYS // 2)}
        both = sent(explained(with_gradients(f), "ring", operands(), 8))
        assert both == {"ppermute": (6 * turns, 6 * turns * KEYS // 2)}


def test_exchanges_are_four_forwards_and_four_backwards() -> None:
    """And one of a number per row and head backwards. Queries, keys and values stay where they were sent."""
    with inf.config(device="reference", cpu_devices=8):
        forwards = sent(explained(attention("causal"), "all_to_all", operands()))
        assert forwards == {"all_to_all": (4, 4 * KEYS)}
        both = sent(explained(with_gradients(attention("causal")), "all_to_all", operands()))
        assert both == {"all_to_all": (9, 8 * KEYS + ROWS)}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_predicted_is_counted(form: str) -> None:
    with inf.config(device="reference", cpu_devices=8):
        run, args = sharded(with_gradients(attention("causal")), form, N), operands()
        with count_collectives() as counts:
            run(*args)
        assert counts == predicted(parallel.explain_sharding(run, *args, memory=False).found)


def largest(program: Any) -> int:
    """Most elements of an array of a program, those of its bodies included."""
    own = [v.type.size for e in program.equations for v in e.outputs]
    return max([0, *own, *(largest(body) for e in program.equations for body in e.programs)])


def test_a_ring_has_the_keys_of_one_device_at_a_time() -> None:
    args = tuple(inf.ShapeDtypeStruct((1, 512, 2, 64), np.float32) for _ in range(3))
    with inf.config(device="reference", cpu_devices=8):
        gathered, ring = (
            explained(with_gradients(attention("causal")), form, args, 8).found.program
            for form in ("gather", "ring")
        )
    assert largest(gathered) == 512 * 2 * 64
    assert largest(ring) == 512 * 2 * 64 // 8


def test_keys_go_on_while_a_block_is_computed() -> None:
    """Two blocks lie on a device at once, and the backward pass sends none before it begins."""
    args = tuple(inf.ShapeDtypeStruct((1, 2048, 2, 64), np.float32) for _ in range(3))
    with inf.config(device="reference", cpu_devices=8):
        program = explained(with_gradients(attention("causal")), "ring", args).found.program
    small = schedule.Limits(first_bucket_bytes=1, bucket_bytes=1)
    steps = schedule.cut(program, limits=small).steps
    flying, most, beside = 0, 0, 0
    for step in steps:
        flying += isinstance(step, schedule.Start) - isinstance(step, schedule.Wait)
        most = max(most, flying)
        beside += isinstance(step, schedule.Piece) and flying > 0
    assert most <= 4  # keys and values, and their gradients
    assert beside >= 2 * (N - 1)


# --- which form -----------------------------------------------------------------------------------


def form_of(shown: Any) -> str:
    (found,) = {shown.form(e) for e in shown.found.source.equations if shown.form(e)}
    assert found in shown  # people read it
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_is_asked_for_is_taken(form: str) -> None:
    with inf.config(device="reference", cpu_devices=8):
        assert form_of(explained(attention("causal"), form, operands())) == f"attention by {form}, as asked"


def test_the_cheapest_form_depends_on_the_machine() -> None:
    """Exchanges send least where there are many heads of keys; a ring hides what it sends behind what it
    computes; few bytes are gathered at once.
    """
    large = tuple(inf.ShapeDtypeStruct((1, 65536, 16, 64), np.float32) for _ in range(3))
    slow = Machine(Link(1e9), flops_per_s=1e12)
    with inf.config(device="reference", cpu_devices=8):
        f = attention("plain")
        assert form_of(explained(f, None, operands(2, 1), 2)).startswith("attention by gather, the cheapest")
        assert form_of(explained(f, None, large, 8)).startswith("attention by ring")
        assert form_of(explained(f, None, large, 8, machine=Machine(Link(1e9)))).startswith(
            "attention by all_to_all"
        )
        assert form_of(explained(f, None, large, 8, machine=slow)).startswith("attention by ring")


@pytest.mark.parametrize(
    ("form", "args", "reason"),
    [
        ("all_to_all", operands(8, 2), "4 divides no dimension that queries share with keys, such as heads"),
        ("ring", operands(keys=24), "16 queries see a band of 24 keys"),
    ],
)
def test_what_a_form_cannot_do_is_gathered_and_explained(form: str, args: Any, reason: str) -> None:
    f = with_gradients(attention("causal"))
    with inf.config(device="reference", cpu_devices=8):
        assert_equal(sharded(f, form, N)(*args), inf.jit(f)(*args))
        shown = explained(f, form, args)
        assert form_of(shown).startswith(f"attention by gather, not {form}: {reason}")


def test_keys_over_other_axes_than_queries_are_gathered() -> None:
    with inf.config(device="reference", cpu_devices=8):
        mesh = make_mesh((4, 2), ("cp", "tp"))
        specs = P(None, "cp"), P(None, "tp"), P(None, "tp")
        run = inf.shard(attention("causal"), mesh=mesh, in_specs=specs, strategies={"attention": "ring"})
        shown = parallel.explain_sharding(run, *operands(), memory=False)
        assert "not ring: queries are split over cp, keys over tp, values over tp" in form_of(shown)
        assert_equal([run(*operands())], [inf.jit(attention("causal"))(*operands())])


def test_a_form_that_there_is_not_is_named() -> None:
    with (
        inf.config(device="reference", cpu_devices=8),
        pytest.raises(errors.ValueMismatchError, match=r"called 'rings'[^$]*'gather', 'all_to_all'"),
    ):
        sharded(attention("plain"), "rings", N)(*operands())


# --- attention that is written out ----------------------------------------------------------------


def written(q: Any, k: Any, v: Any) -> Any:
    """Causal attention of (B, T, H, D) with einsum, as people write it."""
    scores = inp.einsum("bthd,bshd->bhts", q, k) / 2
    scores = inp.where(inp.tril(inp.ones((q.shape[1], k.shape[1]), bool)), scores, -inp.inf)
    scores = inp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    return inp.einsum("bhts,bshd->bthd", scores / scores.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("form", FORMS)
def test_attention_that_is_written_out_is_recognised(form: str) -> None:
    f = with_gradients(written)
    with inf.config(device="reference", cpu_devices=8, check=1):
        assert_equal(sharded(f, form, N)(*operands()), inf.jit(f)(*operands()))
        assert form_of(explained(f, form, operands())) == f"attention by {form}, as asked"


def test_what_no_plan_splits_along_the_sequence_stays_written_out() -> None:
    with inf.config(device="reference", cpu_devices=8):
        mesh = make_mesh((N,), ("dp",))
        run = inf.shard(written, mesh=mesh, in_specs=P("dp"))
        args = [np.repeat(x, 2, 0) for x in operands()]
        source = parallel.explain_sharding(run, *args, memory=False).found.source
        assert not any(e.op.name.startswith("attention") for e in source.equations)


def test_a_block_that_is_computed_again_knows_its_window() -> None:
    """Its mask comes through a barrier; keys that no device sees are not sent a second time either."""
    allowed = np.tril(np.ones((T, T), bool)) & ~np.tril(np.ones((T, T), bool), -4)

    def near(q: Any, k: Any, v: Any) -> Any:
        position = inp.arange(T)
        distance = position[:, None] - position[None, :]
        scores = inp.einsum("bthd,bshd->bhts", q, k) / 2
        scores = inp.where((distance >= 0) & (distance < 4), scores, -1e30)
        scores = inp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
        return inp.einsum("bhts,bshd->bthd", scores / scores.sum(-1, keepdims=True), v)

    plain = lambda q, k, v: nn.dot_product_attention(q, k, v, mask=allowed)  # noqa: E731
    f = with_gradients(inf.checkpoint(near))
    with inf.config(device="reference", cpu_devices=8, check=1):
        assert_equal(sharded(f, "ring", N)(*operands()), inf.jit(with_gradients(plain))(*operands()))
        assert sent(explained(f, "ring", operands()))["ppermute"] == (2 + 2 + 4, (2 + 2 + 4) * KEYS)


def test_attention_in_a_scan_over_layers() -> None:
    def f(weights: Any, x: Any) -> Any:
        def layer(x: Any, weight: Any) -> Any:
            heads = (x @ weight).reshape(B, T, 8, D)
            return x + attention("causal")(heads, heads, heads).reshape(x.shape), None

        return lax.scan(layer, x, weights)[0]

    gradient = inf.grad(lambda *args: inp.sin(f(*args)).sum(), argnums=(0, 1))
    args = numbers(3, 8 * D, 8 * D) / 8, numbers(B, T, 8 * D, seed=1)
    with inf.config(device="reference", cpu_devices=8, check=1):
        for form in FORMS:
            mesh = make_mesh((N,), ("cp",))
            run = inf.shard(
                gradient, mesh=mesh, in_specs=(P(), P(None, "cp")), strategies={"attention": form}
            )
            for a, b in zip(run(*args), inf.jit(gradient)(*args), strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-4)
