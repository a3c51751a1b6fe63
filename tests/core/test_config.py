"""Knobs: scoped changes, wrong names and values, the environment."""

import os
import subprocess
import sys
import threading

import pytest

import infini
from infini.core import config


def test_changes_end_with_the_block():
    before = config.get("no_fuse")
    with infini.config(no_fuse=not before):
        assert config.get("no_fuse") is not before
    assert config.get("no_fuse") is before


def test_unknown_knobs_are_refused():
    with pytest.raises(ValueError, match="no knob named 'colour'"), infini.config(colour=1):
        pass


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="wrong value"), infini.config(pool="wrong"):
        pass


@pytest.mark.parametrize(("name", "value"), [("cpu_devices", 0), ("cpu_devices", "0"), ("num_threads", -1)])
def test_counts_that_are_too_small_are_refused(name, value):
    with pytest.raises(infini.InfiniError, match=f"(?s)knob '{name}' has a wrong value.*at least"):
        infini.config(**{name: value}).__enter__()


@pytest.mark.parametrize(
    ("name", "text"),
    [("INFINI_CHECK", "lots"), ("INFINI_COLOUR", "1"), ("INFINI_POOL", "x"), ("INFINI_CPU_DEVICES", "0")],
)
def test_broken_environment_raises_at_import(name, text):
    done = subprocess.run(
        [sys.executable, "-c", "import infini"],
        env={**os.environ, name: text},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and name in done.stderr


@pytest.fixture
def process():
    """Puts the values of the process back."""
    before = config._process.scope
    yield
    config._process.scope = before


@pytest.mark.usefixtures("process")
def test_update_changes_a_knob_for_the_process_and_its_threads():
    infini.config.update("seed", 7)
    found = []
    thread = threading.Thread(target=lambda: found.append(infini.config.seed))
    thread.start()
    thread.join()
    assert infini.config.seed == 7 and found == [7]


@pytest.mark.usefixtures("process")
def test_a_block_keeps_its_value_and_sees_updates_of_others():
    with infini.config(seed=1):
        infini.config.update("log", "debug")
        assert (infini.config.seed, infini.config.log) == (1, "debug")
    assert infini.config.log == "debug"


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("flag", "value", "knob", "expected"),
    [
        ("jax_debug_nans", True, "nan", True),
        ("jax_debug_infs", True, "inf", True),
        ("jax_check_tracer_leaks", True, "check_tracer_leaks", True),
        ("jax_enable_compilation_cache", False, "no_cache", True),
        ("jax_platforms", "cpu", "device", "cpu"),
        ("jax_platform_name", "gpu", "device", "cuda"),
        ("jax_num_cpu_devices", 4, "cpu_devices", 4),
        ("jax_num_cpu_devices", -1, "cpu_devices", 1),
    ],
)
def test_flags_of_jax_set_knobs(flag, value, knob, expected):
    infini.config.update(flag, value)
    assert config.get(knob) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("colour", 1, "no knob named 'colour'"),
        ("pool", "wrong", "wrong value"),
        ("jax_enable_x64", True, "64-bit dtypes need no flag"),
        ("jax_traceback_filtering", "off", "means nothing here"),
    ],
)
def test_updates_that_mean_nothing_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        infini.config.update(name, value)


def test_blocks_have_the_names_of_jax():
    with infini.debug_nans(), infini.debug_infs(True), infini.check_tracer_leaks():
        assert (config.get("nan"), config.get("inf"), config.get("check_tracer_leaks")) == (True, True, True)
        with infini.debug_nans(False):
            assert config.get("nan") is False


def test_the_page_of_knobs_is_in_step(golden):
    golden("../../docs/knobs.md", config.document())


def test_only_result_changing_knobs_are_in_the_cache_key():
    key = config.cache_key()
    with infini.config(num_threads=1, log="debug"):
        assert config.cache_key() == key
    with infini.config(no_fuse=True):
        assert config.cache_key() != key
