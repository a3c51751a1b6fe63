"""Arrays look and exchange as JAX's: representation, conversions, shards, DLPack with PyTorch."""

from __future__ import annotations

import copy
import operator
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import infini as inf
import infini.numpy as inp
from infini.core.mesh import P as OurP
from infini.core.sharding import NamedSharding as OurNamedSharding

# --- representation -------------------------------------------------------------------------------

VALUES = {
    "scalar": 1.5,
    "numpy scalar": np.float32(1.5),
    "boolean": True,
    "integer": np.int32(7),
    "complex": np.asarray([1 + 2j], np.complex64),
    "empty": np.zeros((0, 3), np.float32),
    "empty vector": np.zeros(0, np.int8),
    "small": np.asarray([1, 2], np.uint8),
    "two lines": np.arange(30, dtype=np.int32),
    "floats": np.arange(30, dtype=np.float32) * 1.5,
    "three dimensions": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "long": np.zeros(2000, np.float32),
    "wide range": np.asarray([1e-8, 1e8], np.float32),
    "not finite": np.asarray([np.nan, np.inf], np.float32),
    "dtype on a line of its own": np.arange(13, dtype=np.int32) * 100000,
    "dtype just fits": np.arange(11, dtype=np.int32) * 123456,
    "half": np.asarray([1.5, 2], np.float16),
}


@pytest.mark.parametrize("name", VALUES)
def test_representation(name):
    assert repr(inp.asarray(VALUES[name])) == repr(jnp.asarray(VALUES[name]))
    assert str(inp.asarray(VALUES[name])) == str(jnp.asarray(VALUES[name]))


@pytest.mark.parametrize("width", [60, 75, 120])
def test_representation_follows_numpys_print_options(width):
    x = np.linspace(0, 1, 12, dtype=np.float32)
    with np.printoptions(linewidth=width, precision=3):
        assert repr(inp.asarray(x)) == repr(jnp.asarray(x))


# --- conversions ----------------------------------------------------------------------------------

CONVERSIONS = {
    "int": int,
    "float": float,
    "complex": complex,
    "bool": bool,
    "index": operator.index,
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "tobytes": lambda x: x.tobytes(),
    "bytes": bytes,
    "item of one": lambda x: x.item(0),
    "format": lambda x: f"{x:.2f}",
    "asarray": np.asarray,
    "shared": lambda x: np.asarray(x, copy=False),
    "as float64": lambda x: np.asarray(x, dtype="float64"),
    "shared as float64": lambda x: np.asarray(x, dtype="float64", copy=False),
    "hash": hash,
    "is writable": lambda x: (np.asarray(x).flags.writeable, np.array(x).flags.writeable),
    "pickle": lambda x: np.asarray(pickle.loads(pickle.dumps(x))),
    "deepcopy": lambda x: np.asarray(copy.deepcopy(x)),
    "weakness survives": lambda x: (pickle.loads(pickle.dumps(x)).weak_type, copy.deepcopy(x).weak_type),
    "sizes": lambda x: (x.nbytes, x.itemsize, x.size, x.ndim, x.on_device_size_in_bytes()),
    "states": lambda x: (
        x.is_ready(),
        x.is_deleted(),
        x.is_fully_addressable,
        x.is_fully_replicated,
        x.committed,
    ),
    "type": lambda x: (x.aval.shape, x.aval.dtype, x.weak_type),
    "shard": lambda x: [(s.index, s.replica_id, np.asarray(s.data)) for s in x.addressable_shards],
    "dlpack device": lambda x: tuple(map(int, x.__dlpack_device__())),
    "namespace": lambda x: x.__array_namespace__().__name__.rpartition(".")[2],
}
OPERANDS = {
    "scalar": np.float32(1.5),
    "weak": 2,
    "one": np.ones((1,), np.float32),
    "one by one": np.ones((1, 1), np.int32),
    "integer": np.int32(3),
    "boolean": np.bool_(True),
    "vector": np.arange(3, dtype=np.float32),
    "empty": np.zeros(0, np.int8),
    "complex": np.complex64(1j),
}


def outcome(function, x):
    try:
        return function(x)
    except Exception as error:  # noqa: BLE001  # the kind of error is what is compared
        return next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions(name, operand):
    theirs = outcome(CONVERSIONS[name], jnp.asarray(OPERANDS[operand]))
    ours = outcome(CONVERSIONS[name], inp.asarray(OPERANDS[operand]))
    np.testing.assert_equal(ours, theirs)
    assert type(ours) is type(theirs)


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [("a", "b"), ("b", None), (None, "a"), (None, None), (("a", "b"), None)])
def test_shards(axes):
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    devices = jax.devices("cpu")
    with inf.config(cpu_devices=4):
        ours = inf.device_put(x, OurNamedSharding(inf.make_mesh((2, 2), ("a", "b")), OurP(*axes)))
        found = [(s.index, s.replica_id, np.asarray(s.data)) for s in ours.addressable_shards]
        assert ours.is_fully_replicated == (axes == (None, None)) and len(ours.global_shards) == 4
    if len(devices) < 4:
        # JAX shows one device here; its indices follow from the sharding alone.
        mesh = jax.sharding.AbstractMesh((2, 2), ("a", "b"))
        shape = jax.sharding.NamedSharding(mesh, jax.P(*axes)).shard_shape(x.shape)
        assert {part.shape for _, _, part in found} == {shape}
    for index, _, part in found:
        np.testing.assert_array_equal(x[index], part)
    seen = {}
    for index, replica, _ in found:
        assert replica == seen.setdefault(repr(index), 0)
        seen[repr(index)] += 1


# --- DLPack ---------------------------------------------------------------------------------------

DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16",
    "uint32", "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def tensor(dtype):
    return torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_torch_and_back_without_a_copy(dtype):
    theirs = tensor(dtype)
    ours = inf.dlpack.from_dlpack(theirs, copy=False)
    assert ours.dtype.name == dtype and ours.unsafe_buffer_pointer() == theirs.data_ptr()
    back = torch.from_dlpack(ours)
    assert back.dtype == theirs.dtype and back.data_ptr() == theirs.data_ptr()
    assert back.tolist() == theirs.tolist() == ours.tolist()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if not d.endswith("64") and d != "complex128"])
def test_with_jax_both_ways(dtype):
    ours = inp.asarray(np.arange(6).reshape(2, 3)).astype(dtype)
    theirs = jnp.from_dlpack(ours)
    assert theirs.dtype == ours.dtype and theirs.tolist() == ours.tolist()
    assert inf.dlpack.from_dlpack(theirs).tolist() == ours.tolist()


def test_memory_stays_as_long_as_torch_needs_it():
    back = torch.from_dlpack(inp.arange(1000.0))
    others = [inp.zeros(1000) for _ in range(8)]
    assert back.tolist() == list(range(1000)) and len(others) == 8


def test_memory_of_torch_stays_as_long_as_the_array():
    ours = inf.dlpack.from_dlpack(torch.arange(1000.0), copy=False)
    others = [torch.zeros(1000) for _ in range(8)]
    assert ours.tolist() == list(range(1000)) and len(others) == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "object"])
def test_supported_dtypes(dtype):
    assert inf.dlpack.is_supported_dtype(dtype) == (dtype != "object")
