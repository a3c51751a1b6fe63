"""Arrays among other libraries: DLPack, copies, pickles, representation; tests/parity compares with JAX."""

import copy
import pickle
import sys

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import dlpack
from infini.core.mesh import P
from infini.core.sharding import NamedSharding

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


def test_dlpack_copies_unless_told_otherwise():
    host = X.copy()
    ours = infini.dlpack.from_dlpack(host)
    host[0, 0] = 9
    assert ours.tolist() == X.tolist()


def test_dlpack_without_a_copy_of_strided_memory_is_refused():
    with pytest.raises(BufferError, match="not in C order"):
        infini.dlpack.from_dlpack(X.T, copy=False)
    assert infini.dlpack.from_dlpack(X.T).tolist() == X.T.tolist()


def test_dlpack_of_something_else_is_a_named_error():
    with pytest.raises(TypeError, match="has no __dlpack__"):
        inp.from_dlpack(3)


def test_exported_memory_is_read_only_where_the_version_can_say_so():
    x = inp.asarray(X)
    shared = np.from_dlpack(x)
    assert not shared.flags.writeable and shared.ctypes.data == x.unsafe_buffer_pointer()


def test_a_consumer_that_may_write_gets_a_copy():
    class Old:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, stream=None):
            return self.x.__dlpack__(stream=stream)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    x = inp.asarray(X)
    copied = infini.dlpack.from_dlpack(Old(x), copy=False)
    assert copied.tolist() == x.tolist() and copied.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copy": False}, "might write"),
        ({"dl_device": (2, 0)}, "to that device"),
        ({"dl_device": (2, 0), "copy": False}, "without a copy"),
    ],
)
def test_exports_that_cannot_be_made_are_refused(options, message):
    with pytest.raises(BufferError, match=message):
        inp.asarray(X).__dlpack__(**options)


def test_a_donated_buffer_that_somebody_looks_at_is_not_overwritten():
    with infini.config(device="cpu"):
        x = inp.asarray(np.arange(4096, dtype=np.float32))
        shared = np.from_dlpack(x)
        infini.jit(lambda v: v * 2, donate_argnums=0)(x)
    assert shared[5] == 5


def test_a_capsule_that_nobody_takes_lets_its_memory_go():
    before = len(dlpack._exported)
    capsule = inp.asarray(X).__dlpack__()
    assert len(dlpack._exported) == before + 1
    del capsule
    assert len(dlpack._exported) == before


def test_a_capsule_is_taken_once():
    class Once:
        def __init__(self, capsule):
            self.capsule = capsule

        def __dlpack__(self, **options):
            return self.capsule

        def __dlpack_device__(self):
            return (1, 0)

    once = Once(inp.asarray(X).__dlpack__())
    infini.dlpack.from_dlpack(once)
    with pytest.raises(TypeError, match="used already"):
        infini.dlpack.from_dlpack(once)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python classes have a buffer protocol since 3.12")
def test_buffer_protocol():
    assert memoryview(inp.asarray(X)).tolist() == X.tolist()


def test_deepcopy_keeps_placement_and_weakness():
    with infini.config(cpu_devices=2):
        placed = infini.device_put(X, NamedSharding(infini.make_mesh((2,), ("a",)), P(None, None)))
        twin = copy.deepcopy(placed)
        assert twin.sharding == placed.sharding and twin.committed and twin.tolist() == placed.tolist()
    assert copy.deepcopy(inp.asarray(2.0)).weak


def test_the_namespace_is_infini_numpy():
    assert inp.asarray(X).__array_namespace__() is inp
    assert inp.asarray(X).__array_namespace__(api_version="2024.12") is inp
    with pytest.raises(ValueError, match=r"2021\.12"):
        inp.asarray(X).__array_namespace__(api_version="2021.12")


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
