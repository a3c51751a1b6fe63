"""One hub for all tests of a file, new for each test; a store of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.llm.hub import fake


@pytest.fixture(scope="package")
def servers() -> Iterator[tuple[list[fake.Hub], str, str]]:
    """Two addresses that speak for whatever hub stands in the list."""
    current: list[fake.Hub] = []

    async def app(scope: fake.Message, receive: object, send: object) -> None:
        await current[-1](scope, receive, send)  # type: ignore[arg-type]

    with fake.serving(app) as first, fake.serving(app) as second:
        yield current, first, second


@pytest.fixture
def hub(
    servers: tuple[list[fake.Hub], str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> fake.Hub:
    current, first, _ = servers
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", first)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", first)
    found = fake.Hub(
        {
            "config.json": b'{"model_type": "llama"}',
            "model.safetensors": bytes(range(256)) * 5000,
            "tokenizer.json": b"{}",
            "pytorch_model.bin": b"pickle",
            "modeling_evil.py": b"import os",
            "onnx/model.json": b"{}",
        },
        address=first,
    )
    current.append(found)
    return found


@pytest.fixture
def other_address(servers: tuple[list[fake.Hub], str, str]) -> str:
    """A second address of the hub, as that of a content network."""
    return servers[2]
