"""Arrays among other libraries: DLPack, copies, pickles, representation."""

import copy
import pickle

import numpy as np
import pytest

import infini
import infini.numpy as inp

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_dlpack_to_numpy_and_back():
    assert np.array_equal(np.from_dlpack(inp.asarray(X)), X)
    assert np.array_equal(inp.from_dlpack(X), X)


def test_dlpack_keeps_64_bits():
    assert inp.from_dlpack(np.arange(3, dtype=np.int64)).dtype == np.int64


def test_dlpack_without_a_copy_shares_memory():
    host = X.copy()
    shared = inp.from_dlpack(host, copy=False)
    assert shared.buffers[0].address == host.ctypes.data


def test_dlpack_of_something_else_is_a_named_error():
    with pytest.raises(TypeError, match="DLPack"):
        inp.from_dlpack(3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_pickle_and_deepcopy(dtype):
    x = inp.asarray(X).astype(dtype)
    for other in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert other.dtype == x.dtype and np.array_equal(np.asarray(other), np.asarray(x))


def test_numpy_arrays_leave_operators_to_us():
    assert isinstance(X * inp.asarray(X), infini.Array) and isinstance(
        np.float32(2) * inp.asarray(X), infini.Array
    )


def test_numpy_functions_take_arrays():
    assert isinstance(np.sin(inp.asarray(X)), np.ndarray)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (lambda: inp.asarray(1.5), "Array(1.5, dtype=float32, weak_type=True)"),
        (lambda: inp.zeros((0, 3)), "Array([], shape=(0, 3), dtype=float32)"),
        (lambda: inp.ones(2, "bfloat16"), "Array([1., 1.], dtype=bfloat16)"),
    ],
)
def test_repr(x, text):
    assert repr(x()) == text


def test_arrays_are_not_hashable_and_the_error_says_what_to_do():
    with pytest.raises(TypeError, match="not hashable"):
        hash(inp.ones(2))


def test_a_leaked_tracer_says_where_it_was_born():
    box = []
    infini.jit(lambda x: box.append(x))(1.0)
    with pytest.raises(infini.InfiniError, match=r"test_array\.py:\d+"):
        box[0] + 1
