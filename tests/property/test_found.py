"""What random programs have found, one test each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import dtypes
from infini.testing import whole_numbers
from tests.property.running import run

NARROW = (dtypes.bfloat16, dtypes.float16, dtypes.float8_e5m2, dtypes.float8_e4m3fn)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("width", [9, 17, 33])
def test_the_last_element_of_a_row_does_not_overwrite_the_next_row(dtype: np.dtype, width: int) -> None:
    """LLVM stored a whole register where one lane of a narrowed vector was left: 4 bytes for 1 or 2. Seen
    where rows are updated in place.
    """
    z = whole_numbers.values(inf.core.ir.ArrayType((9, width), dtype), 8)

    def stacked(x: Any) -> Any:
        rows = x[:8].reshape(4, 2, width)
        _, swapped = lax.scan(lambda c, r: (c, inp.concatenate([r[0:1], r[1:2]], 0)), (), rows)
        return inp.concatenate([swapped.reshape(8, width), x[8:]], 0)

    with inf.config(device="cpu"):
        found = np.asarray(inf.jit(stacked)(z))
    assert found.tobytes() == z.tobytes()


def test_the_reference_updates_a_row_that_is_a_number() -> None:
    """A row of a vector was a NumPy scalar, which cannot be written to."""
    program = inf.make_jaxpr(
        lambda xs: lax.scan(lambda c, x: (c, lax.dynamic_update_slice(x, x, ())), (), xs)[1]
    )(np.zeros(3, np.float32))
    array = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(run("reference", program, [array])[0], array)
