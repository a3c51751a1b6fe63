"""Design 4a.2: host data of 64 bits becomes 32-bit unless 64 is asked for; integers that do not fit are an
error.
"""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.core import errors


@pytest.mark.parametrize("data", [1, np.int64(1), np.arange(3)], ids=str)
def test_host_integers_become_int32(data):
    assert inp.asarray(data).dtype == "int32"


@pytest.mark.parametrize("data", [1.0, np.float64(1), np.linspace(0, 1, 3)], ids=str)
def test_host_floats_become_float32(data):
    assert inp.asarray(data).dtype == "float32"


def test_sixty_four_bits_are_kept_when_asked_for():
    assert inp.asarray(1.0, dtype="float64").dtype == "float64"
    assert (inp.ones(2, "float64") + 1.0).dtype == "float64"
    assert inp.ones(2).astype("int64").dtype == "int64"
    assert inf.jit(lambda x: x * 2)(inp.ones(2, "float64")).dtype == "float64"


def test_dlpack_keeps_sixty_four_bits():
    assert inp.from_dlpack(np.ones(3)).dtype == "float64"


def test_an_integer_that_does_not_fit_is_an_error():
    with pytest.raises(errors.OutOfRangeError):
        inp.asarray(2**40)


def test_the_knob_keeps_host_data_as_they_are():
    with inf.config(host64="keep"):
        assert inp.asarray(np.arange(3)).dtype == "int64"
