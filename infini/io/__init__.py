"""Files: model folders as Hugging Face writes them, and folders that appear whole or not at all."""

from infini.io.folders import replacing_folder
from infini.io.hugging_face import CorruptFileError, MissingFileError, ModelFiles, read_model, write_model

__all__ = [
    "CorruptFileError",
    "MissingFileError",
    "ModelFiles",
    "read_model",
    "replacing_folder",
    "write_model",
]
