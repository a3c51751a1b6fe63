"""Serving a language model over HTTP, with OpenAI's names: the application over an engine, and what runs it.

`application.build(engine, settings)` makes an ASGI application of anything that has the shape of
`protocol.Engine`; `running.serve` listens with it. Starlette, uvicorn, pydantic and prometheus_client are
optional dependencies and load with these modules, which `import infini` leaves alone.
"""
