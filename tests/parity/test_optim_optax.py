"""Optimizers, transformations and schedules against optax's: parameters after several steps, states with the
same fields, and values at every step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
import pytest

import infini
from infini import optim

NUM_STEPS = 6
RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.standard_normal((6, 4)).astype(np.float32),
    "b": RNG.standard_normal(4).astype(np.float32),
    "s": np.float32(0.5),
}
GRADIENTS = {
    name: RNG.standard_normal((NUM_STEPS, *np.shape(x))).astype(np.float32) for name, x in PARAMS.items()
}


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Iterator[None]:
    """JAX's compiler need not optimize what runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def on_the_reference_backend() -> Iterator[None]:
    """These compare formulas; how well the backends do them is tested with the operations."""
    with infini.config(device="reference"):
        yield


def matrices(params: Any) -> dict[str, bool]:
    return {name: x.ndim == 2 for name, x in params.items()}


Factory = Callable[[Any], Any]  # from a module, infini.optim or optax, to a transformation
OPTIMIZERS: dict[str, Factory] = {
    "sgd": lambda o: o.sgd(0.1),
    "sgd momentum": lambda o: o.sgd(0.1, 0.9),
    "sgd nesterov": lambda o: o.sgd(o.linear_schedule(0.1, 0.0, 4), 0.9, True),
    "adam": lambda o: o.adam(0.1),
    "adam options": lambda o: o.adam(0.1, 0.8, 0.9, 1e-3, 1e-4, nesterov=True),
    "adam narrow mean": lambda o: o.adam(0.1, mu_dtype="bfloat16"),
    "nadam": lambda o: o.nadam(0.1),
    "adamw": lambda o: o.adamw(0.1, weight_decay=0.1, mask=matrices),
    "adamw schedules": lambda o: o.adamw(
        o.cosine_decay_schedule(0.1, 5), weight_decay=o.linear_schedule(0.1, 0.0, 5)
    ),
    "nadamw": lambda o: o.nadamw(0.1, mask={"w": True, "b": False, "s": False}),
    "amsgrad": lambda o: o.amsgrad(0.1),
    "amsgrad plain": lambda o: o.amsgrad(0.1, bias_correction_mu=False, bias_correction_nu=False),
    "adamax": lambda o: o.adamax(0.1),
    "adamaxw": lambda o: o.adamaxw(0.1, weight_decay=0.1),
    "adabelief": lambda o: o.adabelief(0.1),
    "yogi": lambda o: o.yogi(0.1),
    "radam": lambda o: o.radam(0.1),
    "radam early": lambda o: o.radam(0.1, b2=0.5, threshold=1.5, nesterov=True),
    "adan": lambda o: o.adan(0.1, weight_decay=0.1),
    "lion": lambda o: o.lion(0.1, weight_decay=0.1),
    "adagrad": lambda o: o.adagrad(0.1),
    "rmsprop": lambda o: o.rmsprop(0.1),
    "rmsprop options": lambda o: o.rmsprop(
        0.1, 0.8, initial_scale=1.0, eps_in_sqrt=False, momentum=0.9, nesterov=True, bias_correction=True
    ),
    "rmsprop centered": lambda o: o.rmsprop(0.1, centered=True, eps=1e-2),
    "adadelta": lambda o: o.adadelta(1.0, weight_decay=0.1),
    "novograd": lambda o: o.novograd(0.1, weight_decay=0.1),
    "lamb": lambda o: o.lamb(0.1, weight_decay=0.1),
    "lars": lambda o: o.lars(0.1, weight_decay=0.1),
    "fromage": lambda o: o.fromage(0.1),
    "sign_sgd": lambda o: o.sign_sgd(0.1),
    "signum": lambda o: o.signum(0.1),
    "noisy_sgd": lambda o: o.noisy_sgd(0.1, key=3),
    "adafactor": lambda o: o.adafactor(0.1),
    "adafactor factored": lambda o: o.adafactor(
        0.1, min_dim_size_to_factor=2, momentum=0.9, weight_decay_rate=0.1
    ),
    "muon": lambda o: getattr(o, "contrib", o).muon(0.1, weight_decay=0.1),
    "muon adaptive": lambda o: getattr(o, "contrib", o).muon(
        0.1, adaptive=True, nesterov=False, consistent_rms=0.2, adam_learning_rate=0.01
    ),
    "clip_by_global_norm": lambda o: o.chain(o.clip_by_global_norm(1.0), o.adam(0.1)),
    "clip_by_block_rms": lambda o: o.chain(o.clip_by_block_rms(0.5), o.sgd(0.1)),
    "clip": lambda o: o.chain(o.clip(0.3), o.sgd(0.1)),
    "adaptive_grad_clip": lambda o: o.chain(o.adaptive_grad_clip(0.1), o.sgd(0.1)),
    "centralize": lambda o: o.chain(o.centralize(), o.sgd(0.1)),
    "ema": lambda o: o.chain(o.ema(0.9), o.sgd(0.1)),
    "normalize_by_update_norm": lambda o: o.chain(o.normalize_by_update_norm(2.0), o.sgd(0.1)),
    "scale_by_param_block": lambda o: o.chain(
        o.scale_by_param_block_norm(), o.scale_by_param_block_rms(), o.sgd(0.1)
    ),
    "keep_params_nonnegative": lambda o: o.chain(o.sgd(0.1), o.keep_params_nonnegative()),
    "zero_nans": lambda o: o.chain(o.zero_nans(), o.sgd(0.1)),
    "lion smooth": lambda o: o.chain(o.scale_by_lion(mode="smooth", smooth_beta=2.0), o.scale(-0.1)),
    "lion refined": lambda o: o.chain(o.scale_by_lion(mode="refined"), o.scale(-0.1)),
    "named_chain": lambda o: o.named_chain(("clip", o.clip(0.3)), ("step", o.adam(0.1))),
    "masked": lambda o: o.chain(o.masked(o.adam(0.1), matrices), o.scale(-1)),
    "partition": lambda o: o.partition(
        {"a": o.adam(0.1), "b": o.sgd(0.1), "none": o.set_to_zero()}, {"w": "a", "b": "b", "s": "none"}
    ),
    "apply_every": lambda o: o.chain(o.adam(0.1), o.apply_every(3)),
    "MultiSteps": lambda o: o.MultiSteps(o.adam(0.1), 3),
    "MultiSteps sum": lambda o: o.MultiSteps(o.sgd(0.1), lambda step: step + 1, use_grad_mean=False),
    "MultiSteps skip": lambda o: o.MultiSteps(
        o.adam(0.1), 2,
        should_skip_update_fn=functools.partial(o.skip_large_updates, max_squared_norm=30.0),
    ),
    "apply_if_finite": lambda o: o.apply_if_finite(o.adam(0.1), 2),
    "inject_hyperparams": lambda o: o.inject_hyperparams(o.adamw)(
        o.linear_schedule(0.1, 0.0, 5), b1=0.8, weight_decay=0.1
    ),
}  # fmt: skip


