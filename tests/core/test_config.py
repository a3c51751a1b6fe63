"""Knobs: scoped changes, wrong names and values, the environment."""

import os
import subprocess
import sys

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


@pytest.mark.parametrize(
    ("name", "text"), [("INFINI_CHECK", "lots"), ("INFINI_COLOUR", "1"), ("INFINI_POOL", "x")]
)
def test_broken_environment_raises_at_import(name, text):
    done = subprocess.run(
        [sys.executable, "-c", "import infini"],
        env={**os.environ, name: text},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and name in done.stderr


def test_only_result_changing_knobs_are_in_the_cache_key():
    key = config.cache_key()
    with infini.config(num_threads=1, log="debug"):
        assert config.cache_key() == key
    with infini.config(no_fuse=True):
        assert config.cache_key() != key
