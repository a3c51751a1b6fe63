"""The command `infini`: training, generation, and what the machine offers. Written with typer and rich."""

from infini.cli.app import app, main

__all__ = ["app", "main"]
