"""Whether the CUDA backend works on this machine, and roughly how fast: run it through `bench/gpu.sh`.

Each check compares with NumPy and stands alone, so one that breaks does not hide the others. The figures are
a first look, not a
benchmark: medians of device time by CUDA events, and of host time for calls.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NEEDED: Final = {
    "numpy": "arrays of the host",
    "ml_dtypes": "bfloat16",
    "optree": "pytrees",
    "llvmlite": "imported by infini's default backend",
    "msgpack": "the cache of compiled kernels",
    "sympy": "the kernel language",
    "triton": "the compiler of kernels",
    "cupy": "memory, streams and launches; cupy-cuda12x or cupy-cuda13x by the version of the driver",
}
CUBLAS: Final = "missing: install nvidia-cublas; products go through Triton without it"


@dataclass(frozen=True)
class Sizes:
    """Sizes of operands: large enough for a GPU, or small enough for a rehearsal without one."""

    elements: int
    rows: tuple[int, int]
    kernel_product: int
    product: int
    repeats: int


LARGE: Final = Sizes(1 << 26, (8192, 4096), 2048, 8192, 20)
SMALL: Final = Sizes(1 << 10, (8, 40), 32, 32, 2)


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    name: str
    status: str
    seconds: float
    figures: dict[str, float | str]

    def text(self) -> str:
        """The figures in a line."""
        items = self.figures.items()
        return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in items)

    def row(self) -> dict[str, float | str]:
        """The line as JSON."""
        return {"check": self.name, "status": self.status, "seconds": round(self.seconds, 3), **self.figures}


class NotRun(Exception):  # noqa: N818  # nothing has failed
    """This machine lacks what a check needs."""


def missing_packages() -> dict[str, str]:
    """Packages without which nothing works, and what each is for."""
    return {name: use for name, use in NEEDED.items() if importlib.util.find_spec(name) is None}


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; 0 when all that ran passed, 1 when one failed, 2 when something needed is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny operands: a rehearsal")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "gpu")
    options = parser.parse_args(arguments)
    missing = missing_packages()
    if missing:
        print("missing packages:")
        for name, use in missing.items():
            print(f"  {name:<12}{use}")
        return 2
    from infini.backends.cuda import CudaBackend

    backend = CudaBackend()
    reason = backend.why_unavailable()
    if reason is not None:
        print(f"no GPU to test: {reason}")
        return 2
    checks = Checks(backend, SMALL if options.small else LARGE)
    facts = checks.facts()
    for key, value in facts.items():
        print(f"{key:<12}{value}")
    outcomes = [run(name, check) for name, check in checks.all().items()]
    print()
    print(f"{'check':<34}{'status':<9}{'s':>7}  figures")
    for outcome in outcomes:
        print(f"{outcome.name:<34}{outcome.status:<9}{outcome.seconds:>7.2f}  {outcome.text()}")
    from infini.perf import record

    measured = {"gpu": facts, "small": options.small, "checks": [o.row() for o in outcomes]}
    path = record.append("smoke", measured, options.results)
    print(f"\nrecorded in {path}")
    return int(any(o.status == "FAILED" for o in outcomes))


def run(name: str, check: Callable[[], dict[str, float | str]]) -> Outcome:
    """Run one check; an exception is its outcome."""
    print(f"... {name}", flush=True)
    start = time.perf_counter()
    try:
        figures, status = check(), "ok"
    except NotRun as reason:
        figures, status = {"reason": str(reason)}, "not run"
    except Exception as error:  # noqa: BLE001  # one broken check must not hide the others
        traceback.print_exc()
        message = (str(error).splitlines() or [""])[0][:160]
        figures, status = {"error": f"{type(error).__name__}: {message}"}, "FAILED"
    return Outcome(name, status, time.perf_counter() - start, figures)


class Checks:
    """The checks, on the first GPU."""

    def __init__(self, backend: Any, sizes: Sizes) -> None:  # Any: the backend, imported late
        import numpy as np

        from infini.backends.reference import interpreter
        from infini.compiler.triton.emit import emit_triton
        from infini.core import dtypes, trace
        from infini.core.backend import CompileOptions, Device
        from infini.core.ir import ArrayType
        from tests.compiler import triton_kernels
        from tests.tile import kernels

        self.np, self.dtypes, self.trace = np, dtypes, trace
        self.kernels, self.by_hand = kernels, triton_kernels
        self.emit, self.evaluate = emit_triton, interpreter.evaluate
        self.ArrayType, self.Options = ArrayType, CompileOptions
        self.backend, self.sizes = backend, sizes
        self.device = Device("cuda", 0)
        self.driver = backend.driver(0)
        self.rng = np.random.default_rng(0)

    def facts(self) -> dict[str, str]:
        """What this machine is."""
        found = {"capability": str(self.driver.capability), "driver": str(self.driver.driver_version)}
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            found["gpu"] = done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"
        for name in ("cupy", "triton"):
            found[name] = getattr(importlib.import_module(name), "__version__", "?")
        found["cublas"] = "present" if self.driver.cublas() else CUBLAS
        return found

    def all(self) -> dict[str, Callable[[], dict[str, float | str]]]:
        """Every check by name, simple ones first."""
        f32, bf16, f16 = self.dtypes.float32, self.dtypes.bfloat16, self.dtypes.float16
        return {
            "allocate and copy": self.copies,
            "add+gelu float32": functools.partial(self.elementwise, f32, 1e-5),
            "add+gelu bfloat16": functools.partial(self.elementwise, bf16, 2e-2),
            "softmax float32": functools.partial(self.softmax, f32, 1e-5),
            "softmax float16": functools.partial(self.softmax, f16, 2e-3),
            "rms_norm with vjp, jitted": self.norm_gradient,
            "product by Triton bfloat16": functools.partial(self.kernel_product, bf16, 2e-2),
            "product by Triton float32": functools.partial(self.kernel_product, f32, 1e-4),
            "product by cuBLAS bfloat16": functools.partial(self.product, bf16, 2e-2),
            "product by cuBLAS float32": functools.partial(self.product, f32, 1e-3),
            "gather, scatter-add, update": self.movement,
            "scan and while": self.loops,
            "graph capture and replay": self.graph,
            "training steps of an MLP": self.training,
            "every elementwise op float32": functools.partial(self.every_operation, f32, 1e-5),
            "every elementwise op bfloat16": functools.partial(self.every_operation, bf16, 2e-2),
            "NCCL with one rank": self.nccl_alone,
            "NCCL with two ranks on one GPU": self.nccl_twice,
            "exchanges beside kernels": self.beside,
            "training over all GPUs": self.mesh,
            "two processes": self.job,
        }

    # --- parts ----------------------------------------------------------------------------------

    def normal(self, *shape: int, dtype: Any = None) -> Any:  # Any: NumPy
        """Normal numbers."""
        return self.rng.standard_normal(shape, self.np.float32).astype(dtype or self.np.float32)

    def put(self, *arrays: Any) -> list[Any]:  # Any: NumPy arrays and buffers
        """Buffers on the device."""
        return [self.backend.put(a, self.device) for a in arrays]

    def compiled(
        self, function: Callable[..., Any], arrays: Any, **options: Any
    ) -> Any:  # Any: an executable
        """The executable of a function of arrays like these."""

        def flat(*xs: Any) -> list[Any]:
            found = function(*xs)
            return list(found) if isinstance(found, (tuple, list)) else [found]

        types = [self.ArrayType(a.shape, a.dtype) for a in arrays]
        return self.backend.compile(self.trace.stage(flat, types).program, self.Options(**options))

    def results(self, executable: Any, buffers: Any) -> list[Any]:  # Any: NumPy arrays
        """Results on the host."""
        types = executable.program.out_types
        return [self.backend.get(b, t) for b, t in zip(executable(buffers), types, strict=True)]

    def error(self, found: Any, wanted: Any, tolerance: float) -> float:  # Any: NumPy arrays
        """Largest error relative to 1 or to the value; more than the tolerance is a failure."""
        a, b = self.np.asarray(found).astype(self.np.float64), self.np.asarray(wanted).astype(self.np.float64)
        worst = float((self.np.abs(a - b) / self.np.maximum(1.0, self.np.abs(b))).max(initial=0.0))
        if not worst <= tolerance:
            raise AssertionError(f"error {worst:.3g} is above {tolerance:.3g}")
        return worst

    def against_oracle(
        self, function: Callable[..., Any], arrays: Any, tolerance: float, times: int = 1
    ) -> float:
        """Largest error of several runs against the interpreter of programs."""
        executable = self.compiled(function, arrays)
        wanted = self.evaluate(executable.program, arrays)
        worst = 0.0
        for _ in range(times):
            for a, b in zip(self.results(executable, self.put(*arrays)), wanted, strict=True):
                worst = max(worst, self.error(a, b, tolerance))
        return worst

    def device_seconds(self, work: Callable[[], object]) -> float:
        """Median device time of some work, by events on the backend's stream."""
        cuda = self.driver.cupy.cuda
        work()
        found = []
        for _ in range(self.sizes.repeats):
            with self.driver.current():
                start, end = cuda.Event(), cuda.Event()
                start.record(self.driver.stream)
                work()
                end.record(self.driver.stream)
            end.synchronize()
            found.append(cuda.get_elapsed_time(start, end) / 1e3)
        return statistics.median(found)

    def launched(
        self, function: Any, arrays: Any, **blocks: int
    ) -> tuple[Any, Callable[[], None]]:  # Any: results
        """Results of a kernel by hand, and a function that launches it again."""
        types = [self.ArrayType(a.shape, a.dtype) for a in arrays]
        kernel = (function.configure(**blocks) if blocks else function).specialize(types)
        source = self.emit(kernel, types)
        loaded = self.driver.function(source)
        buffers = [*self.put(*arrays), *(self.driver.allocate(t.nbytes) for t in kernel.outputs)]
        addresses = [b.address for b in buffers]

        def launch() -> None:
            self.driver.launch(loaded, source.grid, addresses)

        launch()
        found = [self.backend.get(b, t) for b, t in zip(buffers[len(arrays) :], kernel.outputs, strict=True)]
        self._keep = buffers
        return found, launch

    # --- checks ---------------------------------------------------------------------------------

    def copies(self) -> dict[str, float | str]:
        """Put, duplicate on the device, get."""
        x = self.normal(self.sizes.elements)
        start = time.perf_counter()
        (buffer,) = self.put(x)
        up = time.perf_counter() - start
        copied = self.driver.duplicate(buffer)
        start = time.perf_counter()
        found = self.backend.get(copied, self.ArrayType(x.shape, x.dtype))
        down = time.perf_counter() - start
        self.error(found, x, 0.0)
        moved = self.device_seconds(lambda: self.driver.move(buffer.address, copied.address, x.nbytes))
        rates = {"up": x.nbytes / up, "down": x.nbytes / down, "device": 2 * x.nbytes / moved}
        return {f"{name} GB/s": rate / 1e9 for name, rate in rates.items()}

    def elementwise(self, dtype: Any, tolerance: float) -> dict[str, float | str]:
        """A fused kernel, bound by memory."""
        import math

        np = self.np
        x, y = (self.normal(self.sizes.elements, dtype=dtype) for _ in range(2))
        (found,), launch = self.launched(self.kernels.add_gelu, [x, y])
        part = slice(0, 1 << 16)
        z = (x[part].astype(np.float32) + y[part].astype(np.float32)).astype(np.float64)
        wanted = 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        worst = self.error(found[part], wanted, tolerance)
        return {"error": worst, "GB/s": 3 * x.nbytes / self.device_seconds(launch) / 1e9}

    def softmax(self, dtype: Any, tolerance: float) -> dict[str, float | str]:
        """One row per program."""
        np = self.np
        x = self.normal(*self.sizes.rows, dtype=dtype)
        (found,), launch = self.launched(self.kernels.softmax, [x])
        e = np.exp(x.astype(np.float64) - x.astype(np.float64).max(1, keepdims=True))
        worst = self.error(found, e / e.sum(1, keepdims=True), tolerance)
        return {"error": worst, "GB/s": 2 * x.nbytes / self.device_seconds(launch) / 1e9}

    def norm_gradient(self) -> dict[str, float | str]:
        """A kernel by hand inside a program, and its derivative by a rule."""
        import infini
        from infini import lax

        x, w = self.normal(16, 64), self.normal(64)
        loss = lambda x, w: lax.reduce_sum(self.kernels.rms_norm(x, w), (0, 1))  # noqa: E731
        return {"error": self.against_oracle(infini.value_and_grad(loss), [x, w], 1e-4)}

    def kernel_product(self, dtype: Any, tolerance: float) -> dict[str, float | str]:
        """A product by a kernel with levels."""
        np, n = self.np, self.sizes.kernel_product
        x, y = self.normal(n, n, dtype=dtype), self.normal(n, n, dtype=dtype)
        is_large = n >= 128 and dtype != np.float32
        blocks = dict(zip(("BM", "BN", "BK"), (128, 128, 64) if is_large else (32, 32, 32), strict=True))
        (found,), launch = self.launched(self.kernels.matmul, [x, y], **blocks)
        wanted = x.astype(np.float32) @ y.astype(np.float32)
        worst = self.error(found, wanted, tolerance * max(1.0, n**0.5 / 8))
        return {"error": worst, "TFLOP/s": 2 * n**3 / self.device_seconds(launch) / 1e12}

    def product(self, dtype: Any, tolerance: float) -> dict[str, float | str]:
        """A product through the backend: the library or a kernel, whichever was measured to be faster."""
        from infini import lax

        np, n = self.np, self.sizes.product
        x, y = self.normal(n, n, dtype=dtype), self.normal(n, n, dtype=dtype)
        executable = self.compiled(lax.dot, [x, y])
        buffers = self.put(x, y)
        (found,) = self.results(executable, buffers)
        rows = slice(0, 64)
        wanted = x[rows].astype(np.float32) @ y.astype(np.float32)
        worst = self.error(found[rows], wanted, tolerance * max(1.0, n**0.5 / 8))
        seconds = self.device_seconds(lambda: executable(buffers))
        usual = "cuBLAS" if self.driver.cublas() else "Triton"  # of a product too small to be measured
        route = ", ".join(name for _, name in executable.choices) or usual
        return {"error": worst, "TFLOP/s": 2 * n**3 / seconds / 1e12, "route": route}

    def movement(self) -> dict[str, float | str]:
        """Indexed reads and writes."""
        import infini
        from infini import lax

        np = self.np
        table, tokens = self.normal(50, 16), np.array([[1, 1, 2], [8, 1, 49]], np.int32)
        loss = lambda t, i: lax.reduce_sum(lax.mul(t[i], t[i]), (0, 1, 2))  # noqa: E731
        worst = self.against_oracle(infini.grad(loss), [table, tokens], 1e-5)
        update = lambda c, r, i: lax.dynamic_update_slice(c, r, (i, 0))  # noqa: E731
        arrays = [self.normal(32, 8), self.normal(1, 8), np.asarray(31, np.int32)]
        return {"error": max(worst, self.against_oracle(update, arrays, 0.0))}

    def loops(self) -> dict[str, float | str]:
        """Loops that the host drives."""
        from infini import lax

        def function(start: Any, xs: Any) -> Any:
            final, ys = lax.scan(lambda c, x: (lax.add(lax.mul(c, 0.5), x), lax.mul(c, x)), start, xs)
            twice = lambda s: (lax.add(s[0], 1), lax.mul(s[1], 2.0))  # noqa: E731
            return [ys, *lax.while_loop(lambda s: lax.lt(s[0], 5), twice, (0, final))]

        return {"error": self.against_oracle(function, [self.normal(16), self.normal(9, 16)], 1e-5)}

    def graph(self) -> dict[str, float | str]:
        """Several calls of one program: launches first, then replays of a captured graph."""
        from infini import lax

        def chain(x: Any, w: Any) -> Any:
            for _ in range(16):
                x = lax.tanh(lax.dot(x, w))
            return x

        arrays = [self.normal(16, 64), self.normal(64, 64) / 8]
        worst = self.against_oracle(chain, arrays, 1e-3, times=4)
        executable, buffers = self.compiled(chain, arrays), self.put(*arrays)
        plain = self.compiled(chain, arrays)
        plain.can_capture = False
        seconds = {}
        for name, each in (("launches us", plain), ("replay us", executable)):
            for _ in range(3):
                each(buffers)
            self.driver.synchronize()
            found = []
            for _ in range(self.sizes.repeats):
                start = time.perf_counter()
                each(buffers)
                self.driver.synchronize()
                found.append(time.perf_counter() - start)
            seconds[name] = statistics.median(found) * 1e6
        counts = executable.cost_analysis()
        return {"error": worst, **seconds, "replayed": counts["graphs replayed"]}

    def training(self) -> dict[str, float | str]:
        """Gradient steps with donated parameters against the same steps by NumPy."""
        import infini
        from infini import lax

        w1, w2, x, y = self.normal(8, 32) / 4, self.normal(32, 4) / 4, self.normal(16, 8), self.normal(16, 4)

        def step(w1: Any, w2: Any, x: Any, y: Any) -> Any:
            def loss(params: Any) -> Any:
                error = lax.sub(lax.dot(lax.tanh(lax.dot(x, params[0])), params[1]), y)
                return lax.reduce_sum(lax.mul(error, error), (0, 1))

            value, grads = infini.value_and_grad(loss)((w1, w2))
            return lax.sub(w1, lax.mul(grads[0], 0.002)), lax.sub(w2, lax.mul(grads[1], 0.002)), value

        executable = self.compiled(step, [w1, w2, x, y], donated=(0, 1))
        buffers, host = self.put(w1, w2, x, y), [w1, w2]
        for _ in range(6):
            first, second, value = executable(buffers)
            buffers = [first, second, *buffers[2:]]
            *host, wanted = self.evaluate(executable.program, [*host, x, y])
        found = self.backend.get(value, executable.program.out_types[2])
        return {"error": self.error(found, wanted, 1e-3), "loss": float(found)}

    def every_operation(self, dtype: Any, tolerance: float) -> dict[str, float | str]:
        """Every elementwise operation that takes the dtype, as a kernel of its own."""
        from infini.compiler.triton import scalar
        from infini.core import primitive

        worst, count, failed = 0.0, 0, []
        for name, op in sorted(primitive.all_primitives().items()):
            is_conversion = name in {"convert_element_type", "bitcast_convert_type", "select_n"}
            has_route = name in scalar.RULES or op.has(primitive.DECOMPOSE)
            if not op.has(primitive.SCALAR) or is_conversion or not has_route:
                continue
            cases = op.rule(primitive.CASES)
            if dtype not in cases.dtypes:
                continue
            case = cases.examples(dtype)[0]
            arrays = case.draw(dtype, self.rng)
            try:
                function = functools.partial(self.trace.bind1, op, **case.attrs)
                worst = max(worst, self.against_oracle(function, arrays, tolerance))
            except AssertionError as error:
                failed.append(f"{name} ({error})")
            count += 1
        if failed:
            raise AssertionError(f"{len(failed)} of {count}: {'; '.join(failed)}")
        return {"operations": float(count), "error": worst}

    # --- several devices -----------------------------------------------------------------------

    def nccl(self) -> Any:  # Any: the library
        """NCCL through CuPy."""
        library, reason = self.backend.load_collectives()
        if library is None:
            raise NotRun(reason)
        return library

    def nccl_alone(self) -> dict[str, float | str]:
        """The calls of a group of one, in every dtype: each gives back what it is given."""
        library = self.nccl()
        comm = library.join(library.new_id(), 1, 0, 0)
        driver, n = self.driver.beside(), 1000
        calls: dict[str, Callable[..., None]] = {
            "all_reduce": lambda x, y, dtype: comm.all_reduce(x, y, n, dtype, "max", driver.stream_address),
            "all_gather": lambda x, y, dtype: comm.all_gather(x, y, n, dtype, driver.stream_address),
            "reduce_scatter": lambda x, y, dtype: comm.reduce_scatter(
                x, y, n, dtype, "sum", driver.stream_address
            ),
            "broadcast": lambda x, y, dtype: comm.broadcast(x, y, n, dtype, 0, driver.stream_address),
        }
        count = 0
        for dtype in library.dtypes:
            host = self.rng.integers(0, 100, n).astype(dtype)
            for name, call in calls.items():
                given, taken = driver.upload(host), driver.allocate(host.nbytes)
                with comm.group():
                    call(given.address, taken.address, dtype)
                found = driver.download(taken, self.ArrayType((n,), dtype))
                if not (found == host).all():
                    raise AssertionError(f"{name} of {dtype} gives other numbers")
                count += 1
        comm.check()
        comm.destroy()
        return {"version": str(library.version), "calls": float(count)}

    def nccl_twice(self) -> dict[str, float | str]:
        """Whether one GPU can be two ranks; NCCL says no, as far as is known."""
        from infini.core import errors

        try:
            first, second = self.nccl().join_all([0, 0])
        except errors.CollectiveError as error:
            return {"refused": str(error.got).splitlines()[0]}
        streams = [self.driver.beside() for _ in range(2)]
        given = [stream.upload(self.np.full(8, i + 1, self.np.float32)) for i, stream in enumerate(streams)]
        taken = [stream.allocate(32) for stream in streams]
        with first.group():
            for comm, x, y, stream in zip((first, second), given, taken, streams, strict=True):
                comm.all_reduce(x.address, y.address, 8, self.dtypes.float32, "sum", stream.stream_address)
        sums = [
            s.download(y, self.ArrayType((8,), self.dtypes.float32))
            for s, y in zip(streams, taken, strict=True)
        ]
        return {"error": max(self.error(found, self.np.full(8, 3.0), 0.0) for found in sums)}

    def beside(self) -> dict[str, float | str]:
        """Work of two streams in the order of events: each step of one reads what the other made."""
        first, second = self.driver, self.driver.beside()
        host = self.normal(self.sizes.elements)
        x = first.upload(host)
        y, z = first.allocate(x.nbytes), first.allocate(x.nbytes)
        for _ in range(self.sizes.repeats):
            first.move(x.address, y.address, x.nbytes)
            second.wait(first.record())
            second.move(y.address, z.address, x.nbytes)
            first.wait(second.record())
            first.move(z.address, x.address, x.nbytes)
        event = first.record()
        found = first.download(x, self.ArrayType(host.shape, host.dtype))
        if not first.has_happened(event):
            raise AssertionError("an event has not happened after its stream was awaited")
        return {"error": self.error(found, host, 0.0)}

    def mesh(self) -> dict[str, float | str]:
        """Training steps over all GPUs of this process, against one."""
        from bench import gpu_job

        if self.backend.num_devices < 2:
            raise NotRun("there is one GPU")
        return {"error": gpu_job.check(), "GPUs": float(self.backend.num_devices)}

    def job(self) -> dict[str, float | str]:
        """The same by two processes, which share the GPU where there is one, and then go through the host."""
        beside = Path(sys.executable).parent / "mpirun"
        mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
        if mpirun is None or importlib.util.find_spec("mpi4py") is None:
            raise NotRun("mpi4py or mpirun is missing")
        done = start_job([mpirun, "-n", "2", sys.executable, "-m", "bench.gpu_job"])
        if done.returncode != 0:
            raise AssertionError(done.stderr.strip()[-2000:])
        found: dict[str, float | str] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


def start_job(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the processes of a job to their end."""
    root = Path(__file__).resolve().parents[1]
    settings = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        timeout=120,
        env={**os.environ, **settings},
    )


if __name__ == "__main__":
    sys.exit(main())
