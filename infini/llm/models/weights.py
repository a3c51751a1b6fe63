"""Tables of weights: where each has its place in the parameters of a model, and what files call it.

A table says all of them, so that loading can say exactly what is missing, unexpected or of a wrong shape, and
writing a file is the same table read backwards.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """One array of the parameters.

    Args:
        path: keys and numbers that lead to it from the root of the parameters.
        names: its name in files; several, where files have one for each expert.
        shape: its shape in the parameters; that of every expert begins with their number.
        kind: a matrix (out, in) may be quantised, as may the embedding table and the stacked matrices of
            experts; what is plain never is.
        stored_shape: shape of what files have under one name; `shape` (without the number of experts) when
            absent.
        part: which rows of what files have under the name, where several weights share it.
        heads: a matrix (heads, rows of each, in) in files flattened to (heads * rows, in): how many rows a
            head has there, of which `part` are this weight's.
        is_transposed: whether files have it as (in, out).
    """

    path: Path
    names: tuple[str, ...]
    shape: Shape
    kind: Literal["matrix", "embedding", "experts", "plain"] = "plain"
    stored_shape: Shape | None = None
    part: tuple[int, int] | None = None
    heads: int | None = None
    is_transposed: bool = False

    @property
    def file_shape(self) -> Shape:
        """Shape of what files have under one of its names."""
        if self.stored_shape is not None:
            return self.stored_shape
        own = self.shape[1:] if self.kind == "experts" else self.shape
        return own[::-1] if self.is_transposed else own


def put(params: dict[str, Any], path: Path, value: Any) -> None:  # Any: arrays, and trees of them
    """Give a place in a tree of dictionaries and lists a value; what leads to it is made on the way."""
    node: Any = params
    for key, after in itertools.pairwise(path):
        if isinstance(key, int):
            while len(node) <= key:
                node.append({})
            node = node[key]
        else:
            node = node.setdefault(key, [] if isinstance(after, int) else {})
    node[path[-1]] = value


def linear(
    path: Path,
    name: str,
    rows: int,
    columns: int,
    *,
    has_bias: bool = False,
    **how: Any,  # Any: fields of several kinds
) -> list[Weight]:
    """A matrix (rows, columns) with the name that files give it, and its bias where it has one.

    Args:
        path: where the matrix is; its bias is beside it, under the same key with `_bias`.
        name: what files call it, without `.weight`.
        rows: width of its result.
        columns: width of what it is multiplied by.
        has_bias: whether there is one.
        how: fields of `Weight` for the matrix, and `part` and `stored_shape` for the bias, too.
    """
    found = [Weight(path, (f"{name}.weight",), (rows, columns), kind="matrix", **how)]
    if has_bias:
        stored = how.get("stored_shape")
        beside: dict[str, Any] = {"part": how.get("part")}  # Any: fields of two kinds
        if stored is not None:
            beside["stored_shape"] = (stored[1] if how.get("is_transposed") else stored[0],)
        key = f"{path[-1]}_bias"
        found.append(Weight((*path[:-1], key), (f"{name}.bias",), (rows,), **beside))
    return found


def norm(path: Path, name: str, width: int, *, has_bias: bool = False) -> list[Weight]:
    """The weights of a norm."""
    found = [Weight(path, (f"{name}.weight",), (width,))]
    if has_bias:
        found.append(Weight((*path[:-1], f"{path[-1]}_bias"), (f"{name}.bias",), (width,)))
    return found
