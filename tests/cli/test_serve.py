"""`infini serve`: from options, environment and file to an engine, settings and a place; who is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infini.cli import app, serve_values, serving
from infini.llm.server.running import Place
from infini.llm.server.settings import LOOPBACK_NAMES, Settings

RUNNER = CliRunner()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that reach the server, which does not run."""
    found: list[dict[str, Any]] = []
    for name in ("INFINI_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("INFINI_SERVE_")]:
        monkeypatch.delenv(name)

    def run(options: dict[str, Any]) -> int:
        found.append(options)
        serving.place_of(options)
        return 0

    monkeypatch.setattr(serving, "run", run)
    return found


def parsed(given: list[dict[str, Any]], *words: str) -> tuple[dict[str, Any], Place, Settings]:
    """What a command line becomes."""
    done = RUNNER.invoke(app, ["serve", *words])
    assert done.exit_code == 0, done.output
    options = given[-1]
    return serving.engine_options(options), serving.place_of(options), serving.settings_of(options, "tiny")


def refused(*words: str) -> str:
    """What the command says to options that are none; its status is that of wrong usage."""
    done = RUNNER.invoke(app, ["serve", *words])
    assert done.exit_code == 2, done.output
    return done.output


def test_without_options_it_listens_on_the_loopback(given: list[dict[str, Any]]) -> None:
    engine, place, settings = parsed(given, "tiny")
    assert (place.host, place.port) == ("127.0.0.1", 8000)
    assert settings.names == ("tiny",) and settings.api_keys == () and settings.allowed_origins == ()
    assert settings.allowed_hosts == LOOPBACK_NAMES and settings.drain_s == 30.0
    assert engine["max_num_queued_reqs"] == 1024 and "max_model_len" not in engine


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-c", "4K"], "max_model_len", 4096), (["--ctx-size", "4k"], "max_model_len", 4000),
        (["--max-model-len", "128"], "max_model_len", 128), (["-np", "4"], "max_num_seqs", 4),
        (["--parallel=4"], "max_num_seqs", 4), (["-b", "1k"], "max_num_batched_tokens", 1000),
        (["-ctk", "q8_0"], "kv_cache_dtype", "int8"), (["--kv-cache-dtype", "fp8"], "kv_cache_dtype", "fp8"),
        (["-ctk", "f16", "-ctv", "f16"], "kv_cache_dtype", "float16"),
        (["-tp", "2"], "tensor_parallel_size", 2),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False), (["-s", "7"], "seed", 7),
        (["--kv-cache-memory-bytes", "1.5G"], "kv_cache_memory_bytes", 3 << 29),
        (["-q", "q4_0"], "quantization", "q4_0"), (["--enforce-eager"], "enforce_eager", True),
        (["--generation-config", "vllm"], "generation_config", "none"),
        (["-md", "small", "--draft-max", "3"], "speculative_config",
         {"method": "draft_model", "model": "small", "num_speculative_tokens": 3}),
        (["--spec-method", "ngram", "--spec-tokens", "2"], "speculative_config",
         {"method": "ngram", "num_speculative_tokens": 2}),
        (["--speculative-config", '{"method": "ngram"}'], "speculative_config", {"method": "ngram"}),
        (["--speculative-config.method", "ngram", "--speculative-config.prompt_lookup_max=3"],
         "speculative_config", {"method": "ngram", "prompt_lookup_max": 3}),
    ],
)  # fmt: skip
def test_names_of_both_servers_reach_the_engine(
    given: list[dict[str, Any]], words: list[str], name: str, value: object
) -> None:
    engine, _, _ = parsed(given, "tiny", *words)
    assert engine[name] == value


def test_names_keys_and_defaults_reach_the_server(given: list[dict[str, Any]], tmp_path: Path) -> None:
    keys, template = tmp_path / "keys", tmp_path / "t.jinja"
    keys.write_text("two\n\nthree\n")
    template.write_text("{{ messages }}")
    _, _, settings = parsed(
        given, "tiny", "-a", "x", "--served-model-name", "y", "--api-key", "one", "--api-key-file", str(keys),
        "--temp", "0.5", "--override-generation-config", '{"temperature": 1, "top_k": 3}',
        "--chat-template", str(template), "--tool-call-parser", "hermes", "--reasoning-parser", "none",
        "--allowed-origins", "http://a", "--root-path", "/llm/", "--max-logprobs", "5",
    )  # fmt: skip
    assert settings.names == ("x", "y") and settings.api_keys == ("one", "two", "three")
    assert dict(settings.default_sampling) == {"temperature": 0.5, "top_k": 3}
    assert settings.chat_template == "{{ messages }}" and settings.root_path == "/llm"
    assert (settings.tool_parser, settings.reasoning_parser) == ("hermes", None)
    assert settings.limits.top_logprobs == 5


