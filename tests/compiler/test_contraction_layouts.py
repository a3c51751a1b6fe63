"""Contractions stay matrix products: no transpose is folded into one, or left in one, that takes it apart."""

import itertools

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.compiler.passes import contractions, cse, dead_code, simplify
from infini.compiler.passes.contractions import product
from infini.lax import contraction
from tests.compiler.programs import evaluate, f32, inputs_for, ops, program_of


def canonical(f, *types):
    program = program_of(f, *types)
    after = program
    for step in (simplify.simplify, contractions.canonical_contractions, simplify.simplify):
        after = step(after)
    after = dead_code.eliminate_dead(cse.eliminate_common(after))
    inputs = inputs_for(types)
    for a, b in zip(evaluate(program, inputs), evaluate(after, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    return after


def product_of(program):
    """The product that the only contraction of a program is."""
    (dot,) = [e for e in program.equations if e.op.name == "dot"]
    a, b, out = contraction.parse_spec(dot.attrs["spec"])
    x, y = dot.inputs
    sizes = dict(zip(a, x.type.shape, strict=True)) | dict(zip(b, y.type.shape, strict=True))
    return product(a, b, out, sizes)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_result_is_never_contiguous_along_the_batch(order):
    after = canonical(lambda x, y: inp.transpose(x @ y, order), f32(4, 70, 8), f32(4, 8, 66))
    found = product_of(after)
    assert found.is_dense and found.rows == 70 and found.columns == 66
    assert ops(after).count("transpose") == (order[-1] == 0)


@pytest.mark.parametrize("spec", ["bij,bjk->ikb", "bij,bjk->kib", "bij,bjk->ibk"])
def test_an_einsum_with_the_batch_behind_is_transposed_afterwards(spec):
    found = product_of(canonical(lambda x, y: inp.einsum(spec, x, y), f32(4, 70, 8), f32(4, 8, 66)))
    assert found.is_dense and (found.rows, found.columns) == (70, 66)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_joined_dimensions_are_not_taken_apart(order):
    def f(x, y):
        return inp.transpose(inp.einsum("abk,kcd->abcd", x, y), order)

    found = product_of(canonical(f, f32(16, 4, 8), f32(8, 4, 16)))
    assert found.is_dense and (found.rows, found.columns) == (64, 64)


def test_a_transpose_that_keeps_the_product_is_folded():
    """Heads of attention are merged by the product that makes them."""

    def f(p, v):
        return inp.transpose(inp.einsum("bhts,bshd->bhtd", p, v), (0, 2, 1, 3))

    assert ops(canonical(f, f32(2, 4, 16, 16), f32(2, 16, 4, 8))) == ["dot"]


def test_contracted_dimensions_that_lie_apart_are_brought_together():
    after = canonical(lambda x, y: inp.einsum("tbm,btn->mn", x, y), f32(16, 4, 8), f32(4, 16, 24))
    assert product_of(after).num_depths == 1
    assert sorted(ops(after)) == ["dot", "transpose"]


def test_an_operand_whose_transpose_would_split_the_contraction_keeps_it():
    def f(x, y):
        return inp.einsum("btm,btn->mn", inp.transpose(x, (1, 0, 2)), y)

    assert product_of(canonical(f, f32(16, 4, 8), f32(4, 16, 24))).num_depths == 1


def test_a_vector_of_products_along_the_batch_stays_as_it_is():
    after = canonical(lambda x, y: inp.einsum("bk,bk->b", x, y), f32(64, 8), f32(64, 8))
    assert ops(after) == ["dot"]


@pytest.mark.parametrize("spec", ["bij,bjk->ikb", "abk,kcd->adcb", "tbm,btn->mn", "bik,bk->ib", "kab,kb->ba"])
def test_scattered_contractions_compiled(spec):
    sizes = dict(zip("abcdijkmnt", (5, 3, 4, 6, 7, 5, 9, 2, 4, 3), strict=True))
    sides = spec.split("->")[0].split(",")
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal([sizes[c] for c in side]).astype(np.float32) for side in sides)
    found = infini.jit(lambda x, y: inp.einsum(spec, x, y))(x, y)
    np.testing.assert_allclose(found, np.einsum(spec, x, y), rtol=1e-4, atol=1e-4)
