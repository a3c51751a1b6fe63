"""Text, tokens and batches: what a model is trained on."""
