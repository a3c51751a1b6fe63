"""Routes without generation: models, health, versions, metrics, load, and tokens of texts."""

from __future__ import annotations

from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import infini
from infini.core import errors
from infini.llm.server import bodies, conversations, failures, metrics, service as service_
from infini.llm.server.requests import DetokenizeRequest, EmbeddingsRequest, TokenizeRequest


def _model(name: str, service: service_.Service) -> dict[str, Any]:  # Any: JSON
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "infini",
        "root": service.settings.names[0],
        "parent": None,
        "max_model_len": service.engine.max_model_len,
        "permission": [],
    }


async def models(request: Request) -> Response:
    """List the names of the model."""
    service = service_.of(request)
    return JSONResponse(
        {"object": "list", "data": [_model(name, service) for name in service.settings.names]}
    )


async def model(request: Request) -> Response:
    """One name of the model. A name is only compared, never a path of anything."""
    service, name = service_.of(request), request.path_params["model"]
    if name not in service.settings.names:
        raise failures.unknown_model(name)
    return JSONResponse(_model(name, service))


async def health(request: Request) -> Response:
    """Whether calls are taken: 200, or 503 while the engine loads, drains or is dead."""
    service = service_.of(request)
    try:
        service.engine.check_health()
    except errors.InfiniError:
        return JSONResponse({"status": "dead"}, 503)
    if service.is_draining:
        return JSONResponse({"status": "draining"}, 503)
    if not service.engine.is_ready:
        return JSONResponse({"status": "loading"}, 503)
    return JSONResponse({"status": "ok"})


async def version(request: Request) -> Response:
    """The version of infini."""
    return JSONResponse({"version": infini.__version__})


async def load(request: Request) -> Response:
    """Requests in the engine now."""
    stats = service_.of(request).engine.stats()
    return JSONResponse({"server_load": stats.num_running + stats.num_waiting})


async def prometheus(request: Request) -> Response:
    """Metrics in Prometheus' format."""
    return Response(service_.of(request).metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def embeddings(request: Request) -> Response:
    """Embeddings are not served yet."""
    service = service_.of(request)
    await bodies.read(request, EmbeddingsRequest, service.settings.limits, seconds=service.settings.body_s)
    raise failures.not_offered("This server generates text; it serves no embeddings.")


async def tokenize(request: Request) -> Response:
    """Tokens of a prompt, of a conversation, or of llama.cpp's `content`."""
    service = service_.of(request)
    call = await bodies.read(
        request, TokenizeRequest, service.settings.limits, seconds=service.settings.body_s
    )
    service.model_name(call.model)
    tokenizer = service.tokenizer
    if call.messages is not None:
        text = await conversations.prompt_of(call, service)
        adds_special_tokens = bool(call.add_special_tokens)
    else:
        text = call.prompt if call.prompt is not None else call.content or ""
        # llama.cpp adds no special tokens to `content` unless it is asked to, vLLM adds them to `prompt`.
        adds_special_tokens = (
            call.content is None if call.add_special_tokens is None else call.add_special_tokens
        )
    ids = await run_in_threadpool(tokenizer.encode, text, adds_special_tokens)
    if call.content is not None:
        return JSONResponse({"tokens": ids})
    strings = None
    if call.return_token_strs:
        strings = [tokenizer.token_text(id) or "" for id in ids]
    return JSONResponse(
        {
            "count": len(ids),
            "max_model_len": service.engine.max_model_len,
            "tokens": ids,
            "token_strs": strings,
        }
    )


async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    service = service_.of(request)
    call = await bodies.read(
        request, DetokenizeRequest, service.settings.limits, seconds=service.settings.body_s
    )
    service.model_name(call.model)
    tokenizer = service.tokenizer
    wrong: Final = next((id for id in call.tokens if id >= tokenizer.vocab_size), None)
    if wrong is not None:
        raise failures.invalid(f"the vocabulary has no token {wrong}", "tokens")
    text = await run_in_threadpool(tokenizer.decode, call.tokens, False)
    # vLLM's name and llama.cpp's.
    return JSONResponse({"prompt": text, "content": text})
