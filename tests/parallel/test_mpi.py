"""The same programs under mpirun, one device per process."""

import textwrap

import pytest

from tests.parallel import jobs

pytestmark = pytest.mark.multi

HEAD = """
import os
import numpy as np
import infini as inf, infini.numpy as inp, infini.parallel as parallel
from infini import lax, random
from infini.sharding import NamedSharding, P, make_mesh
parallel.initialize()
mesh = make_mesh((2,), ("x",))
everywhere = NamedSharding(mesh, P())
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


def mpirun(path, body, timeout=60):
    """Output of a script under two processes, with their exit code."""
    done = jobs.run(path, 2, "-c", HEAD + textwrap.dedent(body), timeout_s=timeout)
    return done.returncode, done.stdout, done.stderr


def test_devices_of_all_processes_are_listed(mpirun_path):
    code, out, err = mpirun(
        mpirun_path,
        "say(parallel.process_index(), parallel.process_count(), inf.devices(), inf.local_devices())",
    )
    assert code == 0, err
    assert sorted(out.splitlines()) == [
        "0 2 (reference:0, reference:1) (reference:0,)",
        "1 2 (reference:0, reference:1) (reference:1,)",
    ]


def test_every_collective_and_dtype(mpirun_path):
    code, out, err = mpirun(
        mpirun_path,
        """
        def f(x):
            swapped = lax.ppermute(x, "x", [(0, 1), (1, 0)])
            scattered = lax.psum_scatter(x, "x", tiled=True)
            exchanged = lax.all_to_all(x.reshape(2, 2), "x", 0, 1, tiled=True).reshape(-1)
            return (lax.psum(x, "x"), lax.pmax(x, "x"), lax.pmin(x, "x"), lax.all_gather(x, "x", tiled=True),
                    lax.all_gather(swapped, "x", tiled=True), lax.all_gather(scattered, "x", tiled=True),
                    lax.all_gather(exchanged, "x", tiled=True))
        f = inf.jit(inf.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False))
        for dtype in ("float32", "bfloat16", "float16", "int32", "float64"):
            found = [np.asarray(r).astype(float).tolist() for r in f(inp.arange(8, dtype=dtype))]
            assert found == [[4, 6, 8, 10], [4, 5, 6, 7], [0, 1, 2, 3], list(range(8)), [4, 5, 6, 7, 0,
            1, 2, 3],
                             [4, 6, 8, 10], [0, 1, 4, 5, 2, 3, 6, 7]], (dtype, found)
        say("ok")
        """,
    )
    assert (code, out.split()) == (0, ["ok", "ok"]), err


def test_arrays_are_put_together_from_process_local_data(mpirun_path):
    code, out, err = mpirun(
        mpirun_path,
        """
        mine = np.full((2, 3), parallel.process_index(), np.float32)
        x = inf.make_array_from_process_local_data(NamedSharding(mesh, P("x")), mine)
        assert x.shape == (4, 3) and not x.is_fully_addressable
        say(np.asarray(inf.device_put(x, everywhere)).sum(), float(x.sum()))
        """,
    )
    assert (code, out.splitlines()) == (0, ["6.0 6.0", "6.0 6.0"]), err


def test_parts_of_other_processes_cannot_be_read(mpirun_path):
    code, _, err = mpirun(
        mpirun_path, "np.asarray(inf.device_put(np.ones(4, np.float32), NamedSharding(mesh, P('x'))))"
    )
    assert code != 0 and "parts of this array live in other processes" in err


def test_a_process_that_raises_ends_the_job(mpirun_path):
    code, _, err = mpirun(
        mpirun_path,
        """
        if parallel.process_index() == 1:
            raise RuntimeError("out of luck")
        inf.jit(lambda x: x.sum())(inf.device_put(np.ones(4, np.float32), NamedSharding(mesh, P("x"))))
        """,
    )
    assert code != 0 and "out of luck" in err
