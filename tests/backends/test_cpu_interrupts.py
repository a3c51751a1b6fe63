"""Ctrl-C ends the loops of a native program, and only those of the main thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.backends.cpu import interrupts

PROGRAM = """
import os, signal, sys, threading
import infini as inf, infini.numpy as inp
from infini import lax

def forever(x):
    return lax.while_loop(lambda v: v >= 0, lambda v: (v + 1) % 1000, x)

def long(x):
    return lax.fori_loop(0, 2**31 - 1, lambda i, v: (v + 1) % 1000, x)

def parallel(x):
    return lax.while_loop(lambda v: v[0] >= 0, lambda v: inp.sin(v) + 2, inp.ones(1_000_000) * x)

for function in (forever, long, parallel):
    compiled = inf.jit(function, donate_argnums=0).lower(inp.float32(1)).compile()
    x = inp.asarray([1.0])[0]
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        compiled(x)
        sys.exit("it ended by itself")
    except KeyboardInterrupt:
        assert x.is_deleted(), "a donated array is half overwritten"
assert float(inf.jit(lambda x: lax.fori_loop(0, 10, lambda i, v: v + 1, x))(1.0)) == 11
print("interrupted")
"""


def test_loops_end_and_later_programs_run():
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-c", PROGRAM],
        capture_output=True, text=True, timeout=60, env={**os.environ, "INFINI_DEVICE": "cpu"},
    )  # fmt: skip
    assert done.stdout == "interrupted\n", done.stderr


def test_handlers_of_the_user_decide_themselves():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupts.watching() as flag:
            assert flag == interrupts.NEVER
    finally:
        signal.signal(signal.SIGINT, before)


def test_programs_of_other_threads_are_not_ended():
    found = []

    def work():
        with interrupts.watching() as flag:
            found.append(flag)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [interrupts.NEVER]


@pytest.mark.parametrize(
    ("function", "may_be_long"),
    [
        (lambda x: lax.fori_loop(0, 3, lambda i, v: v + 1, x), False),
        (lambda x: lax.while_loop(lambda v: v < 3, lambda v: v + 1, x), True),
        (lambda x: lax.fori_loop(0, 10**9, lambda i, v: v + 1, x), True),
        (lambda x: x + 1, False),
    ],
)
def test_only_programs_that_may_be_long_are_watched(function, may_be_long):
    with inf.config(device="cpu"):
        executable = inf.jit(function).lower(inp.float32(1)).compile().executable
    assert executable._may_be_long == may_be_long
