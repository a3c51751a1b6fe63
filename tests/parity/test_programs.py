"""Five programs written for JAX run on infini after their imports are changed, with equal results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

PROGRAMS = Path(__file__).parent / "programs"
# Results of these are sums of bfloat16 products in another order.
COARSE = {"attention": 0.06}


def results(path: Path, package: str) -> Any:  # Any: a pytree of arrays
    source = path.read_text(encoding="utf-8")
    if package != "jax":
        source = re.sub(r"^import jax$", f"import {package} as jax", source, flags=re.MULTILINE)
        source = re.sub(r"^(import|from) jax\b", rf"\1 {package}", source, flags=re.MULTILINE)
    namespace: dict[str, Any] = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace["main"]()


@pytest.mark.parametrize("name", sorted(p.stem for p in PROGRAMS.glob("*.py")))
def test_a_program_gives_equal_results_on_both(name: str) -> None:
    path = PROGRAMS / f"{name}.py"
    found, expected = results(path, "infini"), results(path, "jax")
    bound = COARSE.get(name, 2e-4)
    wanted = jax.tree.leaves_with_path(expected)
    leaves = jax.tree.leaves(found)
    assert len(leaves) == len(wanted)
    for leaf, (where, other) in zip(leaves, wanted, strict=True):
        assert leaf.dtype == other.dtype and leaf.shape == other.shape, where
        np.testing.assert_allclose(
            np.asarray(leaf), np.asarray(other), rtol=bound, atol=bound, err_msg=f"{name} {where}"
        )
