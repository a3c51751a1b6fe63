"""Models in GGUF files: what they say, in Hugging Face's terms, and back.

`read` gives config.json and tensors by Hugging Face's names, `source` what `checkpoints.load` takes;
`write_model` makes the metadata and tensors of a GGUF file of them. `to_file` and `to_folder` convert whole
models, and `quantized` makes one of fewer bits. The format itself is `infini.io.gguf`.
"""

from infini.llm.checkpoints.gguf.converting import to_file, to_folder
from infini.llm.checkpoints.gguf.quantizing import MIXTURES, quantized
from infini.llm.checkpoints.gguf.reading import GGUFModel, read
from infini.llm.checkpoints.gguf.sources import Blocks, planes, source
from infini.llm.checkpoints.gguf.writing import file_type, write_model

__all__ = [
    "MIXTURES",
    "Blocks",
    "GGUFModel",
    "file_type",
    "planes",
    "quantized",
    "read",
    "source",
    "to_file",
    "to_folder",
    "write_model",
]
