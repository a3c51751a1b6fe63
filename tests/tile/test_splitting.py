"""Kernels over meshes: which dimensions of the grid are split, what is gathered, and equal results."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import testing, tile
from infini.compiler import partition
from infini.core import check
from infini.core.mesh import AbstractMesh
from infini.sharding import NamedSharding, P, make_mesh
from infini.tile import Tensor
from tests.tile import kernels, scatter_kernels
from tests.tile.example_kernels import module

MESH = AbstractMesh(("x", "y"), (2, 2))


def split(function: Any, arrays: Any, *specs: P) -> tuple[partition.Partitioned, dict[str, int]]:
    """The program of one device, and how many collectives of each kind it has."""
    program = inf.make_jaxpr(function)(*arrays)
    found = partition.partition(program, MESH, [tuple(s) for s in specs])
    check.check(found.program)
    return found, dict(Counter(c.name for c in found.collectives))


def zeros(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.zeros(shape, np.float32) for shape in shapes]


def test_rows_are_split() -> None:
    found, collectives = split(kernels.softmax, zeros((8, 37)), P("x"))
    assert found.out_specs == (("x",),) and not collectives
    assert found.program.equations[-1].attrs["kernel"].grid == (4,)


def test_columns_that_a_program_needs_whole_are_gathered() -> None:
    _, collectives = split(kernels.softmax, zeros((8, 37 * 2)), P(None, "x"))
    assert collectives == {"all_gather": 1}


def test_both_sides_of_a_product_are_split() -> None:
    function = kernels.matmul.configure(BM=16, BN=16, BK=16)
    found, collectives = split(function, zeros((64, 50), (50, 32)), P("x"), P(None, "y"))
    assert found.out_specs == (("x", "y"),) and not collectives
    assert found.program.equations[-1].attrs["kernel"].grid == (2, 1)


def test_the_inner_dimension_of_a_product_is_gathered() -> None:
    function = kernels.matmul.configure(BM=16, BN=16, BK=16)
    _, collectives = split(function, zeros((64, 64), (64, 32)), P(None, "x"), P("x"))
    assert collectives == {"all_gather": 2}


def test_tiles_that_overrun_are_not_split() -> None:
    function = kernels.matmul.configure(BM=16, BN=16, BK=16)
    found, collectives = split(function, zeros((60, 64), (64, 32)), P("x"), P())
    assert collectives == {"all_gather": 1} and found.out_specs == ((),)


def test_a_batch_is_split() -> None:
    rows = inf.vmap(kernels.rms_norm_by_definition, in_axes=(0, None))
    found, collectives = split(rows, zeros((4, 3, 20), (20,)), P("x"), P())
    assert found.out_specs == (("x",),) and not collectives


def test_neighbours_that_overlap_are_gathered() -> None:
    x = Tensor(1)
    pairs = tile.kernel(
        lambda x, y: (x.tile((2,), strides=(1,)), y.tile((1,))), tensors=(x, Tensor(shape=(x.shape[0] - 1,)))
    )(lambda x: x.sum(keepdims=True))
    _, collectives = split(pairs, zeros((64,)), P("x"))
    assert collectives == {"all_gather": 1}


def test_a_flattened_grid_is_split_along_its_leading_part() -> None:
    x = Tensor(3)
    rows = tile.kernel(
        lambda x, y: [t.tile((1, 1, -1)).flatten(0, 2).squeeze(1).squeeze((0, 1), level=1) for t in (x, y)],
        tensors=(x, Tensor(shape=x.shape)),
    )(lambda row: row / row.sum())
    found, collectives = split(rows, zeros((4, 6, 5)), P("x", "y"))
    assert found.out_specs == (("x", "y"),) and not collectives
    found, collectives = split(rows, zeros((4, 6, 5)), P(("x", "y")))
    assert found.out_specs == ((("x", "y"),),) and not collectives


# Per example: shapes, how operands are split, block sizes, and how the result is split; no collectives.
_X, _XY = P("x"), P("x", "y")
EXAMPLES: dict[str, tuple[list[tuple[int, ...]], list[P], dict[str, int], P]] = {
    "add": ([(1024,), (1024,)], [_X, _X], {"BLOCK": 256}, _X),
    "silu": ([(1024,)], [P(("x", "y"))], {"BLOCK": 256}, P(("x", "y"))),
    "swiglu": ([(1024,), (1024,)], [_X, _X], {"BLOCK": 256}, _X),
    "softmax": ([(8, 37)], [P(("x", "y"))], {}, P(("x", "y"))),
    "rms_norm": ([(8, 37), ()], [_X, P()], {}, _X),
    "fused_rms_norm": ([(8, 37), (37,), ()], [_X, P(), P()], {}, _X),
    "mm": ([(64, 50), (50, 32)], [_X, P(None, "y")], {"BM": 16, "BN": 16, "BK": 16}, _XY),
    "addmm": (
        [(64, 32), (64, 50), (50, 32), (), ()], [_XY, _X, P(None, "y"), P(), P()],
        {"BM": 16, "BN": 16, "BK": 16}, _XY,
    ),
    "bmm": ([(4, 32, 50), (4, 50, 37)], [P("x", "y"), P("x")], {"BM": 16}, _XY),
    "conv2d": ([(4, 20, 5, 21), (32, 20, 2, 3)], [_X, P("y")], {"BK": 16}, _XY),
    "max_pool2d": ([(4, 6, 7, 65)], [_XY], {}, _XY),
    "rotary_position_embedding": (
        [(4, 6, 2, 24), (6, 12), (6, 12)], [P("x", "y"), P("y"), P("y")], {}, _XY,
    ),
    "scaled_dot_product_attention": ([(4, 2, 37, 20)] * 3, [_XY, _XY, _XY], {}, _XY),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_split_without_collectives(name: str) -> None:
    shapes, specs, chosen, wanted = EXAMPLES[name]
    kernel = getattr(module(name), name).configure(**chosen)
    found, collectives = split(kernel, zeros(*shapes), *specs)
    assert found.out_specs == (tuple(wanted),) and not collectives


@pytest.fixture
def four_devices() -> Any:
    """Simulated devices of the CPU."""
    with inf.config(cpu_devices=4):
        yield


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("x", "y"), P()], ids=str)
def test_results_are_those_of_one_device(spec: P, rng: Any) -> None:
    mesh = make_mesh((2, 2), ("x", "y"))
    x = rng.standard_normal((8, 38)).astype(np.float32)
    placed = inf.device_put(x, NamedSharding(mesh, spec))
    testing.assert_close(inf.jit(kernels.softmax)(placed), kernels.softmax(x), "exact")


@pytest.mark.usefixtures("four_devices")
def test_programs_keep_their_numbers(rng: Any) -> None:
    x = Tensor(1)

    @tile.kernel(lambda *ts: [t.tile((4,)) for t in ts], tensors=(x, Tensor(shape=x.shape)))
    def numbered(x: Any) -> Any:
        return x * 100 + tile.program_id(0) + tile.offsets(x, 0) / 1000

    values = rng.standard_normal(32).astype(np.float32)
    placed = inf.device_put(values, NamedSharding(make_mesh((4,), ("x",)), P("x")))
    found = inf.jit(numbered)(placed)
    assert found.sharding.spec == P("x")
    testing.assert_close(found, numbered(values), "exact")


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("name", EXAMPLES)
def test_results_of_examples_are_those_of_one_device(name: str, rng: Any) -> None:
    shapes, specs, chosen, _ = EXAMPLES[name]
    mesh = make_mesh((2, 2), ("x", "y"))
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    arrays = [abs(x) if x.ndim == 0 else x for x in map(np.asarray, arrays)]
    placed = [inf.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]
    kernel = inf.jit(getattr(module(name), name).configure(**chosen))
    testing.assert_close(kernel(*placed), kernel(*arrays), "exact")


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P()], ids=str)
def test_results_written_by_number_are_those_of_one_device(spec: P, rng: Any) -> None:
    table, numbers, rows = scatter_kernels.draw(rng, 8, 64, 4, np.dtype(np.float32))
    placed = inf.device_put(rows, NamedSharding(make_mesh((4,), ("x",)), spec))
    found = inf.jit(scatter_kernels.add)(table, numbers, placed)
    np.testing.assert_array_equal(found, scatter_kernels.wanted(np.add, table, numbers, rows))


@pytest.mark.usefixtures("four_devices")
def test_causal_attention_by_batch_and_head(rng: Any) -> None:
    attention = module("scaled_dot_product_attention").scaled_dot_product_attention
    arrays = [rng.standard_normal((2, 4, 33, 16)).astype(np.float32) for _ in range(3)]
    sharding = NamedSharding(make_mesh((2, 2), ("x", "y")), P("x", "y"))
    causal = inf.jit(lambda *xs: attention(*xs, is_causal=True))
    found = causal(*(inf.device_put(x, sharding) for x in arrays))
    testing.assert_close(found, causal(*arrays), "exact")


@pytest.mark.usefixtures("four_devices")
def test_a_gradient_over_a_mesh_is_that_of_one_device(rng: Any) -> None:
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((8, 20), (20,)))
    for kernel in (kernels.rms_norm, kernels.rms_norm_by_definition):
        gradient = inf.jit(inf.grad(lambda x, w, f=kernel: (f(x, w) ** 2).sum(), argnums=(0, 1)))
        mesh = make_mesh((4,), ("x",))
        found = gradient(inf.device_put(x, NamedSharding(mesh, P("x"))), w)
        for a, b in zip(found, gradient(x, w), strict=True):
            testing.assert_close(a, b, "program")
