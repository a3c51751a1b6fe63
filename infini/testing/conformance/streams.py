"""Streams and events: order, waiting, and time."""

from __future__ import annotations

import time

import numpy as np

from infini.testing.conformance.checks import Check, Failed, Subject, data, expect, expect_equal

PATIENCE_S = 10.0  # how long something may take that takes microseconds


def _becomes_true(asked: object, what: str) -> int:
    """How often something had to be asked until it was so."""
    assert callable(asked)
    start = time.monotonic()
    count = 1
    while not asked():
        if time.monotonic() - start > PATIENCE_S:
            raise Failed(f"{what} is not so after {PATIENCE_S:.0f} s")
        count += 1
    return count


def are_made(subject: Subject) -> str:
    """Streams are there, and different."""
    with subject.stream() as first, subject.stream() as second:
        expect(first != 0 and second != 0, "a stream is a null pointer")
        expect(first != second, "two streams are one")
        subject.runtime.stream_synchronize(first)
    return ""


def keep_order(subject: Subject) -> str:
    """Many copies of one stream."""
    runtime = subject.runtime
    hosts = [data(512, seed) for seed in range(20)]
    back = np.zeros(512, np.uint8)
    with subject.block(512) as address, subject.stream() as stream:
        for host in hosts:
            runtime.copy_async(address, host.ctypes.data, 512, "h2d", stream)
        runtime.copy_async(back.ctypes.data, address, 512, "d2h", stream)
        runtime.stream_synchronize(stream)
    expect_equal(back, hosts[-1], "the last of many copies")
    return ""


def answer(subject: Subject) -> str:
    """A stream says when it is done, without being waited for."""
    runtime, host = subject.runtime, data(1 << 16)
    with subject.block(host.nbytes) as address, subject.stream() as stream:
        _becomes_true(lambda: runtime.stream_query(stream), "a stream without work is done")
        for _ in range(3):
            runtime.copy_async(address, host.ctypes.data, host.nbytes, "h2d", stream)
        count = _becomes_true(lambda: runtime.stream_query(stream), "a stream with three copies is done")
        expect_equal(subject.download(address, host.nbytes), host, "a stream that says it is done")
    return f"asked {count} times" if runtime.has("stream_query") else "by waiting"


def happen(subject: Subject) -> str:
    """An event happens after what was given before it."""
    runtime, host = subject.runtime, data(1 << 16)
    back = np.zeros_like(host)
    with subject.block(host.nbytes) as address, subject.stream() as stream, subject.event() as event:
        runtime.copy_async(address, host.ctypes.data, host.nbytes, "h2d", stream)
        runtime.copy_async(back.ctypes.data, address, host.nbytes, "d2h", stream)
        runtime.event_record(event, stream)
        runtime.event_synchronize(event)
        expect_equal(back, host, "after an event")
        expect(runtime.event_query(event), "an event that was waited for has not happened")
    return ""


def answer_about_events(subject: Subject) -> str:
    """An event says when it has happened, without being waited for."""
    runtime, host = subject.runtime, data(1 << 16)
    back = np.zeros_like(host)
    with subject.block(host.nbytes) as address, subject.stream() as stream, subject.event() as event:
        runtime.copy_async(address, host.ctypes.data, host.nbytes, "h2d", stream)
        runtime.copy_async(back.ctypes.data, address, host.nbytes, "d2h", stream)
        runtime.event_record(event, stream)
        count = _becomes_true(lambda: runtime.event_query(event), "an event has happened")
        expect_equal(back, host, "after an event that says so")
    return f"asked {count} times" if runtime.has("event_query") else "by waiting"


def are_waited_for(subject: Subject) -> str:
    """One stream waits for another."""
    runtime, host = subject.runtime, data(1 << 16)
    back, n = np.zeros_like(host), host.nbytes
    with subject.block(n) as address, subject.stream() as first, subject.stream() as second:
        subject.upload(address, data(n, 1))
        with subject.event() as event:
            runtime.copy_async(address, host.ctypes.data, n, "h2d", first)
            runtime.event_record(event, first)
            runtime.stream_wait_event(second, event)
            runtime.copy_async(back.ctypes.data, address, n, "d2h", second)
            runtime.stream_synchronize(second)
        expect_equal(back, host, "a stream that waited for another")
    return ""


def happen_again(subject: Subject) -> str:
    """An event can be used more than once."""
    runtime, n = subject.runtime, 4096
    back = np.zeros(n, np.uint8)
    with subject.block(n) as address, subject.stream() as stream, subject.event() as event:
        for seed in range(3):
            host = data(n, seed)
            runtime.copy_async(address, host.ctypes.data, n, "h2d", stream)
            runtime.copy_async(back.ctypes.data, address, n, "d2h", stream)
            runtime.event_record(event, stream)
            runtime.event_synchronize(event)
            expect_equal(back, host, f"the event's use number {seed + 1}")
    return ""


def tell_time(subject: Subject) -> str:
    """The time between two events is that of the work between them."""
    runtime, host = subject.runtime, data(1 << 20)
    with (
        subject.block(host.nbytes) as address, subject.stream() as stream,
        subject.event() as start, subject.event() as middle, subject.event() as end,
    ):  # fmt: skip
        for event in (start, middle, end):
            runtime.event_record(event, stream)
            for _ in range(4):
                runtime.copy_async(address, host.ctypes.data, host.nbytes, "h2d", stream)
        runtime.stream_synchronize(stream)
        part = runtime.event_elapsed_ms(start, middle)
        whole = runtime.event_elapsed_ms(start, end)
    expect(0 < part < whole < 60_000, "times are out of order", got=f"{part} ms of {whole} ms")
    return f"{whole:.3f} ms by the {'device' if runtime.has_device_clock else 'host'}'s clock"


CHECKS = (
    Check("streams", "are made", are_made),
    Check("streams", "keep order", keep_order),
    Check("streams", "say when they are done", answer),
    Check("events", "happen after what was before them", happen),
    Check("events", "say when they have happened", answer_about_events),
    Check("events", "let one stream wait for another", are_waited_for),
    Check("events", "happen again", happen_again),
    Check("events", "tell time", tell_time),
)
