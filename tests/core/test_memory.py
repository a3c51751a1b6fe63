"""Host buffers: alignment, reuse, and views that outlive them."""

import gc

import numpy as np
import pytest

import infini
from infini.core import memory


@pytest.mark.parametrize("nbytes", [0, 1, 64, 65, 5000, 3 << 20])
def test_buffers_are_aligned(nbytes):
    assert memory.HostBuffer(nbytes).address % memory.ALIGNMENT == 0


def test_size_classes_waste_at_most_an_eighth_above_a_page():
    for nbytes in (4097, 10_000, 1_000_000, 123_456_789):
        assert nbytes <= memory.size_class(nbytes) <= nbytes * 1.125 + 4096


def test_a_dead_buffer_is_used_again():
    first = memory.HostBuffer(12_345)
    address = first.address
    del first
    assert memory.HostBuffer(12_300).address == address


def test_a_view_keeps_its_memory():
    buffer = memory.HostBuffer.copy_of(np.arange(1000, dtype=np.float32))
    view = buffer.view((1000,), np.dtype(np.float32))
    assert buffer.has_views
    del buffer
    gc.collect()
    others = [memory.HostBuffer.copy_of(np.zeros(1000, np.float32)) for _ in range(4)]
    assert len(others) == 4
    np.testing.assert_array_equal(view, np.arange(1000))


def test_views_that_died_do_not_count():
    buffer = memory.HostBuffer.copy_of(np.arange(10, dtype=np.float32))
    assert not buffer.has_views


def test_adopted_memory_is_shared():
    host = np.arange(4, dtype=np.float32)
    assert memory.HostBuffer.adopt(host).view((4,), host.dtype)[2] == 2
    assert memory.HostBuffer.adopt(host).address == host.ctypes.data


@pytest.mark.parametrize("is_native", [False, True])
def test_sizes_no_longer_used_make_room_for_those_that_are(is_native, monkeypatch):
    """Blocks of a step that is over fill the free lists; those of the next step are recycled all the same."""
    if is_native:
        infini.jit(lambda x: x + 1)(1.0)  # machine code takes and gives from now on
    memory.HOST.trim()
    large, small = memory.MAX_FREE_BYTES // 4, 5 << 20
    held = [memory.HostBuffer(large) for _ in range(4)]
    del held
    assert memory.HOST.stats()["bytes_kept"] > memory.MAX_FREE_BYTES - small
    for _ in range(3):
        del [memory.HostBuffer(small) for _ in range(3)][:]
    made, new_block = [], memory._new_block
    monkeypatch.setattr(memory, "_new_block", lambda size: made.append(size) or new_block(size))
    for _ in range(3):
        del [memory.HostBuffer(small) for _ in range(3)][:]
    assert not made
    assert memory.HOST.stats()["bytes_kept"] <= memory.MAX_FREE_BYTES
    memory.HOST.trim()


def test_sizes_in_use_are_not_dropped_for_others():
    memory.HOST.trim()
    size = memory.MAX_FREE_BYTES // 4
    held = [memory.HostBuffer(size) for _ in range(4)]
    del held
    for _ in range(4):
        first = memory.HostBuffer(size)
        address = first.address
        del first
        memory.HostBuffer(3 << 20)
    again = memory.HostBuffer(size)
    assert again.address == address
    del again
    memory.HOST.trim()
