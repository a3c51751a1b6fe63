"""Dtypes and questions about them, under `jax.dtypes`'s names."""

from infini.core.dtypes import (
    canonicalize_dtype as canonicalize_dtype,
    extended as extended,
    float0 as float0,
    itemsize_bits as itemsize_bits,
    prng_key as prng_key,
    scalar_type_of as scalar_type_of,
)
from infini.core.errors import PromotionError as TypePromotionError  # noqa: F401  # JAX's name
from infini.numpy import (
    bfloat16 as bfloat16,
    finfo as finfo,
    iinfo as iinfo,
    issubdtype as issubdtype,
    result_type as result_type,
)
