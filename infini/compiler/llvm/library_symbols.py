"""Names of the routines of libraries in the text of task functions, for the emitters that call them and the
backend that gives them addresses. A process that only loads compiled programs needs no emitter to do that, so
they stand here alone.
"""

from __future__ import annotations

from typing import Final

# Of the symbols in the packages of OpenBLAS that SciPy's developers build.
LAPACK_PREFIX: Final = "scipy_"
TRANSFORM_PREFIX: Final = "numpy_fft_"
DATA_SUFFIX: Final = "_data"  # of the symbol of what a transform was registered with
# NumPy's transforms of lines, and by precision their types there: operand, factor, result.
TRANSFORM_LOOPS: Final = {
    "fft": {"s": "Ff->F", "d": "Dd->D"},
    "ifft": {"s": "Ff->F", "d": "Dd->D"},
    "rfft_n_even": {"s": "ff->F", "d": "dd->D"},
    "rfft_n_odd": {"s": "ff->F", "d": "dd->D"},
    "irfft": {"s": "Ff->f", "d": "Dd->d"},
}
WITH_DATA: Final = frozenset({"fft", "ifft"})  # those registered with something: the direction
