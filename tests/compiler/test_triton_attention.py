"""The kernels of attention under Triton's interpreter, against the definition that makes the matrix of
weights.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import nn
from infini.backends import cuda
from infini.backends.reference import interpreter
from infini.compiler.triton import attention as kernels, compile as compile_, lower
from infini.compiler.triton.target import nvidia
from infini.core import dtypes, ir, primitive
from infini.core.backend import CompileOptions
from infini.core.interpret import decomposition
from infini.core.ir import ArrayType
from infini.lax.composites import attention as composite

interpret = pytest.importorskip("infini.compiler.triton.interpret")

PLAIN = "td,sd,sv->tv,t"
MASKED = "td,sd,sv,ts->tv,t"
BOTH = "td,sd,sv,ts,ts->tv,t"
GROUPED = "btkgd,bskd,bskv->btkgv,bkgt"
TOLERANCES = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 3e-2}


def attrs(spec: str, **changes: Any) -> dict[str, Any]:
    usual = {"scale": 0.3, "band": (None, None), "fill": -1e30, "has_bias": False, "has_mask": False}
    return {"spec": spec, **usual, **changes}


def run(
    name: str, arrays: list[np.ndarray], given: dict[str, Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Results of the kernels, and of the definition."""
    op = primitive.by_name(name)
    types = tuple(ArrayType(a.shape, a.dtype) for a in arrays)
    program = ir.single_equation(op, types, ir.Attrs(given))
    (equation,) = program.equations
    assert lower.has_route(equation)
    memory = {f"x{i}": np.ascontiguousarray(a) for i, a in enumerate(arrays)}
    memory |= {f"y{i}": np.full(v.type.shape, np.nan, v.type.dtype) for i, v in enumerate(equation.outputs)}
    for source in lower.sources(equation):
        interpret.launch(source, [memory[role] for role in source.roles])
    wanted = interpreter.evaluate(decomposition(op, types, ir.Attrs(given)), arrays)
    return [memory[f"y{i}"] for i in range(len(equation.outputs))], list(wanted)


def check(name: str, arrays: list[np.ndarray], given: dict[str, Any]) -> None:
    tolerance = TOLERANCES[arrays[0].dtype.name]
    for found, wanted in zip(*run(name, arrays, given), strict=True):
        np.testing.assert_allclose(
            found.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance
        )


def drawn(rng: np.random.Generator, dtype: np.dtype, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.uniform(-1.0, 1.0, shape).astype(dtype) for shape in shapes]


def with_sums(arrays: list[np.ndarray], ct: np.ndarray, given: dict[str, Any]) -> list[np.ndarray]:
    """Operands of the gradient."""
    types = tuple(ArrayType(a.shape, a.dtype) for a in arrays)
    definition = decomposition(composite.attention_sums_p, types, ir.Attrs(given))
    out, largest, total = interpreter.evaluate(definition, arrays)
    letters = composite.parse_spec(given["spec"])
    own, rows = letters.out, letters.rows
    loops = "ABC"[: out.ndim - len(own)]
    delta = np.einsum(
        f"{loops}{own},{loops}{own}->{loops}{rows}", out.astype(np.float32), ct.astype(np.float32)
    )
    return [*arrays, ct, largest, total, delta.astype(np.float32)]


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("band", [(None, None), (None, 0), (-7, 3), (2, None)], ids=str)
def test_blocks_bands_and_odd_widths(dtype: np.dtype, band: Any, rng: np.random.Generator) -> None:
    arrays = drawn(rng, dtype, (70, 20), (75, 20), (75, 24))
    check("attention_sums", arrays, attrs(PLAIN, band=band))


@pytest.mark.parametrize("band", [(None, None), (None, 0), (-7, 3)], ids=str)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16], ids=str)
def test_gradient(dtype: np.dtype, band: Any, rng: np.random.Generator) -> None:
    *arrays, ct = drawn(rng, dtype, (70, 20), (75, 20), (75, 24), (70, 24))
    given = attrs(PLAIN, band=band)
    check("attention_gradient", with_sums(arrays, ct, given), given)


def test_few_queries_of_many_keys(rng: np.random.Generator) -> None:
    *arrays, ct = drawn(rng, dtypes.float32, (3, 2), (130, 2), (130, 4), (3, 4))
    given = attrs(PLAIN)
    check("attention", arrays, given)
    check("attention_gradient", with_sums(arrays, ct, given), given)


@pytest.mark.parametrize("band", [(None, 130), (-3, None), (2, 5)], ids=str)
@pytest.mark.parametrize("lengths", [(16, 150), (150, 16)], ids=str)
def test_one_block_of_queries_or_keys_in_a_band(lengths: Any, band: Any, rng: np.random.Generator) -> None:
    queries, keys = lengths
    *arrays, ct = drawn(rng, dtypes.float32, (queries, 16), (keys, 16), (keys, 16), (queries, 16))
    given = attrs(PLAIN, band=band)
    check("attention", arrays, given)
    check("attention_gradient", with_sums(arrays, ct, given), given)


