"""Kernels as files: built ahead of time for processors and GPUs, and run where no compiler is.

`building` needs the compilers; `loading` needs none of them. Users find both under `infini.tile`.
"""
