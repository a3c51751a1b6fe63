"""Which programs make the devices of a mesh wait for each other in every run."""

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.backends.spmd import executable, schedule
from infini.sharding import P, make_mesh


def total(x):
    return lax.psum(x, "x")


@pytest.mark.parametrize(
    ("body", "meets"),
    [
        (lambda x: x * 2, False),
        (lambda x: x * lax.axis_index("x"), False),
        (lambda x: lax.psum(x, "y") + x, False),  # an axis of one device
        (lambda x: total(x) + x, True),
        (lambda x: lax.psum(x, ("y", "x")) + x, True),
        (lambda x: lax.ppermute(x, "x", [(0, 1)]), True),
        (lambda x: lax.all_gather(x, "x", tiled=True)[:2], True),
        (lambda x: lax.scan(lambda c, _: (total(c) + c, None), x, None, length=2)[0], True),
        (lambda x: lax.cond(x[0] > 0, lambda x: total(x) + x, lambda x: x, x), False),
        (lambda x: lax.while_loop(lambda c: c[0] < 0, lambda c: total(c) + c, x), False),
        (lambda x: total(lax.cond(x[0] > 0, lambda x: total(x) + x, lambda x: x, x)), True),
    ],
)
def test_programs_that_always_meet(body, meets, monkeypatch):
    found, real = [], executable.compile
    monkeypatch.setattr(
        "infini.backends.reference.executable.compile",
        lambda *arguments: found.append(real(*arguments)) or found[-1],
    )
    with inf.config(device="reference", cpu_devices=2):
        mesh = make_mesh((2, 1), ("x", "y"))
        mapped = inf.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
        inf.jit(mapped)(np.ones(4, np.float32))
    assert schedule.always_meets(found[-1].schedule, mesh.shape) is meets