def test_groups_of_queries_share_keys(rng: np.random.Generator) -> None:
    shapes = (2, 20, 3, 2, 16), (2, 24, 3, 16), (2, 24, 3, 16), (2, 20, 3, 2, 16)
    *arrays, ct = drawn(rng, dtypes.float32, *shapes)
    given = attrs(GROUPED, band=(None, 4))
    check("attention", arrays, given)
    check("attention_gradient", with_sums(arrays, ct, given), given)


def test_loop_dimensions_that_the_keys_lack(rng: np.random.Generator) -> None:
    *arrays, ct = drawn(rng, dtypes.float32, (3, 2, 20, 16), (20, 16), (2, 20, 16), (3, 2, 20, 16))
    given = attrs(PLAIN)
    check("attention", arrays, given)
    check("attention_gradient", with_sums(arrays, ct, given), given)


@pytest.mark.parametrize("fill", [-math.inf, -1e30, -5.0])
def test_masks_and_biases(fill: float, rng: np.random.Generator) -> None:
    *arrays, bias, ct = drawn(rng, dtypes.float32, (70, 16), (70, 16), (70, 16), (70, 70), (70, 16))
    mask = rng.random((70, 70)) < 0.5
    mask[:, 0] = True
    given = attrs(BOTH, fill=fill, has_bias=True, has_mask=True, band=(None, 0))
    check("attention", [*arrays, bias, mask], given)
    check("attention_gradient", with_sums([*arrays, bias, mask], ct, given), given)


def test_a_row_without_keys_is_the_mean_of_the_values(rng: np.random.Generator) -> None:
    arrays = drawn(rng, dtypes.float32, (70, 16), (70, 16), (70, 16))
    mask = np.ones((70, 70), bool)
    mask[5] = False
    given = attrs(MASKED, has_mask=True)
    (found,), _ = run("attention", [*arrays, mask], given)
    np.testing.assert_allclose(found[5], arrays[2].mean(0), rtol=1e-5, atol=1e-5)


def test_keys_of_minus_infinity_count_for_nothing(rng: np.random.Generator) -> None:
    arrays = drawn(rng, dtypes.float32, (20, 16), (70, 16), (70, 16))
    bias = np.where(np.arange(70) < 66, -np.inf, 0.0).astype(np.float32)  # the whole first block, and more
    check("attention", [*arrays, np.broadcast_to(bias, (20, 70)).copy()], attrs(MASKED, has_bias=True))


def test_wide_heads_doubles_and_single_queries_take_the_definition() -> None:
    for dtype, queries, width in (
        (dtypes.float32, 64, 512),
        (dtypes.float64, 64, 16),
        (dtypes.float32, 1, 16),
    ):
        q, k = ArrayType((queries, width), dtype), ArrayType((64, width), dtype)
        program = ir.single_equation(composite.attention_p, (q, k, k), ir.Attrs(attrs(PLAIN)))
        assert not lower.has_route(program.equations[0])


def written_out(q: Any, k: Any, v: Any) -> Any:
    scores = inp.einsum("bthd,bshd->bhts", q, k) * 0.2
    causal = inp.tril(inp.ones((scores.shape[-2], scores.shape[-1]), bool))
    weights = nn.softmax(inp.where(causal, scores, -1e30), -1)
    return inp.einsum("bhts,bshd->bthd", weights, v)


@pytest.mark.parametrize(
    "function", [written_out, lambda q, k, v: nn.dot_product_attention(q, k, v, is_causal=True)]
)
def test_no_matrix_of_weights_is_kept_on_the_gpu(function: Any) -> None:
    size, struct = 512, inf.ShapeDtypeStruct((1, 512, 2, 64), dtypes.float32)
    step = inf.jit(inf.value_and_grad(lambda q, k, v: function(q, k, v).sum(), (0, 1, 2)))
    program = step.trace(*[struct] * 3).program
    executable = cuda.CudaBackend().compile(program, CompileOptions())
    assert executable.plan.nbytes < size * size * 4


@pytest.mark.parametrize("capability", [80, 86])
def test_blocks_of_wide_heads_fit_the_shared_memory(capability: int) -> None:
    target = nvidia(capability)
    operand = ArrayType((2, 50, 256), dtypes.float32)
    given = ir.Attrs(attrs(PLAIN, band=(None, 0)))
    sums = (ArrayType((2, 50), dtypes.float32),) * 3
    for source in (
        *kernels.attention((operand,) * 3, given, target),
        *kernels.attention_gradient((*(operand,) * 4, *sums), given, target),
    ):
        # The compiler refuses what does not fit.
        assert compile_.compile_source(source, target).shared_bytes <= target.shared_bytes
