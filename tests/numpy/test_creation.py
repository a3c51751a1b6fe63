"""Making arrays: dtypes of host data, weak flags, copies, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import errors


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1, "int32"), (1.0, "float32"), (True, "bool"), ([1, 2], "int32"), ([1.5], "float32"),
        (np.ones(2), "float32"), (np.arange(2), "int32"), (np.float64(1), "float32"),
        (np.ones(2, np.float16), "float16"), ([], "float32"), (np.ones(2, ">f4"), "float32"),
    ],
    ids=str,
)  # fmt: skip
def test_host_data_of_64_bits_become_the_32_bit_default(data: object, dtype: str) -> None:
    assert inp.asarray(data).dtype == dtype


def test_a_dtype_keeps_64_bits() -> None:
    assert inp.asarray([1.0], dtype="float64").dtype == inp.float64
    assert inp.ones(2, inp.int64).dtype == "int64"
    assert inp.asarray(inp.ones(2, "float64")).dtype == "float64"


def test_only_python_scalars_are_weak() -> None:
    assert inp.asarray(1.0).weak_type
    assert inp.asarray(2).weak_type
    assert not inp.asarray(True).weak_type
    assert not inp.asarray([1.0]).weak_type
    assert not inp.asarray(np.float32(1)).weak_type
    assert not inp.asarray(1.0, dtype="float32").weak_type


def test_integers_that_do_not_fit_are_errors() -> None:
    with pytest.raises(OverflowError):
        inp.asarray(2**40)
    with pytest.raises(OverflowError):
        inp.uint8(300)
    with pytest.raises(OverflowError):
        inp.arange(3, dtype="uint8") + 300


def test_a_python_integer_may_use_every_bit_of_the_dtype_it_meets() -> None:
    assert int(inp.uint32(0xDEADBEEF) & 0xFFFF0000) == 0xDEAD0000


def test_nested_sequences_of_arrays_are_stacked_also_while_tracing() -> None:
    def nest(x):
        return inp.asarray([[x, 1.0], [2.0, x * 3]])

    expected = [[5, 1], [2, 15]]
    assert nest(inp.float32(5)).tolist() == expected
    assert infini.jit(nest)(inp.float32(5)).tolist() == expected


def test_array_copies_and_asarray_does_not() -> None:
    x = inp.ones(3)
    assert inp.asarray(x) is x
    copy = inp.array(x)
    x.delete()
    assert copy.tolist() == [1, 1, 1]


def test_numpy_arrays_are_copied() -> None:
    host = np.ones(3, np.float32)
    x = inp.asarray(host)
    host[0] = 7
    assert x.tolist() == [1, 1, 1]


def test_dlpack_objects_are_accepted() -> None:
    class Exporter:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, **options):
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    assert inp.asarray(Exporter(np.arange(3, dtype=np.int32))).tolist() == [0, 1, 2]


def test_numpy_reads_arrays() -> None:
    assert np.asarray(inp.arange(3)).tolist() == [0, 1, 2]
    assert np.add(np.ones(3, np.float32), np.asarray(inp.ones(3))).tolist() == [2, 2, 2]


def test_results_are_arrays_even_of_numbers() -> None:
    for result in (
        inp.sum(1.0),
        inp.abs(True),
        inp.reshape(1.0, ()),
        inp.full((), 1),
        inp.asarray(2.0) ** 0,
        inp.squeeze(3),
    ):
        assert isinstance(result, infini.Array)


@pytest.mark.parametrize(
    "bad", ["a", None, object(), [[1], [1, 2]]], ids=["text", "none", "object", "ragged"]
)
def test_what_is_not_numeric_is_refused(bad: object) -> None:
    with pytest.raises((errors.InfiniError, ValueError)):
        inp.asarray(bad)


def test_sizes_must_be_known_while_tracing() -> None:
    with pytest.raises(errors.ConcretizationError, match="static_argnums"):
        infini.jit(lambda n: inp.zeros(n))(3)
    with pytest.raises(errors.ConcretizationError):
        infini.jit(lambda n: inp.arange(n))(3)


def test_scalar_types_are_dtypes_and_constructors() -> None:
    assert inp.ones(1).dtype == inp.float32
    assert inp.float32 == np.dtype("float32") and np.dtype(inp.bfloat16) == inp.bfloat16
    assert inp.ones(2, inp.bfloat16).dtype == inp.bfloat16
    assert inp.float16(2).dtype == inp.float16 and not inp.float16(2).weak_type
    assert inp.issubdtype(inp.bfloat16, inp.floating) and not inp.issubdtype(inp.int8, inp.inexact)
    assert inp.isdtype(inp.uint8, ("integral", "real floating"))
    assert float(inp.finfo(inp.bfloat16).eps) == 0.0078125
    assert inp.iinfo("int8").max == 127


def test_result_type_knows_weak_types() -> None:
    assert inp.result_type(inp.bfloat16, 2.0) == inp.bfloat16
    assert inp.result_type(inp.int8, inp.uint8) == inp.int16
    assert inp.promote_types("bfloat16", "float16") == inp.float32
    assert inp.promote_types("bfloat16", float) == inp.bfloat16


def test_traced_ranges_and_fills_make_no_constants() -> None:
    def build():
        return inp.arange(1000) * 2, inp.zeros((100, 100)), inp.tril(inp.ones((100, 100))), inp.eye(100)

    program = infini.jit(build).lower().program
    assert program.params == ()
