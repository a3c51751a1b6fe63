"""GGUF, the files of llama.cpp: reading, writing, and ggml's types of quantised numbers.

`read` opens a model, `write` makes one, `dequantize` and `quantize` turn blocks into floats and back.
Nothing of the package `gguf` is used; the tests compare with it.
"""

from infini.io.gguf.comparing import Difference, Fault, differences, faults
from infini.io.gguf.dequantizers import dequantize
from infini.io.gguf.quantizers import quantize
from infini.io.gguf.reader import SPLIT_KEYS, GGUFFile, GGUFTensor, read, shards, stem_of
from infini.io.gguf.types import FLOATS, TYPES, GGUFError, TensorType, ValueType, type_of
from infini.io.gguf.values import Metadata, Value, value_of
from infini.io.gguf.writer import Listener, Shards, tensor, write

__all__ = [
    "FLOATS",
    "SPLIT_KEYS",
    "TYPES",
    "Difference",
    "Fault",
    "GGUFError",
    "GGUFFile",
    "GGUFTensor",
    "Listener",
    "Metadata",
    "Shards",
    "TensorType",
    "Value",
    "ValueType",
    "dequantize",
    "differences",
    "faults",
    "quantize",
    "read",
    "shards",
    "stem_of",
    "tensor",
    "type_of",
    "value_of",
    "write",
]
