"""What every device with memory of its own and a Triton compiler shares: lowering to launches, the executable
that walks the steps, and the backend over a `Driver`.

CUDA's driver is CuPy's; those of the other vendors are `ctypes` over a table (`infini.backends.vendors`).
`docs/design/025-device-adapters.md` says what was decided.
"""
