"""Convolutions that native code computes from the image: against their definition, and what they need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

import infini as inf
from infini import lax
from infini.backends.cpu import objects
from infini.compiler import pipeline
from infini.compiler.llvm import lower
from infini.compiler.llvm.convolution import blocks, depthwise, emission, few, problem
from infini.compiler.llvm.target import host_target, make_target
from infini.compiler.passes import convolutions
from infini.core import dtypes, primitive
from infini.core.ir import ArrayType, Attrs, Program
from infini.lax.convolution import spec as spec_
from tests.compiler import llvm_kernels as k

TOLERANCES = {"float32": 2e-5, "float64": 1e-13, "bfloat16": 2e-2, "float16": 3e-3}
NHWC = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))


def attributes(text: str, dtype: np.dtype, **given: Any) -> Attrs:
    """Attributes of a convolution; what is not given does nothing."""
    rank = spec_.parse(text).rank
    usual = {
        "window_strides": (1,) * rank, "padding": ((0, 0),) * rank, "lhs_dilation": (1,) * rank,
        "rhs_dilation": (1,) * rank, "flipped": (False,) * rank,
    }  # fmt: skip
    return Attrs({"spec": text, "dtype": dtype, **usual, **given})


def check(x: np.ndarray, w: np.ndarray, attrs: Attrs) -> None:
    """Native code gives what the definition gives, and writes nothing beside it."""
    rule = convolutions.windowed_dot_p.rules
    types = k.types(x, w)
    phases = emission.emit(types, attrs, host_target())
    (found,) = k.run_phases(phases, [x, w], rule[primitive.TYPE](*types, **attrs))
    wide = dict(attrs) | {"dtype": dtypes.float64}
    wanted = rule[primitive.REFERENCE](x.astype(np.float64), w.astype(np.float64), **wide)
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    difference = np.abs(found.astype(np.float64) - wanted).max(initial=0)
    assert difference <= TOLERANCES[attrs["dtype"].name] * scale


# Images with letters last: forward, derivative by the kernel, the same with groups, depthwise and its
# derivatives, with several results per feature too; then with places last. `_` stands for the spatial
# dimensions.
SPECS = (
    "n_c,_co->n_o", "n_c,_oc->n_o", "n_c,n_o->_co", "n_gc,_cgo->n_go", "n_gc,n_go->_cgo", "gn_c,g_co->gn_o",
    "n_g,_g->n_g", "n_g,n_g->_g", "_nc,o_c->_no", "n_g,_gm->n_gm", "n_gm,_gm->n_g", "n_g,n_gm->_gm",
    "nc_,oc_->no_", "ngc_,goc_->ngo_", "nc_,_co->n_o",
)  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Attrs]:
    """Shapes of both operands, and attributes."""
    rank = draw(st.integers(1, 3))
    digits = "012"[:rank]
    text = draw(st.sampled_from(SPECS)).replace("_", digits)
    spec = spec_.parse(text)
    is_sum = "n" in spec.contracted
    sizes = {c: draw(st.sampled_from([1, 2, 3, 5, 16, 19, 33])) for c in spec.letters}
    small, large = st.integers(1, 3), st.integers(2, 9 if rank < 3 else 5)
    lines = []
    for _ in digits:
        size, window = draw(large), draw(large if is_sum else small)
        hole, stride, dilation = (draw(st.sampled_from([1, 1, 2, 3])) for _ in range(3))
        if hole > 1:
            stride = dilation = 1
        low, high = draw(st.integers(-1, 3)), draw(st.integers(-1, 3))
        reach = (size - 1) * hole + 1 + low + high
        assume(reach >= (window - 1) * dilation + 1)
        lines.append((size, window, stride, (low, high), hole, dilation))
    size, window, stride, pads, hole, dilation = zip(*lines, strict=True)
    x = tuple(size[int(c)] if c.isdigit() else sizes[c] for c in spec.lhs)
    w = tuple(window[int(c)] if c.isdigit() else sizes[c] for c in spec.rhs)
    dtype = draw(st.sampled_from([dtypes.float32, dtypes.float32, *map(np.dtype, TOLERANCES)]))
    attrs = attributes(
        text, dtype, window_strides=stride, padding=pads, lhs_dilation=hole, rhs_dilation=dilation,
        flipped=tuple(draw(st.booleans()) for _ in digits),
    )  # fmt: skip
    assume(emission.plans(ArrayType(x, dtype), ArrayType(w, dtype), attrs, host_target()) is not None)
    return x, w, attrs


@given(cases(), st.integers(0, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_random_convolutions_are_as_defined(case: Any, seed: int) -> None:
    x_shape, w_shape, attrs = case
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal(shape).astype(attrs["dtype"]) for shape in (x_shape, w_shape))
    check(x, w, attrs)


TABLE: tuple[tuple[tuple[int, ...], tuple[int, ...], str, dict[str, Any]], ...] = (
    ((2, 9, 7, 300), (3, 3, 300, 70), "n01c,01co->n01o", {"padding": SAME}),  # runs in pieces
    ((3, 14, 14, 64), (3, 3, 64, 40), "n01c,01co->n01o", {"padding": SAME}),  # several blocks of k
    ((1, 4, 4, 16), (5, 5, 16, 600), "n01c,01co->n01o", {"padding": ((2, 2), (2, 2))}),  # tiles that pack
    ((4, 12, 12, 130), (4, 12, 12, 36), "n01c,n01o->01co", {"padding": SAME}),  # pieces of rows
    ((4, 12, 12, 16), (4, 12, 12, 16), "n01c,n01o->01co", {"padding": SAME}),  # all places in a tile
    ((2, 8, 8, 24), (1, 1, 24, 40), "n01c,01co->n01o", {"lhs_dilation": (2, 2)}),  # places without taps
    ((8, 30, 30, 40), (8, 30, 30, 40), "n01g,n01g->01g", {"padding": SAME}),  # sums in parts
    ((9, 5, 6, 33), (9, 4, 7, 33), "n01g,n01g->01g", {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 3))}),
    ((33, 2, 9, 33), (33, 7, 5, 33), "n01g,n01g->01g", {"lhs_dilation": (3, 1), "padding": ((2, 3), (2, 2))}),
    ((1, 12, 40, 20), (2, 31, 20), "n01g,01g->n01g", {"padding": ((0, 1), (15, 15))}),  # wide windows
    ((2, 9, 10, 20), (3, 3, 20, 3), "n01g,01gm->n01gm", {"padding": SAME}),  # lanes that are not used
    ((4, 9, 10, 20), (4, 9, 10, 20, 2), "n01g,n01gm->01gm", {"padding": SAME}),
    ((3, 9, 10, 20, 4), (3, 3, 20, 4), "n01gm,01gm->n01g", {"padding": SAME}),  # neighbours added
    ((2, 5, 9, 140), (3, 3, 5, 5), "nc01,o01c->no01", {"padding": ((1, 1), (2, 2))}),  # whole tiles
    ((1, 4, 900), (2, 4, 5), "nc0,oc0->no0", {"window_strides": (3,), "padding": ((2, 2),)}),  # cut rows
    ((8, 16, 16, 6), (8, 14, 14, 40), "n01c,n01o->01co", {}),  # sums in parts
    ((2, 9, 9, 32), (3, 3, 32, 24), "n01c,01co->n01o", {"padding": SAME}),  # read where it lies
    ((1, 9, 33, 3), (3, 5, 3, 130), "n01c,01co->n01o", {"window_strides": (1, 2), "padding": SAME}),
    ((2, 7, 9, 9, 4), (3, 3, 4, 9, 4), "n01gc,01cgo->n01go", {"padding": SAME}),
    ((9, 7, 9, 9, 4), (9, 7, 9, 9, 4), "n01gc,n01go->01cgo", {"padding": SAME}),
    ((2, 7, 9, 5, 16), (2, 7, 9, 5, 12), "n01gc,n01go->01cgo", {"padding": SAME}),  # elements in all lanes
    ((2, 6, 9, 5, 7), (3, 3, 7, 5, 4), "n01gc,01cgo->n01go", {"padding": SAME}),  # of two vectors
    ((2, 3, 9, 33), (3, 3, 3, 40), "nc01,01co->no01", {"window_strides": (2, 2), "padding": SAME}),
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.dtype(name) for name in TOLERANCES], ids=str)
@pytest.mark.parametrize("number", range(len(TABLE)))
def test_every_way_to_cut_a_convolution(number: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    x_shape, w_shape, text, options = TABLE[number]
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape))
    check(x, w, attributes(text, dtype, **options))


def test_nothing_is_multiplied_by_holes_of_the_image() -> None:
    x, w = ArrayType((2, 8, 8, 16), dtypes.float32), ArrayType((3, 3, 16, 32), dtypes.float32)
    attrs = attributes("n01c,01co->n01o", dtypes.float32, lhs_dilation=(2, 2), padding=((1, 2), (1, 2)))
    found = problem.analyse(x, w, attrs)
    assert found is not None and sorted(p.depth // 16 for p in found) == [1, 2, 2, 4]


@pytest.mark.parametrize(
    ("triple", "features"),
    [("x86_64-unknown-linux-gnu", "+avx,+avx2,+fma,+f16c"), ("x86_64-unknown-linux-gnu", "+sse2"),
     ("aarch64-unknown-linux-gnu", "+neon")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("text", "window"),
    [("n01c,01co->n01o", (3, 3, 64, 64)), ("n01g,01g->n01g", (3, 3, 64)), ("n0c1,01co->n0o1", (3, 3, 16, 2))],
    ids=["dense", "depthwise", "few"],
)
def test_code_for_other_processors_compiles(
    triple: str, features: str, text: str, window: tuple[int, ...]
) -> None:
    target = make_target(triple, "x86-64" if triple.startswith("x86") else "generic", features)
    x = ArrayType((2, 16, 16, 64), dtypes.float32)
    w = ArrayType(window, dtypes.float32)
    phases = emission.emit((x, w), attributes(text, dtypes.float32, padding=SAME), target)
    declares = sorted(frozenset[str]().union(*(p.declares for p in phases)))
    module = "\n".join([f'target triple = "{triple}"', *declares, *(p.text for p in phases)])
    assert len(objects.compile_module(module, target)) > 500


# --- whole programs -------------------------------------------------------------------------------


def fused(f: Any, *args: Any) -> Program:
    """The program of the CPU, fused."""
    target = host_target()
    return pipeline.run(
        inf.make_jaxpr(f)(*args),
        lower.has_route,
        backend="cpu",
        takes_windows=lambda *operands: lower.takes_windows(*operands, target),
    )


def work(program: Program) -> list[str]:
    """What does something: names of operations other than views."""
    return [e.op.name for e in program.equations if e.op.name != "reshape"]


def conv(x: Any, w: Any, strides: Any = (1, 1), **options: Any) -> Any:
    return lax.conv_general_dilated(x, w, strides, SAME, dimension_numbers=NHWC, **options)


def gradients(x: Any, w: Any, ct: Any, **options: Any) -> Any:
    return inf.vjp(lambda x, w: conv(x, w, **options), x, w)[1](ct)


IMAGE, KERNEL = np.zeros((4, 16, 16, 64), np.float32), np.zeros((3, 3, 64, 64), np.float32)


def large(program: Program) -> list[str]:
    """What reads an array larger than the kernel."""
    largest = [max((v.type.size for v in e.inputs), default=0) for e in program.equations]
    return [e.op.name for e, n in zip(program.equations, largest, strict=True) if n > KERNEL.size]


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=str)
def test_a_convolution_and_its_gradients_copy_no_image(strides: tuple[int, int]) -> None:
    ct = np.zeros(inf.eval_shape(lambda x, w: conv(x, w, strides), IMAGE, KERNEL).shape, np.float32)
    assert work(fused(lambda x, w: conv(x, w, strides), IMAGE, KERNEL)) == ["windowed_dot"]
    program = fused(lambda *a: gradients(*a, strides=strides), IMAGE, KERNEL, ct)
    assert work(program).count("windowed_dot") == 2 and {*large(program)} == {"windowed_dot"}


def test_a_depthwise_convolution_and_its_gradients_are_one_kernel_each() -> None:
    w = np.zeros((3, 3, 1, 64), np.float32)
    options = {"feature_group_count": 64}
    assert work(fused(lambda x, w: conv(x, w, **options), IMAGE, w)) == ["windowed_dot"]
    assert work(fused(lambda *a: gradients(*a, **options), IMAGE, w, IMAGE)) == ["windowed_dot"] * 2


@pytest.mark.parametrize("numbers", [NHWC, ("NCHW", "OIHW", "NCHW"), ("CHWN", "IHWO", "CHWN")], ids=str)
def test_no_array_is_as_large_as_the_patches(numbers: Any) -> None:
    sizes = {"N": 2, "H": 32, "W": 32, "C": 64}
    image = np.zeros([sizes[c] for c in numbers[0]], np.float32)
    kernel = np.zeros([{"H": 3, "W": 3, "I": 64, "O": 64}[c] for c in numbers[1]], np.float32)

    def run(x: Any, w: Any, ct: Any) -> Any:
        def own(x: Any, w: Any) -> Any:
            return lax.conv_general_dilated(x, w, (1, 1), SAME, dimension_numbers=numbers)

        y, pullback = inf.vjp(own, x, w)
        return y, *pullback(ct)

    temporary = inf.jit(run).lower(image, kernel, image).compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 4 * image.nbytes  # the patches are nine images


def test_few_features_of_the_result_have_places_in_vectors() -> None:
    program = fused(conv, IMAGE, np.zeros((3, 3, 64, 3), np.float32))
    (found,) = (e for e in program.equations if e.op.name == "windowed_dot")
    x, w = (v.type for v in found.inputs)
    (plan,) = emission.plans(x, w, found.attrs, host_target()) or ()
    assert isinstance(plan, few.Plan) and plan.lane.digit == 1


@pytest.mark.parametrize(
    ("x", "w", "text"),
    [
        ((2, 16, 16, 64), (3, 3, 64, 64), "n01c,01co->n01o"),
        ((2, 16, 16, 3), (7, 7, 3, 64), "n01c,01co->n01o"),
        ((2, 16, 16, 32, 4), (3, 3, 4, 32, 4), "n01gc,01cgo->n01go"),
        ((8, 16, 16, 32, 4), (8, 16, 16, 32, 4), "n01gc,n01go->01cgo"),
    ],
    ids=["few vectors", "few channels", "groups", "sums of groups"],
)
def test_an_image_with_narrow_features_is_read_where_it_lies(
    x: tuple[int, ...], w: tuple[int, ...], text: str
) -> None:
    attrs = attributes(text, dtypes.float32, padding=SAME)
    (plan,) = emission.plans(*(ArrayType(s, dtypes.float32) for s in (x, w)), attrs, host_target()) or ()
    assert isinstance(plan, depthwise.Plan)


def test_few_rows_are_cut_for_several_threads() -> None:
    x, w = ArrayType((1, 4000, 64), dtypes.float32), ArrayType((3, 64, 64), dtypes.float32)
    (plan,) = emission.plans(x, w, attributes("n0c,0co->n0o", dtypes.float32), host_target()) or ()
    assert isinstance(plan, blocks.Plan) and plan.num_tasks >= 16


def test_a_long_sum_with_few_results_is_made_in_parts() -> None:
    x, w = ArrayType((4, 34, 34, 4), dtypes.float32), ArrayType((4, 32, 32, 64), dtypes.float32)
    (plan,) = emission.plans(x, w, attributes("n01c,n01o->01co", dtypes.float32), host_target()) or ()
    assert isinstance(plan, blocks.Plan) and plan.parts > 1


def test_large_depthwise_kernels_have_a_plan_for_their_gradient() -> None:
    x, w = ArrayType((2, 28, 28, 16), dtypes.float32), ArrayType((2, 28, 28, 16), dtypes.float32)
    attrs = attributes("n01g,n01g->01g", dtypes.float32, padding=((15, 15), (15, 15)))
    (plan,) = emission.plans(x, w, attrs, host_target()) or ()
    assert isinstance(plan, depthwise.Plan) and plan.is_sum


def test_integers_are_left_to_their_decomposition() -> None:
    x, w = IMAGE.astype(np.int32), KERNEL.astype(np.int32)
    assert "windowed_dot" not in work(fused(conv, x, w))


def test_a_convolution_inside_a_loop_reads_the_image_too() -> None:
    def run(x: Any, w: Any) -> Any:
        return lax.scan(lambda x, _: (conv(x, w), None), x, None, length=3)[0]

    (loop,) = (e for e in fused(run, IMAGE, KERNEL).equations if e.op.name == "scan")
    assert "windowed_dot" in work(loop.attrs["body"])
