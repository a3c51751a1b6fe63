"""Functions of arrays have JAX's parameters: names, kinds and defaults."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy
import pytest

import infini.numpy
from infini import lax

LAX = """
broadcast broadcast_in_dim broadcast_like broadcast_shapes broadcast_to_rank broadcasted_iota collapse
concatenate dynamic_index_in_dim dynamic_slice dynamic_slice_in_dim dynamic_update_index_in_dim
dynamic_update_slice dynamic_update_slice_in_dim empty expand_dims full full_like gather index_in_dim
index_take iota pad reshape rev scatter scatter_add scatter_apply scatter_max scatter_min scatter_mul
scatter_sub slice slice_in_dim split squeeze stack tile transpose unstack
"""
NUMPY = """
append apply_along_axis apply_over_axes arange argwhere array_equal array_equiv array_split asarray
atleast_1d atleast_2d atleast_3d block broadcast_arrays broadcast_shapes broadcast_to choose column_stack
compress concat concatenate copy delete diag diag_indices diag_indices_from diagflat diagonal dsplit dstack
empty empty_like expand_dims extract eye fill_diagonal flatnonzero flip fliplr flipud from_dlpack frombuffer
fromfile fromfunction fromiter fromstring full full_like geomspace hsplit hstack identity indices insert
isscalar iterable ix_ linspace logspace mask_indices matrix_transpose meshgrid moveaxis ndim nonzero ones
ones_like packbits pad permute_dims piecewise place put put_along_axis ravel ravel_multi_index repeat
reshape resize roll rollaxis rot90 select shape size split squeeze stack swapaxes take take_along_axis tile
transpose tri tril tril_indices tril_indices_from trim_zeros triu triu_indices triu_indices_from unpackbits
unravel_index unstack vander vectorize vsplit vstack where zeros zeros_like
"""
AT = "set add subtract multiply mul divide power min max apply get"


def parameters(function: Any) -> list[tuple[str, str, str]]:
    """Name, kind and default of each parameter; explicit shardings of results are not supported."""
    found = inspect.signature(function).parameters.values()
    return [
        (p.name, p.kind.name, getattr(p.default, "__name__", repr(p.default)))
        for p in found
        if p.name != "out_sharding"
    ]


@pytest.mark.parametrize("name", LAX.split())
def test_lax(name: str) -> None:
    assert parameters(getattr(lax, name)) == parameters(getattr(jax.lax, name))


@pytest.mark.parametrize("name", NUMPY.split())
def test_numpy(name: str) -> None:
    assert parameters(getattr(infini.numpy, name)) == parameters(getattr(jax.numpy, name))


@pytest.mark.parametrize("name", AT.split())
def test_updates(name: str) -> None:
    ours, theirs = (getattr(numpy.arange(3).at[0], name) for numpy in (infini.numpy, jax.numpy))
    assert parameters(ours) == parameters(theirs)
