"""The table of the Array API standard's functions against those of `infini.numpy`, as `docs/array-api.md`.

`python -m tools.array_api` writes it. Source: https://data-apis.org/array-api/2024.12/
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import infini.numpy as inp

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "array-api.md"

STANDARD: Final[dict[str, str]] = {
    "Constants": "e inf nan newaxis pi",
    "Creation": "arange asarray empty empty_like eye from_dlpack full full_like linspace meshgrid ones "
    "ones_like tril triu zeros zeros_like",
    "Dtypes": "bool complex64 complex128 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64",
    "Dtype functions": "astype can_cast finfo iinfo isdtype result_type",
    "Elementwise": "abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert "
    "bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide "
    "equal exp expm1 floor floor_divide greater greater_equal hypot imag isfinite isinf isnan less "
    "less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum "
    "minimum multiply negative nextafter not_equal positive pow real reciprocal remainder round sign "
    "signbit sin sinh sqrt square subtract tan tanh trunc",
    "Indexing": "take take_along_axis",
    "Inspection": "__array_api_version__ __array_namespace_info__",
    "Linear algebra": "matmul matrix_transpose tensordot vecdot",
    "Manipulation": "broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat "
    "reshape roll squeeze stack tile unstack",
    "Searching": "argmax argmin count_nonzero nonzero searchsorted where",
    "Sets": "unique_all unique_counts unique_inverse unique_values",
    "Sorting": "argsort sort",
    "Statistics": "cumulative_prod cumulative_sum max mean min prod std sum var",
    "Utilities": "all any diff",
    "Extension `linalg`": "linalg.cholesky linalg.cross linalg.det linalg.diagonal linalg.eigh "
    "linalg.eigvalsh linalg.inv linalg.matmul linalg.matrix_norm linalg.matrix_power linalg.matrix_rank "
    "linalg.matrix_transpose linalg.outer linalg.pinv linalg.qr linalg.slogdet linalg.solve linalg.svd "
    "linalg.svdvals linalg.tensordot linalg.trace linalg.vecdot linalg.vector_norm",
    "Extension `fft`": "fft.fft fft.fftfreq fft.fftn fft.fftshift fft.hfft fft.ifft fft.ifftn "
    "fft.ifftshift fft.ihfft fft.irfft fft.irfftn fft.rfft fft.rfftfreq fft.rfftn",
}

_HEAD: Final = """# The Array API standard

The standard's names, version 2024.12, against those of `infini.numpy`. An array gives the namespace by
`x.__array_namespace__()`. Names that are missing are marked; nothing stands for them. The table is written
by `python -m tools.array_api`, and a test compares it with the code.

| Part | There | Missing |
|---|---|---|
"""


def has(name: str) -> bool:
    """Whether `infini.numpy` has a name, which may have a dot."""
    found: object = inp
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def page() -> str:
    """The page as it should be."""
    rows = []
    for part, names in STANDARD.items():
        there = [f"`{name}`" for name in names.split() if has(name)]
        missing = [f"`{name}`" for name in names.split() if not has(name)]
        rows.append(f"| {part} | {' '.join(there) or 'none'} | {' '.join(missing) or 'none'} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
