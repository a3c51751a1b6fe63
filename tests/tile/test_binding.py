"""What a call gives a kernel: sizes, parameters of compilation, and what a definition checks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import sympy

import infini as inf
from infini import lax, tile
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from infini.tile import Symbol, Tensor, arrangements, block_size

F32 = dtypes.float32
LINE = np.arange(16, dtype=np.float32)


def blocks(*tensors: Tensor) -> list[Tensor]:
    return [t if t.is_scalar else t.tile((4,)) for t in tensors]


# --- sizes -----------------------------------------------------------------------------------


def test_what_is_said_of_sizes_is_checked_at_the_call() -> None:
    x = Tensor(1, shape_options={"lower": 8, "upper": 64, "divisible_by": 8})
    copy = tile.kernel(blocks, tensors=(x, Tensor(shape=x.shape)), name="copy")(lambda line: line)
    np.testing.assert_array_equal(copy(LINE), LINE)
    for size in (0, 12, 72):
        with pytest.raises(errors.ValueMismatchError, match=f"line_0 = {size}\n.*divisible by 8, at least 8"):
            copy(np.zeros(size, np.float32))


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [({"power_of_two": True}, 8, 12), ({"upper": 8}, 8, 9), ({"lower": 4}, 4, 3)],
    ids=str,
)
def test_options_of_a_symbol_are_checked(options: dict[str, Any], good: int, bad: int) -> None:
    n = Symbol("n", **options)
    copy = tile.kernel(blocks, tensors=(Tensor(shape=(n,)), Tensor(shape=(n,))))(lambda x: x)
    assert copy(np.zeros(good, np.float32)).shape == (good,)
    with pytest.raises(errors.ValueMismatchError, match=f"n = {bad}"):
        copy(np.zeros(bad, np.float32))


@pytest.mark.parametrize("options", [{"lower": 4, "upper": 3}, {"lower": -1}, {"divisible_by": 0}], ids=str)
def test_options_that_no_size_satisfies_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(errors.ValueMismatchError, match="no size satisfies this"):
        Symbol("n", **options)


def test_a_size_that_no_operand_has_is_given_by_name() -> None:
    x, window = Tensor(1), Symbol("window", lower=1)
    result = Tensor(shape=(x.shape[0] - window + 1,))

    def arrangement(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.tile((window,), strides=(1,), floor_mode=True), y.tile((1,)).squeeze(0, level=1)

    largest = tile.kernel(arrangement, tensors=(x, result), name="largest")(lambda row: row.max())
    np.testing.assert_array_equal(largest(LINE, window=3), LINE[2:])
    np.testing.assert_array_equal(largest(LINE, window=5), LINE[4:])
    with pytest.raises(errors.TypeMismatchError, match="give the call window="):
        largest(LINE)
    with pytest.raises(errors.TypeMismatchError, match="window is a size"):
        largest(LINE, window=2.0)
    with pytest.raises(errors.ValueMismatchError, match=r"window = 0\n.*at least 1"):
        largest(LINE, window=0)


def test_an_application_sees_a_size_that_it_asks_for() -> None:
    x, width = Tensor(1), Symbol("width")

    def arrangement(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.tile((width,)), y.tile((width,))

    kernel = tile.kernel(arrangement, tensors=(x, Tensor(shape=x.shape)))
    scaled = kernel(lambda x, *, width: x * float(width))
    np.testing.assert_array_equal(scaled(LINE, width=4), LINE * 4)
    np.testing.assert_array_equal(kernel(lambda x: x + 1)(LINE, width=4), LINE + 1)


def test_a_size_follows_from_a_linear_dimension() -> None:
    n, h = Symbol("n"), Symbol("h")
    x, y = Tensor(shape=(2 * n + 1,)), Tensor(shape=(n, 3 * h))
    result = Tensor(shape=(n, h))

    def arrangement(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        x = x[: 2 * n].tile((2,)).unsqueeze(1).expand((-1, h))
        return x, y.tile((1, 3)).squeeze(0, level=1), z.tile((1, 1)).squeeze((0, 1), level=1)

    sums = tile.kernel(arrangement, tensors=(x, y, result), name="sums")(lambda x, y: x.sum() + y.sum())
    first, second = np.arange(9.0, dtype=np.float32), np.ones((4, 6), np.float32)
    np.testing.assert_array_equal(sums(first, second), np.add.outer([1, 5, 9, 13], [3, 3]))
    with pytest.raises(errors.TypeMismatchError, match=r"no h fits .*\n.*3\*h = 5"):
        sums(first, second[:, :5])


def test_two_symbols_of_one_name_are_refused() -> None:
    first, second = Symbol("w", lower=1), Symbol("w")

    def arrangement(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.tile((first,)), y.tile((second,))

    x = Tensor(1)
    with pytest.raises(errors.ValueMismatchError, match="two symbols are called w"):
        tile.kernel(arrangement, tensors=(x, Tensor(shape=x.shape)))(lambda x: x)


def test_symbols_that_say_the_same_are_the_same() -> None:
    assert Symbol("n", divisible_by=8) == Symbol("n", divisible_by=8) != Symbol("n")


def test_operands_of_another_shape_name_their_tensor() -> None:
    x = Tensor(1)
    add = tile.kernel(blocks, tensors=(x, Tensor(shape=x.shape), Tensor(shape=x.shape)))(lambda a, b: a + b)
    with pytest.raises(
        errors.TypeMismatchError, match=r"operand 1 has another shape than its tensor b"
    ) as caught:
        add(LINE, LINE[1:])
    assert "(a_0,) = (16,)" in str(caught.value)


# --- parameters of compilation --------------------------------------------------------------------

line = Tensor(1)
parameter = Tensor(0, constexpr=True)


@tile.kernel(blocks, tensors=(line, parameter, Tensor(shape=line.shape)))
def power(x: Any, exponent: int) -> Any:
    """A Python loop: the exponent is a number when the application is traced."""
    return functools.reduce(lax.mul, [x] * exponent)


def test_a_constexpr_scalar_is_a_python_value() -> None:
    np.testing.assert_array_equal(power(LINE, 3), LINE**3)
    np.testing.assert_array_equal(power(LINE, np.int64(2)), LINE**2)
    np.testing.assert_array_equal(power(LINE, exponent=2), LINE**2)
    np.testing.assert_array_equal(inf.jit(lambda x: power(x, 2))(LINE), LINE**2)
    assert len(power.operands) == 1


def test_another_value_is_another_kernel() -> None:
    types = [ArrayType((16,), F32)]
    assert power.specialize(types, exponent=2) is power.specialize(types, exponent=2)
    assert len(power.specialize(types, exponent=3).body.equations) == 2
    as_number = tile.kernel(blocks, tensors=(line, parameter, Tensor(shape=line.shape)))(lambda x, y: x * y)
    whole = np.arange(4, dtype=np.int32)
    assert as_number(whole, 1).dtype == np.int32 and as_number(whole, 1.0).dtype == np.float32


def test_an_array_is_no_parameter_of_compilation() -> None:
    with pytest.raises(errors.TypeMismatchError, match="exponent is a parameter of compilation"):
        power(LINE, LINE)
    with pytest.raises(errors.TypeMismatchError, match="needs a value for exponent"):
        power(LINE)


def test_a_fixed_value_is_left_out_of_the_call() -> None:
    fixed = Tensor(0, constexpr=True, value="largest")
    scalar = Tensor(0)

    @tile.kernel(blocks, tensors=(line, fixed, scalar, Tensor(shape=line.shape)))
    def bounded(x: Any, kind: str, bound: Any) -> Any:
        return lax.min(x, lax.full_like(x, 0) + bound) if kind == "largest" else x

    np.testing.assert_array_equal(bounded(LINE, np.float32(3)), np.minimum(LINE, 3))


def test_derivatives_take_parameters_of_compilation() -> None:
    def definition(x: Any, exponent: int) -> Any:
        return functools.reduce(lax.mul, [x] * exponent)

    def backward(x: Any, g: Any, *, exponent: int) -> tuple[Any]:
        return (g * exponent * definition(x, exponent - 1),)

    tensors = (line, parameter, Tensor(shape=line.shape))
    by_definition = tile.kernel(blocks, tensors=tensors, definition=definition, name="cube")(definition)
    by_hand = tile.kernel(blocks, tensors=tensors, vjp=(lambda x, n: (power(x, n), x), backward), name="hand")
    for kernel in (by_definition, by_hand(lambda x, exponent: definition(x, exponent))):
        gradient = inf.grad(lambda x, k=kernel: k(x, 3).sum())(LINE)
        np.testing.assert_allclose(gradient, 3 * LINE**2, rtol=1e-6)


# --- what a definition checks -----------------------------------------------------------------------


def defined(first: Tensor, second: Tensor, cut: Any) -> Any:
    return tile.kernel(cut, tensors=(first, second, Tensor(shape=first.shape)), name="add")(lambda a, b: a)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (2 * Symbol("n"), 2 * Symbol("m") + 1),
        (Symbol("n", lower=100), Symbol("m", upper=99)),
        (Symbol("n"), Symbol("n") + 1),
        (Symbol("n", divisible_by=4), 4 * Symbol("m") + 2),
        (3, 4),
    ],
    ids=str,
)
def test_grids_that_cannot_agree_are_refused_at_definition(first: Any, second: Any) -> None:
    with pytest.raises(
        errors.TypeMismatchError, match="tensor a and tensor b differ in dimension 0"
    ) as caught:
        defined(Tensor(shape=(first,)), Tensor(shape=(second,)), lambda *ts: [t.tile((1,)) for t in ts])
    assert f"a has ({first},), tensor b has ({second},)" in str(caught.value)


def test_grids_of_other_ranks_are_refused_at_definition() -> None:
    x = Tensor(1)
    with pytest.raises(errors.TypeMismatchError, match="other numbers of dimensions") as caught:
        defined(x, Tensor(2), lambda a, b, c: (a.tile((16,)), b.tile((16, -1)), c.tile((16,))))
    assert "(ceiling(a_0/16),), tensor b has (ceiling(b_0/16), 1)" in str(caught.value)


def test_grids_that_may_agree_are_checked_at_the_call() -> None:
    kernel = defined(Tensor(1), Tensor(1), blocks)
    assert kernel(LINE, LINE[:13]).shape == (16,)
    with pytest.raises(
        errors.TypeMismatchError, match=r"tensor a has \(ceiling\(a_0/4\),\) = \(4,\), tensor b .* \(3,\)"
    ):
        kernel(LINE, LINE[:12])


def test_a_failing_operation_names_the_tensor() -> None:
    x = Tensor(2)
    with pytest.raises(
        errors.TypeMismatchError, match=r"Tensor image\(\(ceiling\(image_0/16\), image_1\) of"
    ):
        tile.kernel(lambda x, y: (x.tile((16, 1)).squeeze(0, level=1), y), tensors=(x, x))(
            lambda image: image
        )


def test_a_definition_does_not_change_the_tensors_it_was_given() -> None:
    x = Tensor(1, name="x").tile((4,))
    y = Tensor(shape=x.source.shape)

    def arrangement(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x.inner = x.inner[::-1]
        return x, y.tile((4,))

    flip = tile.kernel(arrangement, tensors=(x, y))(lambda x: x)
    np.testing.assert_array_equal(flip(LINE), LINE.reshape(4, 4)[:, ::-1].ravel())
    assert list(x.eval({"x_0": 4})[0]) == [0, 1, 2, 3]


def test_a_tile_of_a_block_size_is_tunable() -> None:
    x, block = Tensor(1), block_size(16, 64)
    kernel = tile.kernel(lambda *ts: [t.tile((block,)) for t in ts], tensors=(x, Tensor(shape=x.shape)))(
        lambda x: x
    )
    assert kernel.configure(BLOCK=32).specialize([ArrayType((64,), F32)]).grid == (2,)


def test_tensors_without_names_get_those_of_parameters() -> None:
    x = Tensor(1)
    kernel = tile.kernel(
        blocks, tensors=(x, Tensor(1, name="own"), parameter, *[Tensor(shape=x.shape)] * 2), num_results=2
    )
    assert [t.source.name for t in kernel(lambda a, b, c: (a, b)).arranged] == [
        "a",
        "own",
        "result 0",
        "result 1",
    ]
    assert [t.source.name for t in kernel(lambda *ts: ts[:2]).operands] == ["operand 0", "own"]


def test_a_call_with_other_shapes_does_no_symbolic_work(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Tensor(2), Tensor(2)
    tensors = (a, b, Tensor(shape=(a.shape[0], b.shape[1])))
    product = tile.kernel(arrangements.matmul, tensors=tensors)(arrangements.sum_of_products)
    product.specialize([ArrayType((64, 32), F32), ArrayType((32, 48), F32)])

    def symbolic(*_: object, **__: object) -> None:
        raise AssertionError("SymPy is at work")

    for owner, name in ((sympy.Basic, "xreplace"), (sympy.Basic, "subs"), (sympy.Function, "__new__")):
        monkeypatch.setattr(owner, name, symbolic)
    monkeypatch.setattr(sympy.Add, "__new__", symbolic)
    monkeypatch.setattr(sympy.Mul, "__new__", symbolic)
    kernel = product.specialize([ArrayType((65, 300), F32), ArrayType((300, 49), F32)])
    assert kernel.outputs == (ArrayType((65, 49), F32),)
    with pytest.raises(AssertionError, match="SymPy"):
        tensors[0].tile((4, 4))