def run(root: ModuleType, module: ModuleType, factory: Factory) -> tuple[Any, Any]:
    """Parameters and state after all steps, with the state as the carry of a scan."""
    optimizer = factory(module)

    def step(carry: tuple[Any, Any], gradients: Any) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return (module.apply_updates(params, updates), state), None

    params = root.tree.map(root.numpy.asarray, PARAMS)
    return root.lax.scan(step, (params, optimizer.init(params)), GRADIENTS)[0]


@functools.cache
def of_optax() -> dict[str, tuple[Any, Any]]:
    """All of them in one program, compiled once."""
    everything = jax.jit(lambda: {name: run(jax, optax, factory) for name, factory in OPTIMIZERS.items()})
    return everything()


# A mean in bfloat16 is rounded at other places; an iteration, and a variance as a difference, amplify errors.
LOOSER = {"adam narrow mean": 2000, "muon": 100, "muon adaptive": 100, "rmsprop centered": 100}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_after_some_steps(name: str) -> None:
    params, _ = run(infini, optim, OPTIMIZERS[name])
    wanted, _ = of_optax()[name]
    loose = LOOSER.get(name, 1)
    for leaf in PARAMS:
        assert np.asarray(wanted[leaf] != PARAMS[leaf]).any() or leaf == "s"
        np.testing.assert_allclose(params[leaf], wanted[leaf], rtol=2e-5 * loose, atol=2e-6 * loose)


