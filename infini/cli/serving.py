"""From the options of `infini serve` to an engine, settings and a place, and the server's run."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from infini.core import errors
from infini.llm.engine import sharing

if TYPE_CHECKING:
    from infini.llm.server.protocol import Engine
    from infini.llm.server.running import Place
    from infini.llm.server.settings import Settings

Given = dict[str, Any]  # Any: options by name
_PACKAGES: Final = ("starlette", "uvicorn", "pydantic", "prometheus_client", "jinja2")
# Options that are fields of the engine's configuration, under the same name.
_ENGINE: Final = (
    "dtype", "quantization", "max_model_len", "block_size", "max_num_seqs", "max_num_batched_tokens",
    "num_gpu_blocks_override", "kv_cache_memory_bytes", "gpu_memory_utilization", "cache_mode",
    "enable_prefix_caching", "enable_chunked_prefill", "scheduling_policy", "max_num_queued_reqs", "seed",
    "tensor_parallel_size", "enable_expert_parallel", "deterministic", "enforce_eager", "max_logprobs",
)  # fmt: skip
_SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_LLAMA_CACHE: Final = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "int8"}
ANYWHERE: Final = "*"


def run(given: Given) -> int:
    """Load a model and serve it until a signal comes.

    Args:
        given: the command's options.

    Returns:
        The status of the process.

    Raises:
        InfiniError: something is missing, wrong or taken.
        BadParameter: options that do not go together.
    """
    missing = missing_packages()
    if missing:
        raise errors.UnsupportedError(
            "`infini serve` needs packages that are not installed",
            got=f"no {', '.join(missing)}",
            fix='pip install "infini[llm]"',
        )
    from infini.llm.server import logs, running

    model = _model(given)
    settings, place = settings_of(given, model), place_of(given)
    options = engine_options(given)
    logs.configure(level=given["log_level"], form=given["log_format"], file=given["log_file"])
    if not sharing.join(options.get("tensor_parallel_size", 1)):
        _load(model, given["tokenizer"], options, is_spoken=False)  # computes for process 0 until that ends
        return 0
    bound = running.bind(place)  # a port that is taken is told before a model loads for minutes
    try:
        # What loading says is for people, and no line of JSON.
        engine = _load(model, given["tokenizer"], options, is_spoken=given["log_format"] == "text")
        return running.serve(engine, settings, place, bound)
    except KeyboardInterrupt:
        return 130
    finally:
        bound.close()


def missing_packages() -> list[str]:
    """What a server needs and is not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def _load(model: str, tokenizer: str | None, options: Given, *, is_spoken: bool) -> Engine:
    from infini.llm.engine import async_llm
    from infini.llm.hub import store

    place = store.find(model)
    if place is None:
        raise errors.ValueMismatchError(
            "the model is not on this machine",
            got=model,
            fix=f"give a folder or a file, or infini pull {model}",
        )
    return async_llm.AsyncLLM(place, tokenizer=tokenizer, verbose=is_spoken, **options)


def _model(given: Given) -> str:
    named = given["model"] or given["model_option"]  # the option may come from a file
    if not named:
        raise typer.BadParameter("name a model: infini serve MODEL")
    return str(named)


def engine_options(given: Given) -> Given:
    """Keywords of the engine.

    Args:
        given: the command's options.

    Raises:
        BadParameter: options that do not go together.
    """
    found = {name: given[name] for name in _ENGINE if given[name] is not None}
    keys, others = given["kv_cache_dtype"], given["cache_type_v"]
    if keys is not None and others is not None and keys != others:
        raise typer.BadParameter("keys and values of the cache have one dtype: give --kv-cache-dtype alone")
    if keys or others:
        found["kv_cache_dtype"] = _LLAMA_CACHE.get(keys or others, keys or others)
    found["generation_config"] = "auto" if given["generation_config"] == "auto" else "none"
    proposing = _speculation(given)
    if proposing is not None:
        found["speculative_config"] = proposing
    return found


def _speculation(given: Given) -> Given | None:
    short = {
        "method": {"draft": "draft_model"}.get(given["spec_method"], given["spec_method"]),
        "model": given["draft_model"],
        "num_speculative_tokens": given["spec_tokens"],
    }
    named = {name: value for name, value in short.items() if value is not None}
    if not named:
        return given["speculative_config"]
    if "model" in named:
        named.setdefault("method", "draft_model")
    return {**(given["speculative_config"] or {}), **named}


