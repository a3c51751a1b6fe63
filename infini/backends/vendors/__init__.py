"""Devices driven through their vendor's C libraries: one generic `ctypes` class, and a table per vendor.

A vendor is data (symbols, the order of arguments, constants, error codes) and the few functions that really
differ. `docs/adding-a-device.md` is the page for those who add one; a package outside the tree does it in the
same way and advertises itself under the entry point group `infini.backends`.
"""