def names_of_fields(state: Any) -> Any:
    """Names of a state's fields, of those inside it too, without parameters."""
    if isinstance(state, tuple):
        own = getattr(state, "_fields", None)
        parts = [names_of_fields(part) for part in state]
        return dict(zip(own, parts, strict=True)) if own else parts
    return None


# Names that optax gives to states that hold more there: stateful schedules, and coefficients of Muon.
OWN_STATES = {"inject_hyperparams", "muon", "muon adaptive", "noisy_sgd"}


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in OWN_STATES])
def test_states_have_the_fields_of_optax(name: str) -> None:
    params = infini.tree.map(infini.numpy.asarray, PARAMS)
    ours = OPTIMIZERS[name](optim).init(params)
    theirs = OPTIMIZERS[name](optax).init(PARAMS)
    assert names_of_fields(ours) == names_of_fields(theirs)


def test_steps_that_are_not_finite_are_skipped_as_in_optax() -> None:
    def losses(root: ModuleType, module: ModuleType) -> list[float]:
        inner = module.sgd(1.0)
        optimizer, params = module.apply_if_finite(inner, 2), root.numpy.zeros(())
        state, found = optimizer.init(params), []
        for gradient in (1.0, np.nan, np.inf, 2.0, np.nan, np.nan, np.nan):
            updates, state = optimizer.update(root.numpy.asarray(gradient, "float32"), state, params)
            found += [float(updates), int(state.notfinite_count), int(state.total_notfinite)]
        return found

    np.testing.assert_array_equal(losses(infini, optim), losses(jax, optax))


