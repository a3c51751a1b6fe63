"""Programs and libraries written for JAX run unchanged on infini, in processes of their own.

The oracle is JAX, whose results are recorded, because compiling the programs with it takes most of a minute:

    python tests/parity/run_programs.py tests/parity/recorded/as_jax.npz tests/parity/programs/*.py \\
        tests/parity/libraries/*.py
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import infini.as_jax
from infini import errors

HERE = Path(__file__).parent
PROGRAMS = sorted((HERE / "programs").glob("*.py"))
LIBRARIES = [
    path
    for path in sorted((HERE / "libraries").glob("*.py"))
    if importlib.util.find_spec("optax") and importlib.util.find_spec(path.stem.partition("_")[0])
]
RECORDED = HERE / "recorded" / "as_jax.npz"
# Results of these are sums of bfloat16 products in another order.
COARSE = {"attention": 0.06}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """infini's Python with arguments; jax is not imported in it."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )


def run_text(text: str) -> str:
    done = run("-c", text)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What all programs give on infini, by `program/leaf`: one process for all of them."""
    output = tmp_path_factory.mktemp("as_jax") / "found.npz"
    done = run("-m", "infini.as_jax", HERE / "run_programs.py", output, *PROGRAMS, *LIBRARIES)
    assert done.returncode == 0, done.stderr
    return dict(np.load(output))


@pytest.mark.parametrize("name", [path.stem for path in (*PROGRAMS, *LIBRARIES)])
def test_a_program_gives_the_results_of_jax(name: str, found: dict[str, np.ndarray]) -> None:
    recorded = np.load(RECORDED)
    wanted = {place for place in recorded.files if place.startswith(f"{name}/")}
    assert wanted and wanted == {place for place in found if place.startswith(f"{name}/")}
    bound = COARSE.get(name, 5e-4)
    for place in sorted(wanted):
        leaf, other = found[place], recorded[place]
        assert leaf.dtype == other.dtype and leaf.shape == other.shape, place
        np.testing.assert_allclose(leaf, other, rtol=bound, atol=bound, err_msg=place)


QUESTIONS = """
import sys
import infini, infini.as_jax
from infini import errors
from infini.core import events

with infini.as_jax.installed():
    import jax, jax.numpy as jnp, jaxlib
    from jax import lax, nn, random
    assert jnp.add is infini.numpy.add and lax.scan is infini.lax.scan and nn.relu is infini.nn.relu
    assert isinstance(jnp.ones(2), jax.Array) and isinstance(random.key(0), jax.Array)
    assert not isinstance(2.0, jax.Array)
    assert tuple(map(int, jax.__version__.split("."))) == jax.__version_info__ and jaxlib.__version__
    assert "scan" in dir(lax) and "numpy" in dir(jax) and "typeof" in dir(jax)
    flat, undo = jax.flatten_util.ravel_pytree({"a": jnp.ones((2, 2)), "b": jnp.arange(3)})
    assert flat.shape == (7,) and undo(flat)["b"].dtype == jnp.int32
    assert jax.dtypes.issubdtype(random.key(0).dtype, jax.dtypes.prng_key)
    assert jax.typeof(jnp.ones((2, 3))).shape == (2, 3)

    def message(action, kind):
        try:
            action()
        except kind as error:
            return str(error)
        raise AssertionError("it did not raise")

    assert "infini does not have jax.numpy.no_such_name" in message(lambda: jnp.no_such_name, AttributeError)
    assert "jax.no_such_module" in message(lambda: __import__("jax.no_such_module"), ModuleNotFoundError)
    assert "no_such_name" in message(lambda: exec("from jax.lax import no_such_name"), ImportError)
    assert "jax.pmap" in message(lambda: jax.pmap(lambda x: x)(jnp.ones(1)), NotImplementedError)
    assert "64-bit" in message(lambda: jax.config.update("jax_enable_x64", True), ValueError)
    assert "jax_wrong" in message(lambda: jax.config.update("jax_wrong", 1), ValueError)
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_debug_nans", True)
    assert jax.config.jax_debug_nans and infini.config.nan
    jax.config.update("jax_debug_nans", False)
    with events.record() as seen:
        jax.config.update("jax_log_compiles", True)
    assert [event.code for event in seen] == ["jax-flag-ignored"] and jax.config.jax_log_compiles

    p = jax.extend.core.Primitive("twice")
    p.def_impl(lambda x: x * 2)
    assert p.bind(3) == 6
    assert "'twice'" in message(lambda: jax.jit(p.bind)(3.0), NotImplementedError)

assert "jax" not in sys.modules and not infini.as_jax.is_installed()
print("done")
"""


def test_names_versions_flags_and_errors() -> None:
    assert run_text(QUESTIONS) == "done"


def test_installing_after_jax_was_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax.version", types.ModuleType("jax.version"))
    with pytest.raises(errors.ValueMismatchError, match="JAX is imported already"):
        infini.as_jax.install()
    assert not infini.as_jax.is_installed()


def test_the_command_passes_arguments_and_finds_modules_beside_the_program(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import jax.numpy as jnp\nthree = jnp.arange(3)\n")
    program = tmp_path / "program.py"
    program.write_text("import sys, beside\nprint(__name__, sys.argv[1:], type(beside.three).__module__)\n")
    done = run("-m", "infini.as_jax", program, "--a", "1")
    assert done.stdout.strip() == "__main__ ['--a', '1'] infini.core.array", done.stderr


@pytest.mark.parametrize("arguments", [(), ("no_such_file.py",)], ids=["no program", "no file"])
def test_the_command_says_what_it_wants(arguments: tuple[str, ...]) -> None:
    done = run("-m", "infini.as_jax", *arguments)
    assert done.returncode == 2
    assert "infini.as_jax" in done.stderr and "Traceback" not in done.stderr
