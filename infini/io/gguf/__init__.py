"""GGUF, the files of llama.cpp: reading, writing, and ggml's types of quantised numbers.

`read` opens a model, `write` makes one, `dequantize` and `quantize` turn blocks into floats and back. Nothing of
the package `gguf` is used; the tests compare with it.
"""

from infini.io.gguf.dequantizers import dequantize
from infini.io.gguf.quantizers import quantize
from infini.io.gguf.reader import GGUFFile, GGUFTensor, read, shards
from infini.io.gguf.types import FLOATS, TYPES, GGUFError, TensorType, ValueType, type_of
from infini.io.gguf.values import Metadata, Value, value_of
from infini.io.gguf.writer import Shards, tensor, write

__all__ = [
    "FLOATS",
    "TYPES",
    "GGUFError",
    "GGUFFile",
    "GGUFTensor",
    "Metadata",
    "Shards",
    "TensorType",
    "Value",
    "ValueType",
    "dequantize",
    "quantize",
    "read",
    "shards",
    "tensor",
    "type_of",
    "value_of",
    "write",
]
