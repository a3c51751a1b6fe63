"""How many blocks a cache gets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from infini.core import errors
from infini.llm.engine import memory
from infini.llm.engine.config import EngineConfig

MIB = 2**20


@dataclass
class Device:
    """A device that says how much memory it has."""

    platform: str = "cuda"
    free: int = 60 * MIB
    limit: int = 100 * MIB

    def memory_stats(self) -> dict[str, int]:
        return {} if self.platform == "cpu" else {"bytes_free": self.free, "bytes_limit": self.limit}


def decide(device=None, model_len=1024, **fields) -> memory.CacheSize:
    return memory.decide(
        EngineConfig(max_num_seqs=64, **fields),
        bytes_per_token=1024, block_size=32, model_len=model_len, device=device or Device(),
    )  # fmt: skip


def test_an_accelerator_keeps_the_share_that_is_not_asked_for():
    size = decide(gpu_memory_utilization=0.9)
    assert size.available_bytes == pytest.approx(50 * MIB, abs=2)
    assert size.num_blocks == size.available_bytes // (32 * 1024)


def test_no_more_blocks_than_requests_can_use():
    assert decide(Device(free=10**12, limit=10**12)).num_blocks == 64 * 32 * 2
    assert decide(Device(free=10**12, limit=10**12), enable_prefix_caching=False).num_blocks == 64 * 32


def test_a_host_gives_at_most_four_gib():
    assert 0 < decide(Device("cpu")).available_bytes <= 4 * 2**30


def test_what_is_said_outright_is_taken():
    assert decide(kv_cache_memory_bytes=MIB).num_blocks == 32
    assert decide(num_gpu_blocks_override=77).num_blocks == 77


def test_a_static_cache_has_a_block_for_each_request():
    size = memory.decide(
        EngineConfig(max_num_seqs=8, cache_mode="static"),
        bytes_per_token=1024, block_size=1024, model_len=1000, device=Device(),
    )  # fmt: skip
    assert (size.num_blocks, size.max_model_len) == (8, 1000)


def test_a_cache_that_holds_no_request_of_the_length_asked_for_is_refused():
    with pytest.raises(errors.ValueMismatchError, match="too small"):
        decide(max_model_len=1024, kv_cache_memory_bytes=MIB // 2)
    assert decide(kv_cache_memory_bytes=MIB // 2).max_model_len == 512
