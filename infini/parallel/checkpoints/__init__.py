"""Checkpoints of arrays that may be split over a mesh: each process writes its parts, any mesh reads them.

    checkpoints/step-00000200/{part-00000.safetensors, part-00001.safetensors, index.msgpack}

The index says of every array its dtype, its shape and where its pieces are, and of every file its length and
SHA-256. A checkpoint appears whole, under its name, or not at all. Nothing is unpickled: the structure of the
tree is that of a fresh one, and its arrays have the names of their places in it.
"""

from infini.parallel.checkpoints.reading import Checkpoint as Checkpoint, latest as latest, load as load
from infini.parallel.checkpoints.writing import (
    CheckpointWriteError as CheckpointWriteError,
    Pending as Pending,
    save as save,
)
