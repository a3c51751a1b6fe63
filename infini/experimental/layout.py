"""Layouts of arrays in memory, with the names of `jax.experimental.layout`."""

from infini.core.formats import Format as Format
from infini.core.layout import Layout as Layout
from infini.transforms.placement import with_layout_constraint as with_layout_constraint
