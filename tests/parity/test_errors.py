"""What JAX refuses is refused with an exception of the same built-in class, in four parts, naming the
user's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import infini.numpy as inp
from infini.core import errors

# x: three floats
REFUSED = """
x + n.ones(4); x @ n.ones(4); n.matmul(2.0, x); n.sum(x, axis=2); n.reshape(x, (2, 2)); n.squeeze(x, 0)
n.stack([x, n.ones(4)]); n.split(x, 2); n.power(n.arange(3), -1); n.broadcast_to(x, (2,))
n.transpose(x, (1,)); n.zeros(2.5); n.uint8(300); n.asarray(2 ** 40); n.dot(x, n.ones(4))
n.einsum("i,j->k", x, x); n.einsum("ij->i", x); n.expand_dims(x, 5); n.bitwise_and(x, 1); ~x
n.linspace(0, 1, -1); n.max(n.zeros(0)); n.argmax(n.zeros(0)); n.concatenate([]); n.add([1], 2); n.sum([1])
x[0, 0]; x["a"]; x[[0, 1]]; x[1.0]; bool(x); hash(x); len(x[0]); iter(x[0]); x.at[0:2].set(n.zeros(3))
n.tensordot(x, n.ones(4), 1); n.stack([]); -n.asarray(True); n.asarray(True) - n.asarray(True)
n.concatenate([x, n.ones((3, 1))]); n.full((2,), n.ones(3)); n.moveaxis(x, 1, 0); n.cumsum(x, 1)
n.sort(x, 1); n.flip(x, 1)
""".replace("\n", ";")


@pytest.mark.parametrize("text", sorted({row.strip() for row in REFUSED.split(";") if row.strip()}))
def test_refusals(text: str) -> None:
    def refused(numpy: Any) -> BaseException:
        with pytest.raises(Exception) as caught:  # the class is what is compared
            eval(text, {"n": numpy, "x": numpy.ones(3)})
        return caught.value

    ours, theirs = refused(inp), refused(jnp)
    built_in = next(c for c in type(theirs).__mro__ if c.__module__ == "builtins")
    assert isinstance(ours, built_in), (type(ours), type(theirs), theirs)
    assert isinstance(ours, errors.InfiniError)


def test_an_error_has_four_parts_and_the_line() -> None:
    with pytest.raises(errors.TypeMismatchError) as caught:
        inp.ones((2, 3)) @ inp.ones((2, 3))
    text = str(caught.value)
    assert "f32[2,3] @ f32[2,3]" in text
    assert all(part in text for part in ("got:", "expected:", "fix:", f"{Path(__file__).name}:"))
