"""Contractions whose rows belong to groups of run-time sizes."""

from infini.lax.ragged.functions import (
    RaggedDotDimensionNumbers as RaggedDotDimensionNumbers,
    ragged_dot as ragged_dot,
    ragged_dot_general as ragged_dot_general,
)
from infini.lax.ragged.operation import ragged_dot_p as ragged_dot_p
