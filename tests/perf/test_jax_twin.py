"""Our plain-function modules with their imports turned into JAX's; no JAX is needed for the text."""

from __future__ import annotations

import pytest

from infini.perf import jax_twin


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import infini as inf", "import jax as inf"),
        ("import infini.numpy as inp", "import jax.numpy as inp"),
        ("from infini import Array, lax", "from jax import Array, lax"),
        ("from infini import optim", "from infini_on_jax import optim"),
        ("from infini import Array, optim", "from jax import Array; from infini_on_jax import optim"),
        ("from infini.train import gpt", "from infini_on_jax.train import gpt"),
        ("from infini.lax import expert_layer", "from infini_on_jax.train.grouped import expert_layer"),
        ("from infini.core import errors", "from infini.core import errors"),
        ("    infini = 1  # import infini", "    infini = 1  # import infini"),
    ],
)
def test_imports_are_turned_into_those_of_jax(line: str, expected: str) -> None:
    assert jax_twin.rewritten(line) == expected
