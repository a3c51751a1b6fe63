"""`tile.build` and `tile.load`: a kernel in a folder gives what the kernel gives, and refuses the rest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import infini as inf
from infini import lax, tile
from infini.backends import cuda
from infini.backends.cpu import ahead, processor
from infini.compiler.llvm import target as target_
from infini.core import backend as backend_, dtypes, errors
from infini.core.backend import Device
from infini.core.ir import ArrayType
from infini.export import manifest
from infini.tile import Tensor
from tests.backends.fake_cupy import Machine
from tests.tile import kernels

ROOT = Path(__file__).resolve().parents[2]


def of(*shape: int, dtype: Any = dtypes.float32) -> ArrayType:
    return ArrayType(shape, dtype)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "built"


# --- on the CPU --------------------------------------------------------------------------------

CASES: dict[str, tuple[Any, list[ArrayType]]] = {
    "softmax": (kernels.softmax, [of(5, 37)]),
    "wide": (kernels.add_gelu, [of(100_000)] * 2),  # several tasks, which threads share
    "matmul": (kernels.matmul, [of(70, 50), of(50, 40)]),
    "bfloat16": (kernels.rms_norm, [of(6, 20, dtype=dtypes.bfloat16), of(20, dtype=dtypes.bfloat16)]),
}


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64", "cpu:x86-64-v3"])
@pytest.mark.parametrize("name", CASES)
def test_a_built_kernel_gives_what_the_kernel_gives(name: str, target: str, folder: Path, rng: Any) -> None:
    kernel, types = CASES[name]
    if target != "cpu" and (
        not target_.host_target().is_x86 or processor.missing(processor.target(target[4:]))
    ):
        pytest.skip(f"this processor is no {target}")
    operands = [normal(rng, *t.shape).astype(t.dtype) for t in types]
    loaded = tile.load(tile.build(kernel, [types], [target], folder))
    found, expected = loaded(*operands), kernel(*operands)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    bound = 8 * float(np.finfo(np.float32).eps if types[0].dtype == dtypes.float32 else 2**-8)
    np.testing.assert_allclose(
        np.asarray(found).astype(np.float32), np.asarray(expected).astype(np.float32), rtol=bound, atol=bound
    )


ALONE = """
import sys
for name in ("llvmlite", "triton", "sympy", "cupy"):
    sys.modules[name] = None
