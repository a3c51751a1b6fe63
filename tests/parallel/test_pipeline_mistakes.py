"""Pipelines that do not fit together: each mistake is named."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import parallel
from infini.parallel import schedules
from infini.sharding import P, make_mesh
from tests.parallel.pipelined import arguments, layer, squares


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def made(**options):
    options = {"stages": [layer] * 2, "loss": squares, "mesh": make_mesh((2,), ("pp",)), **options}
    return parallel.pipeline(options.pop("stages"), options.pop("loss"), **{"num_microbatches": 4, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": "stages"}, "no axis 'stages'"),
        ({"stages": [layer] * 3}, "a multiple of 2 stages"),
        ({"stages": []}, "a multiple of 2 stages"),
        ({"stages": [layer, "head"]}, r"stages\[1\] is no function"),
        ({"loss": None}, "loss is no function"),
        ({"num_microbatches": None}, "num_microbatches is missing"),
        ({"num_microbatches": 0}, "positive integer"),
        ({"schedule": "zigzag"}, "no such schedule"),
        ({"stages": [layer] * 4}, "take 'interleaved'"),
        ({"stages": [layer] * 4, "schedule": "interleaved", "num_microbatches": 3}, "whole groups"),
        ({"schedule": schedules.gpipe(3, 4)}, "for something else"),
        ({"schedule": schedules.gpipe(2, 8)}, "for something else"),
        ({"reduction": "max"}, "'mean' or 'sum'"),
        ({"batch_spec": P("pp")}, "nothing is split over 'pp'"),
        ({"param_specs": [P()]}, "one entry per stage"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(inf.InfiniError, match=message):
        made(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, x, t: (p[:1], x, t), "one pytree per stage(.|\n)*1 entries"),
        (lambda p, x, t: ({"a": p}, x, t), "a dict"),
        (lambda p, x, t: (p, x[:6], t[:6]), "cannot be cut into 4 equal microbatches"),
        (lambda p, x, t: (p, x, t[:8]), "16 rows of inputs, 8 of targets"),
        (lambda p, x, t: (p, {"a": x, "b": x[:4]}, t), "inputs have a row per example"),
        (lambda p, x, t: (p, x, np.float32(1)), "targets have a row per example"),
        (lambda p, x, t: ([p[0], "weights"], x, t), "parameters of stage 1"),
    ],
)
def test_arguments_that_do_not_fit(change, message, rng):
    with pytest.raises(inf.InfiniError, match=message):
        made()(*change(*arguments(rng, (4, 4, 4))))


def test_a_loss_that_is_no_scalar(rng):
    with pytest.raises(inf.InfiniError, match=r"one real scalar(.|\n)*f32\[4\]"):
        made(loss=lambda y, t: ((y - t) ** 2).mean(1))(*arguments(rng, (4, 4, 4)))


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ([("0/weight", "1/wait")], "'1/wait'"),
        ([("0/weight", "0/weight")], "'0/weight', twice"),
        ([("0/weight", "1/bias")], "one type and one placement"),
    ],
)
def test_shared_names_that_mean_nothing(shared, message, rng):
    with pytest.raises(inf.InfiniError, match=message):
        made(shared=shared)(*arguments(rng, (4, 4, 4)))


def test_a_pipeline_is_not_part_of_a_program(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    with pytest.raises(inf.InfiniError, match="cannot be part of one"):
        inf.jit(lambda x: made()(params, x, t)[0])(x)


def test_a_nan_in_a_stage_is_named(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    x[0, 0] = -1.0
    with inf.config(nan=True), pytest.raises(inf.InfiniError, match=r"(?s)log.*test_pipeline_mistakes.py"):
        made(stages=[lambda p, x: inp.log(x) @ p["weight"], layer])(params, x, t)
