"""How much memory a cache gets, and how many blocks that is, with the arithmetic to be read.

References: vLLM prints the same lines.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infini.core import backend, errors
from infini.llm.engine.config import EngineConfig

GIB: Final = 2**30
_MOST_ON_HOST: Final = 4 * GIB  # what a CPU's cache takes unless more is asked for
# Blocks beyond those that all requests of a step can hold keep beginnings of earlier texts.
_ROOM_FOR_PREFIXES: Final = 2


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What was decided about a cache.

    Args:
        num_blocks: blocks.
        block_size: tokens of each.
        bytes_per_token: bytes of a token in all layers.
        available_bytes: what it may take.
        max_model_len: most tokens of a request.
        is_on_host: whether it lies in the memory of the host.
    """

    num_blocks: int
    block_size: int
    bytes_per_token: int
    available_bytes: int
    max_model_len: int
    is_on_host: bool

    @property
    def num_tokens(self) -> int:
        """Tokens it holds."""
        return self.num_blocks * self.block_size

    def lines(self) -> list[str]:
        """The arithmetic, for people."""
        concurrency = self.num_tokens / self.max_model_len
        where = "CPU" if self.is_on_host else "GPU"
        return [
            f"Available KV cache memory: {size_text(self.available_bytes)}",
            f"{where} KV cache size: {self.num_tokens:,} tokens ({self.num_blocks:,} blocks of "
            f"{self.block_size} tokens at {self.bytes_per_token:,} bytes = "
            f"{size_text(self.num_tokens * self.bytes_per_token)})",
            f"Maximum concurrency for {self.max_model_len:,} tokens per request: {concurrency:.2f}x",
        ]


def decide(
    config: EngineConfig, *, bytes_per_token: int, block_size: int, model_len: int, device: backend.Device
) -> CacheSize:
    """How many blocks a cache gets.

    Args:
        config: what was asked for.
        bytes_per_token: bytes of a token in all layers.
        block_size: tokens of a block.
        model_len: most tokens that the model was made for; a request gets no more than fit the cache unless
            `max_model_len` was asked for.
        device: where it will lie.

    Raises:
        ValueMismatchError: not one request of `max_model_len` tokens fits.
    """
    is_on_host = device.platform in ("cpu", "reference")
    available = config.kv_cache_memory_bytes
    if available is None:
        available = _available(device, config.gpu_memory_utilization)
        available = min(available, _MOST_ON_HOST) if is_on_host else available
    longest = config.max_model_len or model_len
    per_request = -(-longest // block_size)
    count = available // (bytes_per_token * block_size)
    if config.cache_mode == "static":
        count = min(count, config.max_num_seqs)
    else:
        room = _ROOM_FOR_PREFIXES if config.enable_prefix_caching else 1
        count = min(count, config.max_num_seqs * per_request * room)
    if config.num_gpu_blocks_override is not None:
        count = config.num_gpu_blocks_override
    if count < per_request and (config.max_model_len is not None or count < 1):
        raise errors.ValueMismatchError(
            "the key/value cache is too small for one request",
            got=f"{count} blocks of {block_size} tokens, {bytes_per_token:,} bytes per token, in "
            f"{size_text(available)}",
            expected=f"at least {per_request} blocks for {longest} tokens (max_model_len)",
            fix="give the cache more memory (kv_cache_memory_bytes), or lower max_model_len",
        )
    return CacheSize(
        count, block_size, bytes_per_token, available, min(longest, count * block_size), is_on_host
    )


def size_text(nbytes: int) -> str:
    """Bytes for people.

    Example:
        >>> size_text(3 * 2**30), size_text(5 * 2**20)
        ('3.00 GiB', '5.00 MiB')
    """
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB else f"{nbytes / 2**20:.2f} MiB"


def _available(device: backend.Device, utilization: float) -> int:
    """What is free of a device, less the share of it that stays untouched."""
    stats = device.memory_stats()
    if "bytes_free" not in stats:
        return int(host_free_bytes() * utilization)
    return max(int(stats["bytes_free"] - (1.0 - utilization) * stats["bytes_limit"]), 0)


def host_free_bytes() -> int:
    """Memory of the host that nobody uses."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