def test_plateaus_are_found_as_in_optax() -> None:
    values = np.array([3, 2, 2, 2, 2, 2, 1, 1.5, 1.5, 1.5, 1.5, 1.5, 0.1, 0.2], np.float32)
    options = {"factor": 0.5, "patience": 2, "cooldown": 1, "accumulation_size": 1, "min_scale": 0.2}

    def scales(root: ModuleType, module: Any) -> Any:
        plateau = module.reduce_on_plateau(**options)

        def step(state: Any, value: Any) -> tuple[Any, Any]:
            updates, state = plateau.update({"w": root.numpy.ones(())}, state, value=value)
            return state, (updates["w"], state.plateau_count, state.cooldown_count)

        return root.lax.scan(step, plateau.init({"w": root.numpy.zeros(())}), values)[1]

    for found, wanted in zip(scales(infini, optim), scales(jax, optax.contrib), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_lookahead_is_that_of_optax() -> None:
    def path(root: ModuleType, module: ModuleType) -> list[np.ndarray]:
        optimizer = module.lookahead(module.sgd(0.5, 0.9), 3, 0.3, reset_state=True)
        params = module.LookaheadParams.init_synced(root.numpy.asarray(PARAMS["b"]))
        state, found = optimizer.init(params), []
        for gradient in GRADIENTS["b"]:
            updates, state = optimizer.update(root.numpy.asarray(gradient), state, params)
            params = module.apply_updates(params, updates)
            found += [np.asarray(params.fast), np.asarray(params.slow)]
        return found

    np.testing.assert_allclose(path(infini, optim), path(jax, optax), rtol=1e-5, atol=1e-6)


SCHEDULES: dict[str, Factory] = {
    "constant": lambda o: o.constant_schedule(0.3),
    "linear": lambda o: o.linear_schedule(1.0, 3.0, 7, 2),
    "polynomial": lambda o: o.polynomial_schedule(1.0, 0.1, 2.5, 10, 3),
    "polynomial without steps": lambda o: o.polynomial_schedule(1.0, 0.1, 2, 0),
    "cosine": lambda o: o.cosine_decay_schedule(2.0, 15, 0.1, 1.5),
    "exponential": lambda o: o.exponential_decay(2.0, 5, 0.5, 2),
    "exponential staircase": lambda o: o.exponential_decay(2.0, 4, 0.5, staircase=True, end_value=0.3),
    "exponential growth": lambda o: o.exponential_decay(1.0, 4, 2.0, end_value=5.0),
    "piecewise constant": lambda o: o.piecewise_constant_schedule(1.0, {5: 0.5, 11: 0.1}),
    "piecewise linear": lambda o: o.piecewise_interpolate_schedule("linear", 1.0, {5: 0.5, 11: 3.0}),
    "piecewise cosine": lambda o: o.piecewise_interpolate_schedule("cosine", 1.0, {5: 0.5, 11: 3.0}),
    "linear onecycle": lambda o: o.linear_onecycle_schedule(20, 2.0),
    "cosine onecycle": lambda o: o.cosine_onecycle_schedule(20, 2.0),
    "warmup constant": lambda o: o.warmup_constant_schedule(0.1, 2.0, 6),
    "warmup cosine": lambda o: o.warmup_cosine_decay_schedule(0.1, 2.0, 6, 20, 0.2),
    "warmup exponential": lambda o: o.warmup_exponential_decay_schedule(0.1, 2.0, 6, 5, 0.5, 1, True, 0.3),
    "joined": lambda o: o.join_schedules(
        [o.linear_schedule(0.0, 1.0, 4), o.constant_schedule(2.0), o.linear_schedule(1.0, 0.0, 3)], [5, 9]
    ),
    "sgdr": lambda o: o.sgdr_schedule(
        [{"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 7, "end_value": 0.2},
         {"init_value": 0.2, "peak_value": 2.0, "warmup_steps": 1, "decay_steps": 9}]
    ),
}  # fmt: skip


STEPS = np.arange(24)


@functools.cache
def schedules_of_optax() -> dict[str, Any]:
    def values(schedule: Any) -> Any:
        return jax.vmap(lambda n: jax.numpy.asarray(schedule(n), "float32"))(jax.numpy.asarray(STEPS))

    everything = jax.jit(lambda: {name: values(factory(optax)) for name, factory in SCHEDULES.items()})
    return everything()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    ours, wanted = SCHEDULES[name](optim), schedules_of_optax()[name]
    np.testing.assert_allclose(infini.jit(infini.vmap(ours))(STEPS), wanted, rtol=2e-5, atol=1e-6)
    assert float(ours(7)) == pytest.approx(float(wanted[7]), rel=2e-5)


# Where optax has more arguments, and why they are absent: stateful schedules, other preconditioners and
# dimension numbers of Muon, a deprecated seed.
OTHER_ARGUMENTS = {"muon", "noisy_sgd"}
PUBLIC = sorted(
    name
    for name in set(dir(optim)) & (set(dir(optax)) | {"muon", "reduce_on_plateau"})
    if inspect.isfunction(getattr(optim, name)) and name not in OTHER_ARGUMENTS | {"add_noise", "safe_norm"}
)


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments(name: str) -> None:
    theirs = getattr(optax, name, None) or getattr(optax.contrib, name)
    ours = inspect.signature(getattr(optim, name)).parameters.values()
    wanted = inspect.signature(theirs).parameters.values()
    names = [p.name for p in wanted if p.name not in ("decay_rate_fn",)]
    assert [p.name for p in ours] == names
    shared = {p.name: p.default for p in wanted}
    for p in ours:
        assert p.default == shared[p.name] or "float32" in str(p.default), p.name
