"""Pytrees, with the names of `jax.tree`."""

from infini.core.tree import (
    all as all,
    flatten as flatten,
    flatten_with_path as flatten_with_path,
    leaves as leaves,
    map as map,
    map_with_path as map_with_path,
    reduce as reduce,
    structure as structure,
    transpose as transpose,
    unflatten as unflatten,
)
