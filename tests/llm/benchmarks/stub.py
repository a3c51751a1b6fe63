"""A server that speaks completions with known delays, on a port of its own, and counts what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Stub:
    """What the server does, and what it saw.

    Args:
        first_s: seconds before the first token.
        gap_s: seconds between tokens.
        has_usage: whether it tells how many tokens there were.
        fails_from: requests with this number and later ones are refused; None for none.
    """

    first_s: float = 0.02
    gap_s: float = 0.01
    has_usage: bool = True
    fails_from: int | None = None
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0
    url: str = ""

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        if self.fails_from is not None and len(self.bodies) > self.fails_from:
            return JSONResponse({"error": {"message": "the queue is full"}}, status_code=503)
        is_chat = "messages" in body
        count = body.get("max_tokens") or body.get("max_completion_tokens")
        return StreamingResponse(self._pieces(count, is_chat), media_type="text/event-stream")

    async def _pieces(self, count: int, is_chat: bool) -> AsyncIterator[bytes]:
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        if is_chat:
            yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        await asyncio.sleep(self.first_s)
        for number in range(count):
            if number:
                await asyncio.sleep(self.gap_s)
            text = f" w{number}"
            choice = {"delta": {"content": text}} if is_chat else {"text": text}
            event = _event({"choices": [{"index": 0, "finish_reason": None} | choice]})
            yield event[:7]  # events arrive in pieces
            yield event[7:]
        if self.has_usage:
            yield _event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}})
        self.num_open -= 1
        yield b"data: [DONE]\n\n"

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "stub-model"}]})

    async def metrics(self, request: Request) -> Response:
        done = len(self.bodies)
        return PlainTextResponse(
            "# HELP x y\n"
            f'vllm:prefix_cache_queries_total{{engine="0"}} {100.0 * done}\n'
            f'vllm:prefix_cache_hits_total{{engine="0"}} {25.0 * done}\n'
            "vllm:num_preemptions_total 3.0\n"
            f"vllm:spec_decode_num_drafts_total {10.0 * done}\n"
            f"vllm:spec_decode_num_draft_tokens_total {40.0 * done}\n"
            f"vllm:spec_decode_num_accepted_tokens_total {20.0 * done}\n"
        )


def _event(data: dict) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


@contextlib.contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Run the server within the block."""
    routes = [
        Route("/v1/completions", stub.answer, methods=["POST"]),
        Route("/v1/chat/completions", stub.answer, methods=["POST"]),
        Route("/v1/models", stub.models),
        Route("/metrics", stub.metrics),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes), host="127.0.0.1", port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.005)
            assert thread.is_alive(), "the server ended while it started"
        port = server.servers[0].sockets[0].getsockname()[1]
        stub.url = f"http://127.0.0.1:{port}"
        yield stub
    finally:
        server.should_exit = True
        thread.join(10)
