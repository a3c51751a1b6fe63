"""Checkpoints: folders in Hugging Face's layout and GGUF files."""
