"""Pytrees, with the names of `jax.tree_util`."""

from infini.core.tree import (
    PyTreeDef as PyTreeDef,
    all as tree_all,
    flatten as tree_flatten,
    flatten_with_path as tree_flatten_with_path,
    keystr as keystr,
    leaves as tree_leaves,
    map as tree_map,
    map_with_path as tree_map_with_path,
    reduce as tree_reduce,
    register_dataclass as register_dataclass,
    register_pytree_node as register_pytree_node,
    structure as tree_structure,
    transpose as tree_transpose,
    unflatten as tree_unflatten,
)
