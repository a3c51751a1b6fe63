"""What is served: one row for each path and method."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import pydantic
from starlette.requests import Request

from infini.llm.server import chat, completions, middleware, requests, responses, simple, streams

_JSON: Final = ("application/json",)
_STREAMED: Final = ("application/json", "text/event-stream")


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method.

    Args:
        method: of HTTP.
        path: as Starlette writes it.
        handler: answers.
        summary: a sentence for the document.
        body: what a request must bring.
        answers: types of what comes back.
        is_published: whether it stands in the OpenAPI document.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[streams.Answer]]
    summary: str
    body: type[pydantic.BaseModel] | None = None
    answers: tuple[str, ...] = _JSON
    is_published: bool = True

    @property
    def name(self) -> str:
        """A name of letters, digits and underscores."""
        return re.sub(r"\W+", "_", f"{self.method.lower()}{self.shown_path}").strip("_")

    @property
    def shown_path(self) -> str:
        """The path as OpenAPI writes it."""
        return re.sub(r"\{(\w+):\w+\}", r"{\1}", self.path)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parts of the path that vary."""
        return tuple(re.findall(r"\{(\w+)\}", self.shown_path))

    @property
    def needs_key(self) -> bool:
        """Whether it is guarded where there are keys."""
        return self.path not in middleware.OPEN_PATHS


ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/v1/models", simple.models, "List the names of the model."),
    Route("GET", "/v1/models/{model:path}", simple.model, "One name of the model."),
    Route(
        "POST", "/v1/chat/completions", chat.create, "Answer a conversation.",
        requests.ChatRequest, _STREAMED,
    ),
    Route(
        "POST", "/v1/completions", completions.create, "Continue prompts.",
        requests.CompletionRequest, _STREAMED,
    ),
    Route(
        "POST", "/v1/responses", responses.create, "Answer input items.",
        requests.ResponsesRequest, _STREAMED,
    ),
    Route(
        "POST", "/v1/embeddings", simple.embeddings, "Not served yet: status 501.", requests.EmbeddingsRequest
    ),
    Route("POST", "/tokenize", simple.tokenize, "Tokens of a text.", requests.TokenizeRequest),
    Route("POST", "/detokenize", simple.detokenize, "Text of tokens.", requests.DetokenizeRequest),
    Route("GET", "/health", simple.health, "Whether calls are taken."),
    Route("GET", "/ping", simple.health, "Whether calls are taken."),
    Route("POST", "/ping", simple.health, "Whether calls are taken."),
    Route("GET", "/load", simple.load, "Requests in the engine."),
    Route("GET", "/version", simple.version, "The version of infini."),
    Route("GET", "/metrics", simple.prometheus, "Metrics for Prometheus.", None, ("text/plain",)),
    # Names of llama.cpp and InfiniLM for the same.
    Route("GET", "/models", simple.models, "List the names of the model.", is_published=False),
    Route(
        "POST", "/chat/completions", chat.create, "Answer a conversation.", requests.ChatRequest, _STREAMED,
        is_published=False,
    ),
)  # fmt: skip
