"""Caches of programs: bounded, and every program is compiled once whatever the number of threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.core import backend, execute


def in_threads(count, function):
    """Results of a function called by several threads at once."""
    gate, found = threading.Barrier(count), [None] * count

    def work(i):
        gate.wait()
        found[i] = function()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_oldest_entry_goes_first():
    cache = execute.BoundedCache(2)
    for key in "abc":
        cache.put(key, key)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (None, "b", "c", 2)


def test_an_entry_that_is_put_again_moves_nobody_out():
    cache = execute.BoundedCache(2)
    for key in "abb":
        cache.put(key, key)
    assert cache.get("a") == "a"


def test_an_entry_is_made_once_by_many_threads():
    cache, made = execute.BoundedCache(8), []

    def maker():
        made.append(threading.get_ident())
        return object()

    found = in_threads(8, lambda: cache.make("key", maker))
    assert len(made) == 1 and len(set(map(id, found))) == 1


def test_a_maker_that_fails_leaves_the_way_free():
    cache = execute.BoundedCache(8)
    with pytest.raises(ZeroDivisionError):
        cache.make("key", lambda: 1 // 0)
    assert cache.make("key", lambda: 5) == 5


def test_a_maker_may_ask_for_what_it_makes():
    cache = execute.BoundedCache(8)
    assert cache.make("key", lambda: cache.make("key", lambda: 3)) == 3


def test_threads_compile_equal_programs_once(monkeypatch):
    chosen, compiled = backend.get("cpu"), []
    original = type(chosen).compile

    def counting(self, program, options):
        compiled.append(program.fingerprint)
        return original(self, program, options)

    monkeypatch.setattr(type(chosen), "compile", counting)
    execute.clear_caches()
    x = inp.arange(97.0)
    compiled.clear()
    with inf.config(device="cpu"):
        # Every thread jits a function of its own; the programs are equal.
        found = in_threads(6, lambda: inf.jit(lambda v: inp.tanh(v) * 3.25 - 1)(x))
    assert len(compiled) == len(set(compiled)) == 1
    assert all(np.array_equal(f, found[0]) for f in found)
