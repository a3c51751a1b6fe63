"""Design 4a.11, the quantized part: a quantized array is a pytree of bytes and scales; its product has
derivatives by the activations only; it is split over devices between groups, never inside one.
"""

from collections import Counter

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, quantization
from infini.compiler import partition
from infini.core import check
from infini.core.mesh import AbstractMesh
from infini.quantization import QuantizedArray
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import assert_close, check_grads

N, K = 8, 128  # 4 groups of 32


def matrix(scheme="Q4_0", shape=(N, K)):
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return quantization.quantize(values, scheme)


def activations(*shape):
    # Small, so that products of a row are near 1 and rounding is not multiplied.
    return (np.random.default_rng(2).standard_normal(shape) / np.sqrt(K)).astype(np.float32)


# --- a pytree ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Q4_0", "Q5_1", quantization.int4(32, zero_point=True)], ids=str)
def test_leaves_are_bytes_and_scales_and_the_scheme_is_structure(scheme):
    w = matrix(scheme)
    leaves, structure = inf.tree.flatten(w)
    assert leaves[0].dtype == np.uint8
    assert {leaf.dtype for leaf in leaves} <= {np.dtype(d) for d in ("uint8", "float16", "float32")}
    assert inf.tree.unflatten(structure, leaves).scheme == w.scheme
    assert structure != inf.tree.structure(matrix("Q8_0"))


def test_two_schemes_are_two_programs():
    traces = []

    @inf.jit
    def f(x, w):
        traces.append(w.scheme)
        return lax.quantized_matmul(x, w)

    for scheme in ("Q8_0", "Q4_0", "Q8_0"):
        f(activations(2, K), matrix(scheme))
    assert list(map(str, traces)) == ["Q8_0", "Q4_0"]


# --- derivatives ------------------------------------------------------------------------------


@pytest.mark.parametrize("transpose", [True, False])
def test_derivatives_by_the_activations_have_every_mode_and_order(transpose):
    w = matrix("Q5_1")
    x = activations(3, K if transpose else N)

    def f(x):
        return inp.tanh(lax.quantized_matmul(x, w, transpose=transpose) / 8)

    dense = w.dequantize().T if transpose else w.dequantize()
    with inf.config(host64="keep"):
        check_grads(f, (x.astype(np.float64),), order=2)
    expected = inf.grad(lambda x: inp.tanh(x @ dense / 8).sum())(x)
    assert_close(inf.jit(inf.grad(lambda x: f(x).sum()))(x), expected, "program")


def test_the_derivative_is_the_same_operation_the_other_way():
    program = inf.make_jaxpr(inf.grad(lambda x, w: lax.quantized_matmul(x, w).sum()))(
        activations(2, K), matrix()
    )
    found = [e.attrs["transpose"] for e in program.equations if e.op.name == "quantized_matmul"]
    assert found[-1] is False


def test_a_gradient_by_the_matrix_is_refused_as_of_integers():
    with pytest.raises(TypeError, match="grad requires real- or complex-valued inputs"):
        inf.grad(lambda w: lax.quantized_matmul(activations(2, K), w).sum())(matrix())


def test_a_derivative_by_the_scales_is_refused():
    w = matrix()
    with pytest.raises(NotImplementedError, match="by its activations only"):
        inf.vjp(lambda w: lax.quantized_matmul(activations(2, K), w), w)
    with pytest.raises(NotImplementedError, match="by its activations only"):
        inf.jvp(
            lambda s: lax.quantized_matmul(activations(2, K), QuantizedArray(w.blocks, s, scheme=w.scheme)),
            (w.scales,),
            (w.scales,),
        )


def test_a_stopped_matrix_has_zero_cotangents():
    x, w = activations(2, K), matrix()
    _, pull = inf.vjp(lambda x, w: lax.quantized_matmul(x, lax.stop_gradient(w)), x, w)
    dx, dw = pull(inp.ones((2, N)))
    assert_close(dx, np.ones((2, N), np.float32) @ w.dequantize(), "contraction")
    assert dw.blocks.dtype == inf.float0
    assert not np.any(np.asarray(dw.scales))


def test_adapters_around_a_quantized_matrix_train_under_jit():
    x, w = activations(6, K), matrix("Q8_0")
    target = activations(6, N)
    lora = {"a": activations(4, K) * 0.05, "b": np.zeros((N, 4), np.float32)}

    def loss(lora, x, w):
        y = lax.quantized_matmul(x, w) + (x @ lora["a"].T) @ lora["b"].T
        return ((lax.quantized_matmul(inp.tanh(y), w, transpose=False).mean() + y - target) ** 2).mean()

    def dense_loss(lora, x, w):
        y = x @ w.T + (x @ lora["a"].T) @ lora["b"].T
        return (((inp.tanh(y) @ w).mean() + y - target) ** 2).mean()

    found = inf.jit(inf.grad(loss))(lora, x, w)
    expected = inf.grad(dense_loss)(lora, x, w.dequantize())
    inf.tree.map(lambda a, b: assert_close(a, b, "program"), found, expected)


# --- placement --------------------------------------------------------------------------------