def test_the_command_line_stands_above_the_environment_and_that_above_the_file(
    given: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nhost = "localhost"\nctx-size = "2K"\nalias = "named"\n')
    engine, place, settings = parsed(given, "tiny", "--config", str(file))
    assert (place.port, engine["max_model_len"], settings.names) == (1, 2048, ("named",))
    monkeypatch.setenv("INFINI_SERVE_PORT", "2")
    monkeypatch.setenv("INFINI_API_KEY", "a")
    _, place, settings = parsed(given, "tiny", "--config", str(file))
    assert (place.port, place.host, settings.api_keys) == (2, "localhost", ("a",))
    assert parsed(given, "tiny", "--config", str(file), "--port", "3")[1].port == 3


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_the_file_may_be_json_or_yaml(given: list[dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"serve{suffix}"
    file.write_text(json.dumps({"model": "tiny", "port": 5, "speculative-config": {"method": "ngram"}}))
    engine, place, _ = parsed(given, "--config", str(file))
    assert (
        place.port == 5
        and engine["speculative_config"] == {"method": "ngram"}
        and serving._model(given[-1]) == "tiny"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_hosts_need_a_key_or_a_word(given: list[dict[str, Any]], host: str) -> None:
    assert "--api-key" in refused("tiny", "--host", host)
    assert parsed(given, "tiny", "--host", host, "--insecure")[2].allowed_hosts is None
    assert parsed(given, "tiny", "--host", host, "--api-key", "k")[1].host == host


def test_hosts_that_may_be_named(given: list[dict[str, Any]]) -> None:
    assert parsed(given, "tiny", "--allowed-hosts", "Me.Local")[2].allowed_hosts == LOOPBACK_NAMES | {
        "me.local"
    }
    assert parsed(given, "tiny", "--allowed-hosts", "*")[2].allowed_hosts is None
    assert parsed(given, "tiny", "--uds", "/x/s")[2].allowed_hosts is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "-c", "4x"], "4096, 4k"),
        (["tiny", "--port", "70000"], "65535"),
        (["tiny", "--speculative-config", "[1]"], "no object"),
        (["tiny", "--ssl-keyfile", "k"], "both"),
        (["tiny", "--config", "/nowhere.toml"], "cannot be read"),
        (["tiny", "--wrong"], "--wrong"),
    ],
)
def test_wrong_usage_says_what_is_wrong(given: list[dict[str, Any]], words: list[str], said: str) -> None:
    assert said in " ".join(refused(*words).split())


def test_an_unknown_option_in_a_file_is_named(given: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("prot = 1\n")
    assert "prot" in refused("tiny", "--config", str(file))


def test_a_model_is_needed() -> None:
    assert "name a model" in refused()


def test_an_empty_key_lets_nobody_in() -> None:
    assert "a key is empty" in refused("tiny", "--api-key", "")


def test_a_file_of_keys_that_is_missing_is_an_error() -> None:
    done = RUNNER.invoke(app, ["serve", "tiny", "--api-key-file", "/nowhere"])
    assert done.exit_code == 1 and "file of keys" in done.output


def test_a_model_is_shown_by_its_name_and_not_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "tiny.Q4_0.gguf").touch()
    paths = [str(tmp_path / "my-model"), str(tmp_path / "tiny.Q4_0.gguf"), "Org/Model", "model"]
    assert [serving.shown_name(path) for path in paths] == ["my-model", "tiny.Q4_0", "Org/Model", "model"]


def test_numbers_with_units() -> None:
    texts = ["0", "12", "32k", "32K", "1.5M", "2g", "1KiB", 7]
    assert [serve_values.count(text) for text in texts] == [0, 12, 32000, 32768, 3 << 19, 2 * 10**9, 1024, 7]
