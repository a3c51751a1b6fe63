"""Products with matrices in few bits: kernels that read the bytes of `lax.quantized` where they lie."""