def collectives(spec_x, spec_w, *, transpose=True, devices=4, w=None, form="exact"):
    mesh = AbstractMesh(("model",), (devices,))
    w = matrix() if w is None else w
    program = inf.make_jaxpr(lambda x, w: lax.quantized_matmul(x, w, transpose=transpose, activations=form))(
        activations(16, w.shape[-1 if transpose else -2]), w
    )
    given = [spec_x, *[spec_w] * len(w.planes)]
    found = partition.partition(program, mesh, [tuple(s) for s in given])
    check.check(found.program)
    (equation,) = [e for e in found.program.equations if e.op.name == "quantized_matmul"]
    return dict(Counter(c.name for c in found.collectives)), equation


def test_rows_are_split_without_a_collective():
    found, equation = collectives(P(), P("model"))
    assert found == {}
    assert equation.output.type.shape == (16, N // 4)


def test_groups_are_split_and_leave_a_sum():
    found, equation = collectives(P(None, "model"), P(None, "model"))
    assert found == {"psum": 1}
    assert equation.inputs[1].type.shape == (N, 1, 16)


def test_rows_of_a_matrix_that_is_not_transposed_leave_a_sum():
    found, equation = collectives(P(None, "model"), P("model"), transpose=False)
    assert found == {"psum": 1}
    assert equation.output.type.shape == (16, K)


def test_groups_of_a_matrix_that_is_not_transposed_split_the_result():
    found, equation = collectives(P(), P(None, "model"), transpose=False)
    assert found == {}
    assert equation.output.type.shape == (16, K // 4)


def test_a_group_is_never_cut():
    """Eight devices do not share four groups: activations that are split so are gathered first."""
    found, equation = collectives(P(None, "model"), P(), devices=8)
    assert found == {"all_gather": 1}
    assert equation.inputs[1].type.shape == (N, 4, 16)
    found, equation = collectives(P(None, "model"), P(), w=matrix("int8"))
    assert found == {"all_gather": 1}
    assert equation.inputs[1].type.shape == (N, 1, K)


def test_arranged_rows_are_split_by_panels():
    w = matrix(shape=(64, K)).arranged()
    found, equation = collectives(P(), P("model"), w=w)
    assert found == {}
    assert equation.inputs[1].type.shape == (1, 4, 16 * 16)
    assert equation.output.type.shape == (16, 16)
    found, equation = collectives(P(None, "model"), P(None, "model"), w=w)
    assert found == {"psum": 1}
    assert equation.inputs[1].type.shape == (4, 1, 16 * 16)


def test_activations_are_rounded_with_the_same_neighbours_on_every_mesh():
    found, equation = collectives(P(None, "model"), P(None, "model"), form="int8")
    assert found == {"psum": 1}
    assert equation.inputs[1].type.shape == (N, 1, 16)
    # Rounding reaches over groups of another size, and over rows where these are contracted.
    w = matrix(quantization.int4(16))
    assert collectives(P(None, "model"), P(), w=w, form="int8")[0] == {"all_gather": 1}
    assert collectives(P(None, "model"), P(), transpose=False, form="int8")[0] == {"all_gather": 1}


def test_a_sum_does_not_move_across_rounding():
    def f(h, a, w):
        return lax.quantized_matmul(h @ a, w, activations="int8")

    mesh, w = AbstractMesh(("model",), (4,)), matrix()
    program = inf.make_jaxpr(f)(activations(16, 32), activations(32, K), w)
    specs = [P(None, "model"), P("model"), P(), P()]
    found = partition.partition(program, mesh, [tuple(s) for s in specs])
    assert [(c.name, c.nbytes) for c in found.collectives] == [("psum", 16 * K * 4)]


def test_partial_activations_are_added_up_after_the_product_where_that_is_less():
    def f(h, a, w):
        return lax.quantized_matmul(h @ a, w)

    mesh, w = AbstractMesh(("model",), (4,)), matrix()
    program = inf.make_jaxpr(f)(activations(16, 32), activations(32, K), w)
    specs = [P(None, "model"), P("model"), P(), P()]
    found = partition.partition(program, mesh, [tuple(s) for s in specs])
    assert [(c.name, c.nbytes) for c in found.collectives] == [("psum", 16 * N * 4)]


SPECS = [P("a"), P(None, "a"), P("a", "b"), P("b", "a"), P(None, ("a", "b"))]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    ("scheme", "device"), [("Q5_1", "reference"), ("int8", "reference"), ("Q4_0", "cpu")]
)
def test_a_sharded_product_and_its_gradient_are_those_of_one_device(scheme, device, spec):
    w, x = matrix(scheme), activations(16, K)

    def f(x, w):
        return lax.quantized_matmul(inp.tanh(lax.quantized_matmul(x, w)) / K, w, transpose=False)

    step = inf.jit(lambda x, w: (f(x, w), inf.grad(lambda x: (f(x, w) ** 2).sum())(x)))
    expected = step(x, w)
    with inf.config(device=device, cpu_devices=4):
        mesh = make_mesh((2, 2), ("a", "b"))
        # Groups of whole rows are one: that dimension of the planes cannot be split, that of x can.
        kept = P(*(axis if i == 0 else None for i, axis in enumerate(spec))) if scheme == "int8" else spec
        placed = inf.device_put(w, NamedSharding(mesh, kept))
        found = step(inf.device_put(x, NamedSharding(mesh, spec)), placed)
        for a, b in zip(found, expected, strict=True):
            assert_close(np.asarray(a), np.asarray(b), "program")
