"""Matrices stored in few bits: schemes, the array type, and the product with activations."""

from infini.lax.quantized.array import (
    QuantizedArray as QuantizedArray,
    from_ggml as from_ggml,
    quantize as quantize,
    quantized_matmul as quantized_matmul,
)
from infini.lax.quantized.operation import quantized_matmul_p as quantized_matmul_p
