"""Windows along the dimensions of an array: their geometry, the array of them, and reductions over them."""

from infini.lax.windows.functions import (
    reduce_window as reduce_window,
    reduce_window_shape_tuple as reduce_window_shape_tuple,
)
from infini.lax.windows.padding import padtype_to_pads as padtype_to_pads
from infini.lax.windows.reductions import (
    reduce_window_max_p as reduce_window_max_p,
    reduce_window_min_p as reduce_window_min_p,
    reduce_window_sum_p as reduce_window_sum_p,
)
from infini.lax.windows.selection import (
    select_and_gather_add_p as select_and_gather_add_p,
    select_and_scatter_add_p as select_and_scatter_add_p,
)
from infini.lax.windows.unfolding import unfold_p as unfold_p
