"""Checkpoints: model folders in Hugging Face's layout and GGUF files, as configurations and parameters."""

from infini.llm.checkpoints.loading import (
    Checkpoint as Checkpoint,
    check as check,
    load as load,
    read as read,
)
from infini.llm.checkpoints.placing import by_recipe as by_recipe

__all__ = ["Checkpoint", "by_recipe", "check", "load", "read"]
