"""Checkpoints: model folders in Hugging Face's layout and GGUF files, as configurations and parameters."""

from infini.llm.checkpoints.loading import Checkpoint as Checkpoint, load as load, read as read
from infini.llm.checkpoints.placing import by_recipe as by_recipe

__all__ = ["Checkpoint", "by_recipe", "load", "read"]
