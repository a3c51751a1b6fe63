"""Placements of parameters by their names: data parallel, tensor parallel, fully sharded. Trees of `P`
to annotate with.

Tensor parallelism splits the first of two products by columns and the second by rows, so one sum per
pair is all that is communicated (Megatron, arXiv:1909.08053). Fully sharded parameters are gathered
where they are used and their gradients scattered (ZeRO-3, arXiv:1910.02054); the partitioner finds both
from these placements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from infini.core import mesh as mesh_, tree
from infini.core.mesh import AbstractMesh, P

Specs = Any  # Any: a pytree of P
# Names of weights in the layout (out, in) of PyTorch and Hugging Face.
COLUMNS: Final = r"(q|k|v|qkv|gate|up)_proj|fc1|w1|w3|lm_head|embed"
ROWS: Final = r"(o|down)_proj|fc2|w2"


def specs_by_name(params: Any, patterns: Mapping[str, P], default: P = P()) -> Specs:  # noqa: B008  # frozen
    """A tree of `P` chosen by the first pattern that is found in the path of a leaf, such as
    `layers/0/mlp/up_proj`.

    Args:
        params: pytree of arrays.
        patterns: placements by regular expression.
        default: placement of the other leaves.
    """

    def choose(path: tuple[Any, ...], leaf: Any) -> P:
        name = tree.keystr(path, simple=True, separator="/")
        found = next((spec for pattern, spec in patterns.items() if re.search(pattern, name)), default)
        return P(*found[: len(leaf.shape)]) if len(leaf.shape) >= len(mesh_.trim(found)) else P()

    return tree.map_with_path(choose, params)


def data_parallel(params: Any) -> Specs:  # Any: a pytree of arrays
    """Every parameter on every device; split the batch with `P("data")`."""
    return tree.map(lambda leaf: P(), params)


def tensor_parallel(
    params: Any, axis: str = "model", *, columns: str = COLUMNS, rows: str = ROWS
) -> Specs:  # Any: a pytree of arrays
    """Weights (out, in) of first products split by `out`, of second ones by `in`; everything else on
    every device.

    Args:
        params: pytree of arrays.
        axis: mesh axis to split over.
        columns: names of weights split along their first dimension.
        rows: names of weights split along their second dimension.
    """
    return specs_by_name(params, {columns: P(axis, None), rows: P(None, axis)})


def fully_sharded(params: Any, mesh: AbstractMesh, axis: str = "data") -> Specs:  # Any: a pytree of arrays
    """Every parameter split along its first dimension that the axis divides, as FSDP does."""
    count = mesh.shape[axis]

    def choose(leaf: Any) -> P:
        at = next((d for d, size in enumerate(leaf.shape) if size and size % count == 0), None)
        return P() if at is None else P(*(None,) * at, axis)

    return tree.map(choose, params)
