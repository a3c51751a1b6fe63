"""Launches held against the cubins themselves, and memory that nobody holds any more.

The stand-in for CuPy compiles here, so what the driver packs is compared with the parameters that the machine
code has, and not with what the emitter believes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
from infini import lax
from infini.backends import cuda
from infini.backends.cuda import driver
from infini.backends.reference import interpreter
from infini.compiler.triton import compile as compile_
from infini.compiler.triton.target import nvidia
from infini.core import trace
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType
from tests.backends import cubin_parameters, fake_cupy
from tests.backends.fake_cupy import Machine

DEVICE = Device("cuda", 0)


@pytest.fixture
def machine(monkeypatch: Any, tmp_path_factory: Any) -> Machine:
    """A machine that compiles; compiled once for the tests of this file."""
    folder: Path = tmp_path_factory.getbasetemp() / "cubins of launches"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    made = Machine()
    made.compiles = True
    return made.install(monkeypatch)


@pytest.fixture
def backend(machine: Machine) -> cuda.CudaBackend:
    return cuda.CudaBackend()


PROGRAMS: dict[str, Callable[..., Any]] = {
    "exp of a sum": lambda x: lax.exp(x + x),
    "softmax": lambda x: inf.nn.softmax(x, axis=-1),
    "sort": lambda x: lax.sort(x[:, :8]),
    "running sum": lambda x: lax.cumsum(x, axis=0),
    "rows by number": lambda x: x[inf.numpy.asarray([3, 1])],
    "columns that are summed": lambda x: x.sum(axis=0),
    "a product": lambda x: x @ x.T,
    "halves": lambda x: x.astype("bfloat16") * 2,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_launches_fit_the_parameters_of_the_machine_code(
    name: str, backend: Any, machine: Machine, monkeypatch: Any
) -> None:
    machine.has_cublas = False
    monkeypatch.setattr(driver.Driver, "cublas", lambda self: None)
    x = np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32)
    program = trace.stage(lambda x: [PROGRAMS[name](x)], [ArrayType(x.shape, x.dtype)]).program
    with inf.config(no_cache=True):
        executable = backend.compile(program, CompileOptions())
        (found,) = executable([backend.put(x, DEVICE)])
    assert machine.cubins and machine.count("launch") == executable.num_tasks
    (want,) = interpreter.evaluate(program, [x])
    got = backend.get(found, program.out_types[0])
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("capability", [80, 90])
def test_a_scalar_lies_where_the_machine_code_reads_it(capability: int) -> None:
    text = (
        "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
        "def fill(y, a, n, b):\n    i = tl.arange(0, 32)\n    tl.store(y + i, a * b, mask=i < n)\n"
    )
    signature = (("y", "*fp32"), ("a", "fp32"), ("n", "i64"), ("b", "fp32"))
    source = fake_cupy.TritonSource(text, "fill", signature, (), ("y",), (1,), 1, 1, ("y0", "a", "n", "b"))
    cubin = compile_.compile_source(source, nvidia(capability))
    table = cubin_parameters.table_of(cubin.code, cubin.function_name)
    assert [(p.offset, p.nbytes) for p in table.parameters[:4]] == [(0, 8), (8, 4), (16, 8), (24, 4)]
    packed = [driver.pack(kind, 1) for kind in cubin.parameters]
    assert [p.nbytes for p in packed] == [p.nbytes for p in table.parameters[:4]]
    assert table.block == (32, 1, 1)


def test_a_launch_with_a_parameter_too_few_is_seen(backend: Any, machine: Machine) -> None:
    x = np.ones((8, 24), np.float32)
    program = trace.stage(lambda x: [lax.exp(x)], [ArrayType(x.shape, x.dtype)]).program
    backend.compile(program, CompileOptions())([backend.put(x, DEVICE)])
    (loaded,) = backend.driver(0)._functions.values()
    arguments = [np.uint64(0)] * (len(loaded.parameters) + 1)
    with pytest.raises(AssertionError, match="as many parameters"):
        loaded.handle.check(next(iter(machine.cubins.values())), (loaded.threads, 1, 1), arguments)


# --- memory ----------------------------------------------------------------------------------


def test_memory_is_poisoned_when_its_last_reference_goes() -> None:
    machine = Machine()
    first = machine.alloc(64)
    second, address = first, first.ptr
    del first
    assert not np.isnan(fake_cupy.memory_at(address, 64).view(np.float32)).any()
    del second
    assert np.isnan(fake_cupy.memory_at(address, 64).view(np.float32)).all()
    assert machine.bytes_in_use == 0


@pytest.mark.parametrize("num_calls", [1, 2, 5])
def test_results_outlive_the_inputs_and_the_program(num_calls: int, backend: Any, machine: Machine) -> None:
    """By launches, by the recording, and by several of its results at once."""
    machine.compiles = False
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)

    def function(x: Any) -> list[Any]:
        return [lax.exp(x), lax.cumsum(x, axis=1), lax.cumsum(x, axis=0), lax.rev(x, (0,))]

    program = trace.stage(function, [ArrayType(x.shape, x.dtype)]).program
    executable = backend.compile(program, CompileOptions())
    results = [executable([backend.put(x + i, DEVICE)]) for i in range(num_calls)]
    del executable
    for i, found in enumerate(results):
        wanted = interpreter.evaluate(program, [x + i])
        for buffer, type_, want in zip(found, program.out_types, wanted, strict=True):
            np.testing.assert_allclose(backend.get(buffer, type_), want, rtol=1e-5, atol=1e-5)
