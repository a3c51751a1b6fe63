"""Arrays stored in few bits. `lax.quantized_matmul` multiplies by them, `nn.quantize` stores the weights of a
model so.
"""

from infini.lax.quantized.array import (
    QuantizedArray as QuantizedArray,
    from_ggml as from_ggml,
    quantize as quantize,
)
from infini.lax.quantized.scheme import (
    Q2_K as Q2_K,
    Q3_K as Q3_K,
    Q4_0 as Q4_0,
    Q4_1 as Q4_1,
    Q4_K as Q4_K,
    Q5_0 as Q5_0,
    Q5_1 as Q5_1,
    Q5_K as Q5_K,
    Q6_K as Q6_K,
    Q8_0 as Q8_0,
    Scheme as Scheme,
    int4 as int4,
    int8 as int8,
)
