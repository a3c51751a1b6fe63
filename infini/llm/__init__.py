"""Running language models."""
