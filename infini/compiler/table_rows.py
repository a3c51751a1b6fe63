"""The one form of gather that a kernel holds: rows of an operand, by numbers that are computed, as
`table[numbers]` gives them.

The table is indexed along its first dimension, a level of the operand, so that nothing of it is loaded but
the rows.
"""

from __future__ import annotations

from infini.core.ir import Equation
from infini.lax.indexing import GatherDimensionNumbers


def is_rows(equation: Equation) -> bool:
    """Whether an equation is a gather of rows."""
    if equation.op.name != "gather":
        return False
    table, numbers = equation.inputs
    dn: GatherDimensionNumbers = equation.attrs["dimension_numbers"]
    num_places = numbers.type.ndim - 1
    return (
        table.type.ndim > 0
        and table.type.shape[0] > 0
        and numbers.type.shape[-1] == 1
        and equation.attrs["slice_sizes"] == (1, *table.type.shape[1:])
        and dn.start_index_map == dn.collapsed_slice_dims == (0,)
        and not dn.operand_batching_dims
        and dn.offset_dims == tuple(range(num_places, num_places + table.type.ndim - 1))
    )
