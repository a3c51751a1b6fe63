"""Models in GGUF files: what they say, in Hugging Face's terms, and back.

`read` gives config.json and tensors by Hugging Face's names; `write_model` makes the metadata and tensors of a
GGUF file of them. The format itself is `infini.io.gguf`.
"""

from infini.llm.checkpoints.gguf.reading import GGUFModel, read
from infini.llm.checkpoints.gguf.sources import Blocks, planes, source
from infini.llm.checkpoints.gguf.writing import file_type, write_model

__all__ = ["Blocks", "GGUFModel", "file_type", "planes", "read", "source", "write_model"]
