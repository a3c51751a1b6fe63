"""Operations that move elements without computing, under JAX's names."""

from infini.lax.view.broadcasting import (
    broadcast as broadcast,
    broadcast_in_dim as broadcast_in_dim,
    broadcast_in_dim_p as broadcast_in_dim_p,
    broadcast_like as broadcast_like,
    broadcast_shapes as broadcast_shapes,
    broadcast_to_rank as broadcast_to_rank,
    broadcasted_iota as broadcasted_iota,
    empty as empty,
    full as full,
    full_like as full_like,
    iota as iota,
    iota_p as iota_p,
)
from infini.lax.view.joining import (
    concatenate as concatenate,
    concatenate_p as concatenate_p,
    stack as stack,
    tile as tile,
)
from infini.lax.view.padding import (
    pad as pad,
    pad_p as pad_p,
)
from infini.lax.view.shapes import (
    collapse as collapse,
    expand_dims as expand_dims,
    reshape as reshape,
    reshape_p as reshape_p,
    rev as rev,
    rev_p as rev_p,
    squeeze as squeeze,
    transpose as transpose,
    transpose_p as transpose_p,
)
from infini.lax.view.slices import (
    index_in_dim as index_in_dim,
    slice as slice,
    slice_in_dim as slice_in_dim,
    slice_p as slice_p,
    split as split,
    unstack as unstack,
)
