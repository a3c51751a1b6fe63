"""The line about throughput that the log gets every ten seconds, in vLLM's words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from infini.llm.engine.outputs import EngineStats
from infini.llm.server import logs

INTERVAL_S: Final = 10.0


class Throughput:
    """Makes the line from what an engine has counted since the last one.

    Args:
        stats: reads the engine's counts.
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats
        self._last, self._time, self._was_idle = stats(), time.monotonic(), True

    def line(self) -> str | None:
        """The line, or None when nothing happened since the last one and the one before it."""
        stats, now = self._stats(), time.monotonic()
        seconds = max(now - self._time, 1e-9)
        prompt = (stats.prompt_tokens - self._last.prompt_tokens) / seconds
        made = (stats.generation_tokens - self._last.generation_tokens) / seconds
        preemptions = stats.num_preemptions - self._last.num_preemptions
        is_idle = not (prompt or made or stats.num_running or stats.num_waiting)
        was_idle, self._was_idle = self._was_idle, is_idle
        self._last, self._time = stats, now
        if is_idle and was_idle:
            return None
        hit_rate = stats.prefix_cache_hits / max(stats.prefix_cache_queries, 1)
        parts = [
            f"Engine 000: Avg prompt throughput: {prompt:.1f} tokens/s",
            f"Avg generation throughput: {made:.1f} tokens/s",
            f"Running: {stats.num_running} reqs",
            f"Waiting: {stats.num_waiting} reqs",
            *([f"Preemptions: {preemptions}"] if preemptions else []),
            f"GPU KV cache usage: {100 * stats.kv_cache_usage:.1f}%",
            f"Prefix cache hit rate: {100 * hit_rate:.1f}%",
        ]
        return ", ".join(parts)

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Write the line until this task is cancelled.

        Args:
            interval_s: seconds between two lines.
        """
        while True:
            await asyncio.sleep(interval_s)
            line = self.line()
            if line is not None:
                logs.say("throughput", line)
