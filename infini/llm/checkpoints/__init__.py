"""Checkpoints: model folders in Hugging Face's layout and GGUF files, as configurations and parameters."""

from infini.llm.checkpoints.loading import Checkpoint as Checkpoint, load as load, read as read

__all__ = ["Checkpoint", "load", "read"]
