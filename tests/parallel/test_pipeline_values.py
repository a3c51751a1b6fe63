"""What a pipeline does with named values, whole parameters and parts of a batch to evaluate."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import parallel
from infini.ad_checkpoint import checkpoint_name
from infini.core import errors
from infini.sharding import P, make_mesh
from infini.testing import count_collectives


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def stage(w, x):
    return inp.tanh(checkpoint_name(x, "inner") @ w)


def loss(y, t):
    return ((y - t) ** 2).mean()


def made(axes, **options):
    mesh = make_mesh(tuple(axes.values()), tuple(axes))
    return parallel.pipeline([stage] * 2, loss, mesh=mesh, **{"num_microbatches": 2} | options)


def arguments(rng, rows=8):
    params = [rng.normal(size=(4, 4)).astype(np.float32) for _ in range(2)]
    return params, *rng.normal(size=(2, rows, 4)).astype(np.float32)


def test_values_with_a_name_lie_where_they_are_asked_to(rng):
    params, x, t = arguments(rng)
    found = {}
    for name, named in (("split", {"inner": P(None, "tp")}), ("whole", {}), ("other", {"outer": P("tp")})):
        step = made({"pp": 2, "tp": 2}, named=named)
        with count_collectives() as counts:
            found[name] = step.evaluate(params, x, t)
        found[f"{name}, sent"] = len(counts)
    assert found["split, sent"] > 0 == found["whole, sent"] == found["other, sent"]
    np.testing.assert_allclose(found["split"], found["whole"], rtol=1e-6)
    assert float(found["other"]) == float(found["whole"])


def test_places_of_names_are_over_the_inside_of_stages():
    with pytest.raises(errors.ValueMismatchError, match=r"pipeline: named\['inner'\] splits over 'pp'"):
        made({"pp": 2, "tp": 2}, named={"inner": P("pp")})
    with pytest.raises(errors.TypeMismatchError, match=r"pipeline: named\['inner'\] is no placement"):
        made({"pp": 2, "tp": 2}, named={"inner": "tp"})


def test_parameters_come_back_as_they_were(rng):
    params, _, _ = arguments(rng)
    step = made({"pp": 2, "tp": 2}, param_specs=P("tp"))
    for found, wanted in zip(step.fetch(step.place(params)), params, strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(step.fetch(params), params, strict=True):  # those that are elsewhere, too
        np.testing.assert_array_equal(found, wanted)


def test_a_batch_is_evaluated_in_other_parts_than_those_of_a_step(rng):
    """Six rows in three parts, where a step has two parts and two groups of devices for each."""
    params, x, t = arguments(rng, 6)
    wanted = float(loss(np.tanh(np.tanh(x @ params[0]) @ params[1]), t))
    for axes in ({"pp": 2}, {"pp": 2, "dp": 2}, {"pp": 2, "dp": 4}):
        step = made(axes, batch_spec=P("dp") if "dp" in axes else P())
        found = step.evaluate(step.place(params), x, t, num_microbatches=3)
        assert float(found) == pytest.approx(wanted, rel=1e-5)
    total = made({"pp": 2}, reduction="sum").evaluate(params, x, t, num_microbatches=3)
    assert float(total) == pytest.approx(3 * wanted, rel=1e-5)


def test_a_batch_that_does_not_divide_into_the_parts_asked_for(rng):
    with pytest.raises(errors.ValueMismatchError, match="cannot be cut into 3 equal microbatches"):
        made({"pp": 2}).evaluate(*arguments(rng), num_microbatches=3)


def test_no_parts_are_no_number_of_microbatches(rng):
    with pytest.raises(errors.ValueMismatchError, match="num_microbatches is a positive integer"):
        made({"pp": 2}).evaluate(*arguments(rng), num_microbatches=0)
