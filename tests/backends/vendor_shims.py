"""Stand-ins for vendors' libraries, compiled with gcc from `shims`, and a compiler whose kernels Triton's
interpreter computes.

The C files are written by hand from what is known of each vendor; the tables of the adapters have no part in
them. A kernel's binary is a text that names its source, so what arrives at a launch is checked against it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infini.backends.vendors.tables import Kernel
from infini.compiler.triton import interpret
from infini.compiler.triton.source import TritonSource, parameter_bytes
from infini.compiler.triton.target import Target

SOURCES = Path(__file__).resolve().parent / "shims"
# By library: what it is made of, and what it is linked with.
LIBRARIES: dict[str, tuple[tuple[str, ...], str]] = {
    "maca/lib/libmcruntime.so": (("machine.c", "metax.c"), ""),
    "maca/lib/libmccl.so": (("mccl.c",), "libmcruntime.so"),
    "maca/lib/libmcblas.so": (("mcblas.c",), "libmcruntime.so"),
    "cann/lib64/libascendcl.so": (("machine.c", "ascend.c"), ""),
    "cann/lib64/libhccl.so": (("hccl.c",), "libascendcl.so"),
    "neuware/lib64/libcnrt.so": (("machine.c", "cnrt.c"), ""),
    "neuware/lib64/libcncl.so": (("cncl.c",), "libcnrt.so"),
    "xpu/so/libxpurt.so": (("machine.c", "xpu.c"), ""),
}
HOMES = {"MACA_PATH": "maca", "ASCEND_HOME_PATH": "cann", "NEUWARE_HOME": "neuware", "XPU_HOME": "xpu"}
_TAG, _MASK = 0x5A, (1 << 56) - 1
_LAUNCHER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32, ctypes.c_void_p,
    ctypes.c_size_t,
)  # fmt: skip


def build(folder: Path) -> None:
    """Compile every library below a folder."""
    running = []
    for name, (files, linked) in LIBRARIES.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        command = ["gcc", "-std=gnu11", "-O0", "-shared", "-fPIC", "-pthread", "-o", str(target)]
        command += [str(SOURCES / file) for file in files]
        if linked:
            finish(running)
            command.append(str(target.parent / linked))  # by its whole path: another may have its name
        running.append((command, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    finish(running)


def finish(running: list[tuple[Sequence[str], subprocess.Popen[str]]]) -> None:
    """Wait for compilers."""
    while running:
        command, process = running.pop()
        _, said = process.communicate()
        assert process.returncode == 0, f"{' '.join(command)}\n{said}"


def has_compiler() -> bool:
    """Whether the stand-ins can be compiled here."""
    return shutil.which("gcc") is not None


class Shim:
    """The tests' side of a stand-in: its log, its limits, and what computes its kernels.

    Args:
        path: the library that a backend loads, too.
        compiler: what made the kernels that it is given.
    """

    def __init__(self, path: Path, compiler: FakeCompiler | None = None) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.shim_log.restype = ctypes.c_char_p
        self.library.shim_set_limit.argtypes = [ctypes.c_size_t]
        self.library.shim_num_blocks.restype = ctypes.c_size_t
        self.library.shim_reset()
        self.library.shim_set_limit(1 << 30)
        self._launcher = _LAUNCHER(compiler.launched if compiler else lambda *_: 1)
        self.library.shim_set_launcher(self._launcher)

    def calls(self, prefix: str = "") -> list[str]:
        """Lines of the log that start with a name."""
        return [line for line in self.library.shim_log().decode().splitlines() if line.startswith(prefix)]

    def reset(self) -> None:
        """Forget the log."""
        self.library.shim_reset()


class FakeCompiler:
    """Makes "binaries" that name their source, and computes them by Triton's interpreter.

    Args:
        is_packed: whether arguments arrive as Ascend's structure, with what stands before them.
        num_hidden: pointers that follow the parameters.
        facts: what it says of every binary.
        scratch_bytes: scratch memory of a program.
    """

    def __init__(
        self,
        *,
        is_packed: bool = False,
        num_hidden: int = 0,
        facts: dict[str, Any] | None = None,
        scratch_bytes: int = 0,
    ) -> None:
        self.is_packed, self.num_hidden = is_packed, num_hidden
        self.facts, self.scratch_bytes = facts or {}, scratch_bytes
        self.sources: dict[str, TritonSource] = {}
        self.asked: list[Target] = []
        self.launches: list[tuple[str, tuple[int, ...], int]] = []
        self.faults: list[str] = []

    def why_unavailable(self, target: Target) -> str | None:
        """It is here."""
        return None

    def compile(self, source: TritonSource, target: Target) -> Kernel:
        """A text that names the source and the bytes of its arguments."""
        self.asked.append(target)
        kinds = [kind for _, kind in source.signature]
        sizes = [parameter_bytes(kind) for kind in kinds] + [8] * self.num_hidden
        self.sources[source.key] = source
        head = f"SHIM {source.function_name} {len(sizes)} {' '.join(map(str, sizes))}"
        return Kernel(
            code=f"{head}\n{source.key}\n".encode(),
            name=source.function_name,
            parameters=tuple(kinds),
            num_hidden=self.num_hidden,
            num_warps=source.num_warps,
            scratch_bytes=self.scratch_bytes,
            facts=self.facts,
        )

    def launched(self, image: bytes, grid: Any, threads: int, arguments: int, size: int) -> int:
        """What the stand-in calls when a launch's turn comes; 0 when it could be computed."""
        # It holds its lock meanwhile: collected memory would be given back to it, and wait for that.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            source = self.sources[image.decode().split("\n")[1]]
            sizes = tuple(grid[i] for i in range(3))
            self.launches.append((source.function_name, sizes, threads))
            content = ctypes.string_at(arguments, size)
            values = self._packed(source, content, sizes) if self.is_packed else self._slots(source, content)
            interpret.launch(dataclasses.replace(source, grid=sizes), values)
        except Exception as error:  # noqa: BLE001  # it must not pass through C
            self.faults.append(f"{type(error).__name__}: {error}")
            return 1
        finally:
            if was_enabled:
                gc.enable()
        return 0

    def _slots(self, source: TritonSource, content: bytes) -> list[int]:
        """Numbers of arguments that are eight bytes apart."""
        count = len(source.signature) + self.num_hidden
        assert len(content) == 8 * count
        numbers = [_number(content[8 * i : 8 * i + 8]) for i in range(count)]
        return [_argument(kind, n) for (_, kind), n in zip(source.signature, numbers, strict=False)]

    def _packed(self, source: TritonSource, content: bytes, grid: tuple[int, ...]) -> list[int]:
        """Numbers in Ascend's structure: three addresses, the arguments aligned, and the grid."""
        first = [_number(content[8 * i : 8 * i + 8]) for i in range(3)]
        assert first[0] == 0xFF75 and first[1] == 0, f"synchronisation and locks are {first[:2]}"
        assert (first[2] >> 56 == _TAG) == (self.scratch_bytes > 0), "the workspace"
        at, values = 24, []
        for _, kind in source.signature:
            width = 8 if parameter_bytes(kind) == 8 else 4
            at += -at % width
            values.append(_argument(kind, _number(content[at : at + width])))
            at += width
        at += -at % 4
        assert content[at:] == np.array(grid, np.int32).tobytes(), "the grid ends the structure"
        return values


def _number(content: bytes) -> int:
    return int.from_bytes(content, "little")


def _argument(kind: str, number: int) -> int:
    assert kind.startswith("*"), "emitted kernels take addresses"
    assert number == 0 or number >> 56 == _TAG, f"{number:#x} is no address of the device"
    return number & _MASK