import numpy as np
from infini import tile
loaded = tile.load(sys.argv[1])
x = np.arange(60_000, dtype=np.float32).reshape(300, 200) / 1e4
weights = np.exp(x - x.max(1, keepdims=True))
np.testing.assert_allclose(loaded(x), weights / weights.sum(1, keepdims=True), rtol=1e-5)
loaded_packages = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
assert not loaded_packages & {"llvmlite", "triton", "sympy"}
print("done")
"""


@pytest.mark.skipif(not ahead.elf.is_supported(), reason="elsewhere LLVM's linker loads objects")
def test_a_built_kernel_runs_without_a_compiler(folder: Path, tmp_path: Path) -> None:
    tile.build(kernels.softmax, [[of(300, 200)]], ["cpu"], folder)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": "", "INFINI_CACHE_DIR": str(tmp_path / "empty"), "INFINI_NUM_THREADS": "2"},
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_the_signature_is_chosen_by_the_operands(folder: Path, rng: Any) -> None:
    types = [[of(3, 4)], [of(5, 4)], [of(3, 4, dtype=dtypes.float16)]]
    loaded = tile.load(tile.build(kernels.softmax, types, ["cpu"], folder))
    for (type_,) in types:
        found = loaded(normal(rng, *type_.shape).astype(type_.dtype))
        assert found.type == type_
    with pytest.raises(errors.TypeMismatchError, match=r"f32\[4,4\][^$]*f32\[3,4\][^$]*f16\[3,4\]"):
        loaded(normal(rng, 4, 4))


def test_a_python_number_takes_the_dtype_of_the_signature(folder: Path) -> None:
    x = Tensor(1)
    scaled = tile.kernel(
        lambda x, a, y: (x.tile((8,)), a, y.tile((8,))),
        tensors=(x, Tensor(0, dtype="bfloat16"), Tensor(shape=x.shape)),
    )(lambda x, a: lax.mul(x, lax.broadcast_in_dim(a, x.shape, ())))
    types = [of(20, dtype=dtypes.bfloat16), of(dtype=dtypes.bfloat16)]
    loaded = tile.load(tile.build(scaled, [types], ["cpu"], folder))
    np.testing.assert_array_equal(loaded(np.ones(20, dtypes.bfloat16), 3).astype("float32"), np.full(20, 3.0))


def test_several_results_and_static_options_are_built(folder: Path, rng: Any) -> None:
    x = Tensor(1)
    both = tile.kernel(
        lambda *ts: [t.tile((16,)) for t in ts],
        tensors=(x, Tensor(shape=x.shape), Tensor(shape=x.shape, dtype="int32")),
        num_results=2,
        name="both",
    )(lambda x, *, factor: (lax.mul(x, factor), lax.floor(x)))
    loaded = tile.load(tile.build(both, [[of(40)]], ["cpu"], folder, factor=3.0))
    operand = normal(rng, 40)
    scaled, floor = loaded(operand)
    np.testing.assert_allclose(scaled, operand * 3)
    np.testing.assert_array_equal(floor, np.floor(operand).astype(np.int32))


# --- what does not fit -------------------------------------------------------------------------


def retarget(folder: Path, **changes: Any) -> None:
    """Pretend that the code in a folder is for another processor."""
    fields = msgpack.unpackb((folder / manifest.NAME).read_bytes())
    for binary in fields["binaries"]:
        binary["facts"]["target"] |= changes
    (folder / manifest.NAME).write_bytes(msgpack.packb(fields))


@pytest.mark.skipif(not target_.host_target().is_x86, reason="names of x86")
def test_code_for_features_that_are_absent_is_refused(folder: Path, monkeypatch: Any) -> None:
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu:x86-64-v3"], folder)
    monkeypatch.setattr(processor, "features", lambda: frozenset({"sse3", "avx"}))
    with pytest.raises(errors.DeviceError, match=r"softmax[^$]*without avx2, bmi"):
        tile.load(folder)


def test_code_for_another_architecture_is_refused(folder: Path) -> None:
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    retarget(folder, triple="riscv64-unknown-linux-gnu")
    with pytest.raises(errors.DeviceError, match="architecture riscv64"):
        tile.load(folder)


@pytest.mark.skipif(not target_.host_target().is_x86, reason="names of x86")
def test_the_best_code_that_runs_here_is_taken(folder: Path, monkeypatch: Any, rng: Any) -> None:
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu:x86-64", "cpu:x86-64-v2"], folder)
    taken = []
    load = ahead.load
    monkeypatch.setattr(ahead, "load", lambda *args: taken.append(args[2].target.cpu) or load(*args))
    tile.load(folder)(normal(rng, 3, 4))
    monkeypatch.setattr(processor, "features", frozenset)
    found = tile.load(folder)
    assert found.why_not("cpu:x86-64") is None and "sse4.2" in str(found.why_not("cpu:x86-64-v2"))
    found(normal(rng, 3, 4))
    assert taken == ["x86-64-v2", "x86-64"]


@pytest.mark.skipif(not target_.host_target().is_x86, reason="names of x86")
def test_the_processor_is_known_without_llvm() -> None:
    host = target_.host_target()
    known = {name[1:] for name in host.features.split(",") if name.startswith("+")}
    assert processor.features() == known & set(processor.EXTENSIONS)
    assert processor.missing(host) == ()


def test_a_folder_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="holds no built kernel"):
        tile.load(tmp_path)


def test_a_folder_of_another_version_is_refused(folder: Path, monkeypatch: Any) -> None:
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    monkeypatch.setattr(inf, "__version__", "0.0.0")
    with pytest.raises(errors.ValueMismatchError, match=r"another version[^$]*0\.0\.0"):
        tile.load(folder)


def test_code_for_another_thread_pool_is_refused(folder: Path, monkeypatch: Any, rng: Any) -> None:
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    monkeypatch.setattr(ahead, "runtime_digest", lambda target: "other")
    with pytest.raises(errors.ValueMismatchError, match="another version"):
        tile.load(folder)(normal(rng, 3, 4))


@pytest.mark.parametrize("damage", ["missing", "changed", "manifest"])
def test_a_broken_folder_is_refused(damage: str, folder: Path, rng: Any) -> None:
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    for path in folder.iterdir():
        if path.suffix == ".o" and damage == "missing":
            path.unlink()
        elif path.suffix == ".o" and damage == "changed":
            path.write_bytes(path.read_bytes() + b"\0")
        elif path.name == manifest.NAME and damage == "manifest":
            path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(errors.ValueMismatchError, match="broken"):
        tile.load(folder)(normal(rng, 3, 4))


@pytest.mark.parametrize("change", [{"kind": "abacus"}, {"files": {}, "other": 1}], ids=str)
def test_a_manifest_that_says_something_else_is_refused(change: dict[str, Any], folder: Path) -> None:
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    fields = msgpack.unpackb((folder / manifest.NAME).read_bytes())
    fields["binaries"][0] |= change
    (folder / manifest.NAME).write_bytes(msgpack.packb(fields))
    with pytest.raises(errors.ValueMismatchError, match="broken"):
        tile.load(folder)


def test_files_outside_of_the_folder_are_neither_read_nor_removed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    fields = msgpack.unpackb((folder / manifest.NAME).read_bytes())
    fields["digests"]["../precious"] = ""
    (folder / manifest.NAME).write_bytes(msgpack.packb(fields))
    with pytest.raises(errors.ValueMismatchError, match="other folders"):
        tile.load(folder)
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    assert (tmp_path / "precious").read_text() == "kept" and tile.load(folder).name == "softmax"


def test_building_again_leaves_nothing_of_before(folder: Path, rng: Any) -> None:
    tile.build(kernels.matmul, [[of(20, 20)] * 2], ["cpu"], folder)
    tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder)
    loaded = tile.load(folder)
    named = {name for binary in manifest.read(folder).binaries for name in binary.files.values()}
    assert loaded.name == "softmax" and {p.name for p in folder.iterdir()} == named | {manifest.NAME}
    assert loaded(normal(rng, 3, 4)).shape == (3, 4)


def test_a_loaded_kernel_is_not_traced(folder: Path, rng: Any) -> None:
    loaded = tile.load(tile.build(kernels.softmax, [[of(3, 4)]], ["cpu"], folder))
    with pytest.raises(errors.UnsupportedError, match="cannot be traced"):
        inf.jit(lambda x: loaded(x))(normal(rng, 3, 4))


@pytest.mark.parametrize("target", ["tpu", "cpu:x86-64-v9", "cpu:x86-64+magic", "cuda:hopper"])
def test_an_unknown_target_is_refused(target: str, folder: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"target|processor"):
        tile.build(kernels.softmax, [[of(3, 4)]], [target], folder)
    assert not folder.exists()


@pytest.mark.parametrize(("signatures", "targets"), [([], ["cpu"]), ([[of(3, 4)]], [])])
def test_nothing_to_build_is_refused(signatures: Any, targets: Any, folder: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="nothing to build"):
        tile.build(kernels.softmax, signatures, targets, folder)


def test_a_type_in_the_place_of_a_signature_is_refused(folder: Path) -> None:
    with pytest.raises(errors.TypeMismatchError, match=r"\[\[type"):
        tile.build(kernels.softmax, [of(3, 4)], ["cpu"], folder)


# --- on a GPU ----------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: Any) -> Iterator[Machine]:
    """Two GPUs of capability 9.0 that are none."""
    pytest.importorskip("triton", reason="Triton is not installed")
    made = Machine().install(monkeypatch)
    fake = cuda.CudaBackend()
    get = backend_.get
    monkeypatch.setattr(backend_, "get", lambda name: fake if name == "cuda" else get(name))
    yield made
    backend_.forget_default_device()


def test_a_kernel_built_for_a_gpu_is_launched_there(machine: Machine, folder: Path, rng: Any) -> None:
    loaded = tile.load(tile.build(kernels.softmax, [[of(5, 37)]], ["cuda:90", "cuda:80"], folder))
    operand = normal(rng, 5, 37)
    found = loaded(inf.device_put(operand, Device("cuda", 0)))
    assert str(found.device) == "cuda:0" and machine.count("launch") == 1
    np.testing.assert_allclose(found, kernels.softmax(operand), rtol=1e-5)


def test_operands_of_a_device_without_code_are_refused(machine: Machine, folder: Path, rng: Any) -> None:
    loaded = tile.load(tile.build(kernels.softmax, [[of(5, 37)]], ["cpu"], folder))
    with pytest.raises(errors.DeviceError, match="not built for cuda:0"):
        loaded(inf.device_put(normal(rng, 5, 37), Device("cuda", 0)))


def test_a_cubin_of_another_generation_is_refused(machine: Machine, folder: Path) -> None:
    tile.build(kernels.softmax, [[of(5, 37)]], ["cuda:120"], folder)
    with pytest.raises(errors.DeviceError, match=r"cuda:120: cuda:0 has compute capability"):
        tile.load(folder)


def test_code_for_a_gpu_of_amd_is_written_and_not_run(folder: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    tile.build(kernels.add_gelu, [[of(100)] * 2], ["hip:gfx942"], folder)
    (binary,) = folder.glob("*.hsaco")
    assert binary.read_bytes().startswith(b"\x7fELF")
    with pytest.raises(errors.DeviceError, match="hip:gfx942: infini has no backend"):
        tile.load(folder)


def test_a_cubin_is_written_and_refused_where_no_gpu_is(folder: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    tile.build(kernels.add_gelu, [[of(100)] * 2], ["cuda:80"], folder)
    (cubin,) = folder.glob("*.cubin")
    assert cubin.read_bytes().startswith(b"\x7fELF")
    if backend_.get("cuda").why_unavailable() is not None:
        with pytest.raises(errors.DeviceError, match="does not run on this machine"):
            tile.load(folder)
