"""The layer of experts against the same written out, and what splitting its operands communicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.compiler import partition
from infini.core import check, errors
from infini.core.mesh import AbstractMesh
from infini.sharding import NamedSharding, P, make_mesh
from infini.train import grouped

T, D, K, E, F = 8, 6, 2, 4, 10
SHAPES = {"x": (T, D), "amounts": (T, K), "gate": (E, F, D), "up": (E, F, D), "down": (E, D, F)}


def operands(rng: np.random.Generator, **sizes: tuple[int, ...]) -> list[np.ndarray]:
    arrays = {
        name: (0.5 * rng.standard_normal(sizes.get(name, shape))).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    shape = (arrays["x"].shape[0], arrays["amounts"].shape[-1])
    chosen = rng.integers(0, arrays["gate"].shape[0], shape).astype(np.int32)
    x, amounts, *weights = arrays.values()
    return [x, chosen, amounts, *weights]


def gradients(layer: Any, given: list[np.ndarray]) -> Any:
    x, chosen, *rest = given
    return inf.jit(inf.grad(lambda x, *rest: (layer(x, chosen, *rest) ** 2).sum(), argnums=(0, 1, 2, 3, 4)))(
        x, *rest
    )


def assert_close(found: Any, wanted: Any) -> None:
    for a, b in zip(inf.tree.leaves(found), inf.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1.0, float(np.abs(np.asarray(b)).max())))


def test_it_is_the_sum_over_chosen_experts(rng) -> None:
    given = operands(rng)
    assert_close(lax.expert_layer(*given), grouped.expert_layer(*map(inf.numpy.asarray, given)))


def test_its_gradients_are_those_of_the_same_written_out(rng) -> None:
    given = operands(rng)
    assert_close(gradients(lax.expert_layer, given), gradients(grouped.expert_layer, given))


def test_numbers_of_no_expert_add_nothing(rng) -> None:
    x, chosen, amounts, *weights = operands(rng)
    is_known = np.arange(T * K).reshape(T, K) % 3 != 0
    unknown = np.where(np.arange(T * K).reshape(T, K) % 2, -1, E).astype(np.int32)
    some = np.where(is_known, chosen, unknown)
    found = lax.expert_layer(x, some, amounts, *weights)
    assert_close(found, lax.expert_layer(x, chosen, amounts * is_known, *weights))


def test_tangents_are_those_of_the_same_written_out(rng) -> None:
    x, chosen, *rest = operands(rng)
    pairs = (
        inf.jvp(lambda *a, f=f: f(a[0], chosen, *a[1:]), (x, *rest), (x, *rest))
        for f in (lax.expert_layer, grouped.expert_layer)
    )
    assert_close(*pairs)


def test_batches_of_tokens_and_of_weights(rng) -> None:
    x, chosen, amounts, *weights = operands(rng)
    many = np.stack([x, 2 * x]), np.stack([chosen, chosen[::-1]])
    found = inf.vmap(lax.expert_layer, (0, 0, None, None, None, None))(*many, amounts, *weights)
    assert_close(found, np.stack([lax.expert_layer(a, c, amounts, *weights) for a, c in zip(*many)]))  # noqa: B905
    gates = np.stack([weights[0], -weights[0]])
    found = inf.vmap(lambda gate: lax.expert_layer(x, chosen, amounts, gate, *weights[1:]))(gates)
    assert_close(found, np.stack([lax.expert_layer(x, chosen, amounts, g, *weights[1:]) for g in gates]))


def test_gradients_of_each_of_a_batch(rng) -> None:
    given = operands(rng)
    many = np.stack([given[0], 2 * given[0]])
    found = inf.vmap(lambda x: gradients(lax.expert_layer, [x, *given[1:]]))(many)
    for i, x in enumerate(many):
        one = gradients(lax.expert_layer, [x, *given[1:]])
        assert_close([leaf[i] for leaf in found], list(one))


def test_a_part_of_the_experts_loops_over_its_own_rows(rng) -> None:
    """So many rows that they are cut into blocks, most of which belong to experts elsewhere."""
    given = operands(rng, x=(700, D), amounts=(700, K), gate=(8, F, D), up=(8, F, D), down=(8, D, F))
    with inf.config(cpu_devices=4):
        mesh = make_mesh((4,), ("a",))
        specs = [P(), P(), P(), P("a"), P("a"), P("a")]
        placed = [inf.device_put(x, NamedSharding(mesh, s)) for x, s in zip(given, specs, strict=True)]
        assert_close(inf.jit(lax.expert_layer)(*placed), lax.expert_layer(*given))
        run = inf.jit(lambda *a: gradients(lax.expert_layer, list(a)))
        assert_close(run(*placed), gradients(lax.expert_layer, given))


def test_dtypes_that_differ_are_named(rng) -> None:
    x, *rest = operands(rng)
    with pytest.raises(errors.TypeMismatchError, match="tokens, amounts and weights are floats of one dtype"):
        lax.expert_layer(x.astype(np.float64).astype(np.float16), *rest)
    with pytest.raises(errors.TypeMismatchError, match="expert_layer"):
        lax.expert_layer(x, rest[0].astype(np.float32), *rest[1:])


# --- over devices -------------------------------------------------------------------------------------

WHOLE = P()
TOKENS = [P("a"), P("a"), P("a"), WHOLE, WHOLE, WHOLE]
EXPERTS = [WHOLE, WHOLE, WHOLE, P("a"), P("a"), P("a")]
WIDTH = [WHOLE, WHOLE, WHOLE, P(None, "a"), P(None, "a"), P(None, None, "a")]
BOTH = [P("b"), P("b"), P("b"), P("a"), P("a"), P("a")]


@pytest.mark.parametrize(
    ("specs", "sizes", "forwards", "backwards"),
    [
        (TOKENS, (4,), {}, {"psum": 3}),
        (EXPERTS, (4,), {"psum": 1}, {"psum": 2}),
        (WIDTH, (2,), {"psum": 1}, {"psum": 2}),
        (BOTH, (2, 2), {"psum": 1}, {"psum": 5}),
    ],
    ids=["tokens", "experts", "width", "both"],
)
def test_splits_and_what_they_send(
    rng, specs: list[P], sizes: tuple[int, ...], forwards: dict[str, int], backwards: dict[str, int]
) -> None:
    given = operands(rng)
    abstract = AbstractMesh(("a", "b")[: len(sizes)], sizes)

    def back(x: Any, chosen: Any, amounts: Any, *weights: Any) -> Any:
        _, pull = inf.vjp(lambda x, a, *w: lax.expert_layer(x, chosen, a, *w), x, amounts, *weights)
        return pull(x)

    with inf.config(device="reference", cpu_devices=4):
        mesh = make_mesh(sizes, abstract.axis_names)
        placed = [inf.device_put(v, NamedSharding(mesh, s)) for v, s in zip(given, specs, strict=True)]
        for f, counts in ((lax.expert_layer, forwards), (back, backwards)):
            found = partition.partition(inf.make_jaxpr(f)(*given), abstract, [tuple(s) for s in specs])
            check.check(found.program)
            names = [c.name for c in found.collectives]
            assert {name: names.count(name) for name in names} == counts
            assert_close(inf.jit(f)(*placed), inf.jit(f)(*given))


def test_tokens_stay_split_by_the_axes_that_split_no_experts(rng) -> None:
    given = operands(rng, gate=(E, 64, D), up=(E, 64, D), down=(E, D, 64))
    rows = P(("b", "a"))
    specs = [rows, rows, rows, P("a"), P("a"), P("a")]
    found = partition.partition(
        inf.make_jaxpr(lax.expert_layer)(*given), AbstractMesh(("a", "b"), (2, 2)), [tuple(s) for s in specs]
    )
    assert {c.axes for c in found.collectives if c.name == "all_gather"} == {("a",)}