def place_of(given: Given) -> Place:
    """Where to listen.

    Args:
        given: the command's options.

    Raises:
        BadParameter: strangers would be let in, or half of TLS is missing.
    """
    from infini.llm.server import running, settings

    if bool(given["ssl_keyfile"]) != bool(given["ssl_certfile"]):
        raise typer.BadParameter("TLS needs both --ssl-keyfile and --ssl-certfile")
    is_local = given["uds"] is not None or settings.is_loopback(given["host"])
    if not is_local and not _keys(given) and not given["insecure"]:
        raise typer.BadParameter(
            f"--host {given['host']} can be reached by others, and no key is needed: set --api-key "
            "(or INFINI_API_KEY), or say --insecure"
        )
    names = {field.name for field in dataclasses.fields(running.Place)}
    return running.Place(**{name: value for name, value in given.items() if name in names})


def settings_of(given: Given, model: str) -> Settings:
    """How the model is served.

    Args:
        given: the command's options.
        model: as it was named.
    """
    from infini.llm.sampling.limits import SERVER
    from infini.llm.server import settings

    defaults = dict(given["override_generation_config"] or {})
    defaults |= {name: given[name] for name in _SAMPLING if given[name] is not None}
    tools = None if given["enable_auto_tool_choice"] is False else given["tool_call_parser"]
    return settings.Settings(
        names=tuple(given["served_model_name"] or ()) or (shown_name(model),),
        limits=dataclasses.replace(
            SERVER,
            top_logprobs=given["max_logprobs"],
            request_s=given["request_s"],
            queue_length=given["max_num_queued_reqs"],
        ),
        api_keys=_keys(given),
        is_metrics_open=given["open_metrics"],
        allowed_origins=tuple(given["allowed_origins"] or ()),
        allowed_hosts=_hosts(given),
        root_path=given["root_path"].rstrip("/"),
        default_sampling=tuple(defaults.items()),
        chat_template=_template(given["chat_template"]),
        trusts_request_templates=given["trust_request_chat_template"],
        tool_parser=None if tools in (None, "none") else tools,
        reasoning_parser=None if given["reasoning_parser"] == "none" else given["reasoning_parser"],
        sends_reasoning=given["send_reasoning"],
        has_vllm_metrics=given["metrics_compat"] == "vllm",
        logs_requests=given["enable_log_requests"],
        logs_stats=not given["disable_log_stats"],
        drain_s=given["drain_s"],
    )


def shown_name(model: str) -> str:
    """The name of a model that has none: that of its folder or file, never the path to it.

    Args:
        model: as it was named: a path, or `ORG/NAME` of a model that was pulled.

    Example:
        >>> shown_name("Qwen/Qwen3-0.6B"), shown_name("/data/models/tiny/"), shown_name("a/b/c.gguf")
        ('Qwen/Qwen3-0.6B', 'tiny', 'c')
    """
    path = Path(model)
    parts = model.strip("/").split("/")
    if not path.exists() and not path.is_absolute() and len(parts) <= 2:
        return model
    name = path.resolve().name if path.exists() else parts[-1]
    return name.removesuffix(".gguf") or "model"


def _keys(given: Given) -> tuple[str, ...]:
    keys = list(given["api_key"] or ())
    if given["api_key_file"] is not None:
        try:
            text = Path(given["api_key_file"]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ValueMismatchError(
                "the file of keys cannot be read", got=str(error), fix="correct --api-key-file"
            ) from None
        keys += [line.strip() for line in text.splitlines() if line.strip()]
    if not all(keys):
        raise typer.BadParameter("a key is empty: leave it out, or give one")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise typer.BadParameter("keys are letters, digits and signs of ASCII without spaces")
    return tuple(dict.fromkeys(keys))


def _hosts(given: Given) -> frozenset[str] | None:
    """Hosts that a client may name. A page of the web could bind its own name to the loopback's address."""
    from infini.llm.server import settings

    named = {name.lower() for name in given["allowed_hosts"] or ()}
    if ANYWHERE in named or given["uds"] is not None:
        return None
    if settings.is_loopback(given["host"]):
        return frozenset(settings.LOOPBACK_NAMES | {given["host"].lower()} | named)
    return frozenset(named) if named else None


def _template(given: str | None) -> str | None:
    """A template: its text, or the file that has it."""
    if given is None or "{" in given:
        return given
    path = Path(given)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if "/" in given or path.suffix:
        raise errors.ValueMismatchError(
            "the chat template is not there", got=given, fix="correct --chat-template"
        )
    return given  # the name of one of the model's templates
