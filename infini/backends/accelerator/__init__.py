"""What every device with memory of its own and a Triton compiler shares: lowering to launches, the executable
that walks the steps, and the backend over a `Driver`.

    backend      compiles programs; one for a mesh by way of `spmd`
    executable   one run of a program: steps, addresses, recordings
    driver       memory, streams and launches of one device
    aside        a second stream of every device
    exchanges    collectives between the memories of devices
    groups       devices that reach each other, and a vendor's library
    lookout      who waits for an exchange

CUDA's driver is CuPy's; those of the other vendors are `ctypes` over a table (`infini.backends.vendors`).
`docs/design/025-device-adapters.md` says what was decided.
"""
