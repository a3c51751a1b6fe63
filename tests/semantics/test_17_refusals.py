"""Design 4a.17: nothing is ever unpickled; arrays themselves copy and pickle for the user's own use."""

import ast
import copy
import pickle
from pathlib import Path

import numpy as np

import infini
import infini.numpy as inp

FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def test_no_module_imports_a_pickler():
    for path in Path(infini.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not FORBIDDEN & {name.split(".")[0] for name in names}, path


def test_numpy_files_are_read_without_pickle():
    for path in Path(infini.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_arrays_copy_and_pickle():
    x = inp.arange(3.0)
    for y in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        np.testing.assert_array_equal(y, x)
        assert y.dtype == x.dtype
