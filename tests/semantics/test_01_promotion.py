"""Design 4a.1: promotion is that of JAX; weakness belongs to values and signatures, not to types."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: inp.ones(2, "bfloat16") * inp.sqrt(2.0), "bfloat16"),
        (lambda: inp.ones(2, "bfloat16") * np.float32(2.0), "float32"),
        (lambda: inp.ones(2, "int8") + 1, "int8"),
        (lambda: inp.ones(2, "int8") + 1.0, "float32"),
        (lambda: inp.ones(2, "float16") + inp.ones(2, "bfloat16"), "float32"),
        (lambda: inp.ones(2, "uint8") + inp.ones(2, "int8"), "int16"),
        (lambda: inp.ones(2) + 1j, "complex64"),
        (lambda: inp.ones(2, bool) + True, "bool"),
    ],
)
def test_results_have_the_dtype_of_jax(make, dtype):
    assert make().dtype == dtype


def test_weakness_is_no_part_of_a_type():
    weak, strong = inp.asarray(2.0), inp.asarray(2.0, dtype="float32")
    assert weak.weak_type and not strong.weak_type
    assert weak.type == strong.type


def test_a_weak_argument_is_another_signature():
    f = inf.jit(lambda x: x * inp.ones(2, "bfloat16"))
    assert f(2.0).dtype == "bfloat16"
    assert f(inp.float32(2.0)).dtype == "float32"


def test_a_weak_carry_is_widened_to_a_fixpoint():
    total, _ = lax.scan(lambda c, x: (c + x, None), 0, inp.ones(3, "float32"))
    assert total.dtype == "float32" and total == 3.0
