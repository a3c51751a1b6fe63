"""The ASGI application: routes over one engine, inside of what every request goes through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as StarletteRoute

from infini.llm.server import failures, logs, middleware, openapi, service as service_, streams, throughput
from infini.llm.server.keys import Keys
from infini.llm.server.protocol import Engine
from infini.llm.server.routes import ROUTES, Route
from infini.llm.server.settings import Settings


def build(engine: Engine, settings: Settings) -> Starlette:
    """The application.

    Args:
        engine: makes the tokens; the application does not end it.
        settings: how it is served.

    Returns:
        An ASGI application. Its document is at /openapi.json.

    Raises:
        ValueMismatchError: the settings do not fit the model.
    """
    service = service_.Service(engine, settings)
    keys = Keys(settings.api_keys)

    async def describe(request: Request) -> Response:
        """The OpenAPI document."""
        return JSONResponse(openapi.document(ROUTES, has_keys=bool(keys)))

    routes = [_starlette(route) for route in ROUTES]
    routes.append(_starlette(Route("GET", "/openapi.json", describe, "This document.", is_published=False)))
    application = Starlette(
        routes=routes,
        middleware=_middleware(service, keys),
        exception_handlers={
            failures.ApiError: _answer_error,
            HTTPException: _answer_http,
        },
        lifespan=_lifespan,
    )
    # A path with a slash at its end is another path, not a redirect that a proxy or a key would get lost in.
    application.router.redirect_slashes = False
    service_.bind(application.state, service)
    return application


def _starlette(route: Route) -> StarletteRoute:
    async def endpoint(request: Request) -> streams.Answer:
        request.scope["route_path"] = route.shown_path
        return await route.handler(request)

    # Starlette calls what an endpoint returns, as it does with every response.
    return StarletteRoute(route.path, endpoint, methods=[route.method], name=route.name)


def _middleware(service: service_.Service, keys: Keys) -> list[Middleware]:
    settings = service.settings
    found = [Middleware(middleware.Numbered, observe=_observer(service))]
    if settings.allowed_hosts is not None:
        found.append(Middleware(middleware.Hosts, allowed=settings.allowed_hosts))
    if settings.allowed_origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.allowed_origins),
                allow_methods=["GET", "POST", "OPTIONS"],
                allow_headers=["Authorization", "Content-Type", "X-Api-Key", "X-Request-Id"],
                expose_headers=["X-Request-Id", "Retry-After"],
            )
        )
    if keys:
        is_open = middleware.OPEN_PATHS | ({"/metrics"} if settings.is_metrics_open else set())
        found.append(Middleware(middleware.Guarded, keys=keys, open_paths=frozenset(is_open)))
    found.append(Middleware(middleware.Bounded, most=settings.limits.num_connections))
    return found


def _observer(service: service_.Service) -> middleware.Observe:
    def observe(method: str, route: str, status: int, seconds: float) -> None:
        if route not in middleware.UNOBSERVED_PATHS:
            service.metrics.observe_http(method, route, status, seconds)

    return observe


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, failures.ApiError)
    return error.response()


async def _answer_http(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    texts = {
        404: ("There is no such path.", "not_found"),
        405: ("The path has no such method.", "method_not_allowed"),
    }
    message, code = texts.get(error.status_code, (error.detail, "http_error"))
    return failures.ApiError(error.status_code, message, code=code, headers=error.headers or {}).response()


@contextlib.asynccontextmanager
async def _lifespan(application: Starlette) -> AsyncIterator[None]:
    service: service_.Service = application.state.service
    task = None
    if service.settings.logs_stats:
        task = asyncio.ensure_future(throughput.Throughput(service.engine.stats).run())
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        logs.say("stopped", "the server takes no calls any more")
