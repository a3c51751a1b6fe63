"""Random programs whose every number is small and whole, so that every backend must give the same bits.

Sums of whole numbers do not round, whatever their order; what may grow is clamped to [-8, 8], which even
floats of 8 bits hold. Comparisons, sorts, conversions and indices are then tested in the middle of programs,
and dots, convolutions and loops with them, in every dtype. Needs hypothesis.
"""

from infini.testing.whole_numbers.common import (
    BOUND as BOUND,
    DTYPES as DTYPES,
    REAL as REAL,
    arguments as arguments,
    shapes as shapes,
    values as values,
)
from infini.testing.whole_numbers.nests import MAKERS as MAKERS, programs as programs
