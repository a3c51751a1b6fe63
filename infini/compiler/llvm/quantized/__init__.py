"""Products with matrices in few bits: kernels that read the bytes of `infini.lax.quantized` where they lie."""
