"""Files: safetensors, model folders in Hugging Face's layout, and folders that appear whole or not at all."""

from infini.io.folders import check_replaceable, replacing_file, replacing_folder
from infini.io.hugging_face import ModelFiles, read_json, read_model, write_model
from infini.io.tensors import CorruptFileError, MissingFileError, read_tensors, write_tensors

__all__ = [
    "CorruptFileError",
    "MissingFileError",
    "ModelFiles",
    "check_replaceable",
    "read_json",
    "read_model",
    "read_tensors",
    "replacing_file",
    "replacing_folder",
    "write_model",
    "write_tensors",
]
