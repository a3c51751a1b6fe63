"""Kernels as Triton source text, compiled ahead of time for NVIDIA and run under Triton's interpreter by
tests.

`emit` needs no Triton; only `compile` and `interpret` load it.
"""
