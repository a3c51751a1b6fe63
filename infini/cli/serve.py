"""`infini serve`: a model over HTTP. Options have vLLM's names, and llama-server's beside them.

What the command line leaves open is looked for in the environment (`INFINI_SERVE_PORT` for `--port`), then in
the file of `--config`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from infini.cli import serve_values as values, serving


def _option(*names: str, text: str, **more: Any) -> Any:  # Any: typer's options have many keywords
    # The environment's names follow from those of the options; help would be twice as long with them.
    return typer.Option(*names, help=text, show_envvar=False, **more)


_COUNT: dict[str, Any] = {"parser": values.count, "metavar": "N"}  # Any: keywords of an option
_JSON: dict[str, Any] = {"parser": values.json_object, "metavar": "JSON"}  # Any: likewise
Switch = bool | None


def command(  # noqa: PLR0913, PLR0917  # options; typer passes them by name
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="Model folder, GGUF file, or name of a pulled model."),
    ] = None,
    model_option: Annotated[str | None, _option("--model", "-m", text="The same as an option.")] = None,
    config: Annotated[
        str | None,
        _option(
            text="File with options by their long names: TOML, JSON or YAML.",
            is_eager=True,
            callback=values.read_file,
            metavar="FILE",
        ),
    ] = None,
    # --- HTTP
    host: Annotated[str, _option(text="Name or address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _option(text="Port; 0 takes any that is free.", min=0, max=65535)] = 8000,
    uds: Annotated[str | None, _option(text="Unix socket to listen on instead.", metavar="PATH")] = None,
    api_key: Annotated[
        list[str] | None,
        _option(
            text="Key that clients need; may be repeated.",
            envvar=["INFINI_API_KEY", "INFINI_SERVE_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY"],
        ),
    ] = None,
    api_key_file: Annotated[
        str | None, _option(text="File with keys, one on each line.", metavar="FILE")
    ] = None,
    insecure: Annotated[
        bool, _option("--insecure", text="Let anybody in who can reach another host than this.")
    ] = False,
    allowed_hosts: Annotated[
        list[str] | None, _option(text="Further names in the header Host; may be repeated. * allows all.")
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, _option(text="Origins of web pages that may call (CORS); may be repeated.")
    ] = None,
    open_metrics: Annotated[bool, _option("--open-metrics", text="Show /metrics without a key.")] = False,
    root_path: Annotated[
        str, _option("--root-path", "--api-prefix", text="Path under which a proxy shows the server.")
    ] = "",
    ssl_keyfile: Annotated[
        str | None, _option("--ssl-keyfile", "--ssl-key-file", text="Private key for TLS.")
    ] = None,
    ssl_certfile: Annotated[
        str | None, _option("--ssl-certfile", "--ssl-cert-file", text="Its certificate.")
    ] = None,
    ssl_keyfile_password: Annotated[str | None, _option(text="What the key is encrypted with.")] = None,
    ssl_ca_certs: Annotated[
        str | None, _option(text="Certificates that those of clients are signed by.")
    ] = None,
    drain_s: Annotated[
        float,
        _option(
            "--drain-s", "--timeout-graceful-shutdown", text="Seconds that calls have after SIGTERM.", min=0
        ),
    ] = 30.0,
    request_s: Annotated[float, _option(text="Seconds that a call may take.", min=1)] = 1000.0,
    max_num_queued_reqs: Annotated[
        int, _option("--max-num-queued-reqs", text="Calls that may wait.", **_COUNT)
    ] = 1024,
    # --- answers
    served_model_name: Annotated[
        list[str] | None,
        _option("--served-model-name", "--alias", "-a", text="Name of the model; may be repeated."),
    ] = None,
    chat_template: Annotated[
        str | None,
        _option("--chat-template", "--chat-template-file", text="Template of conversations, or its file."),
    ] = None,
    trust_request_chat_template: Annotated[
        bool, _option("--trust-request-chat-template", text="Take templates from calls.")
    ] = False,
    tool_call_parser: Annotated[
        str, _option(text="How the model writes calls of tools: auto, none, hermes, llama3_json ...")
    ] = "auto",
    enable_auto_tool_choice: Annotated[
        Switch, _option(text="Whether the model may call tools by its own choice.")
    ] = None,
    reasoning_parser: Annotated[
        str, _option(text="How the model marks its thoughts: auto, none, think ...")
    ] = "auto",
    send_reasoning: Annotated[
        bool, _option("--send-reasoning", text="Send `reasoning` beside `reasoning_content`.")
    ] = False,
    generation_config: Annotated[
        Literal["auto", "none", "vllm"], _option(text="auto: defaults of sampling by the model's files.")
    ] = "auto",
    override_generation_config: Annotated[
        dict[str, Any] | None,  # Any: JSON
        _option(text="Defaults of sampling that go before them.", **_JSON),
    ] = None,
    temperature: Annotated[float | None, _option("--temperature", "--temp", text="Default of calls.")] = None,
    top_k: Annotated[int | None, _option(text="Default of calls.")] = None,
    top_p: Annotated[float | None, _option(text="Default of calls.")] = None,
    min_p: Annotated[float | None, _option(text="Default of calls.")] = None,
    repetition_penalty: Annotated[
        float | None, _option("--repetition-penalty", "--repeat-penalty", text="Default of calls.")
    ] = None,
    max_logprobs: Annotated[int, _option(text="Most likely tokens that a call may ask for.", **_COUNT)] = 20,
    # --- the engine
    tokenizer: Annotated[str | None, _option(text="Folder of another tokenizer.")] = None,
    dtype: Annotated[str, _option(text="auto, float32, bfloat16 or float16.")] = "auto",
    quantization: Annotated[
        str | None, _option("--quantization", "-q", text="Quantise on load: int8, q8_0, q4_0, q4_k, q6_k.")
    ] = None,
    max_model_len: Annotated[
        int | None,
        _option("--max-model-len", "--ctx-size", "-c", text="Most tokens of a call, such as 32k.", **_COUNT),
    ] = None,
    max_num_seqs: Annotated[
        int | None, _option("--max-num-seqs", "--parallel", "-np", text="Most sequences in a step.", **_COUNT)
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        _option(
            "--max-num-batched-tokens",
            "--batch-size",
            "-b",
            "--ubatch-size",
            "-ub",
            text="Most tokens in a step.",
            **_COUNT,
        ),
    ] = None,
    block_size: Annotated[int | None, _option(text="Tokens of a block of the cache.", **_COUNT)] = None,
    num_gpu_blocks_override: Annotated[int | None, _option(text="Blocks of the cache.", **_COUNT)] = None,
    kv_cache_memory_bytes: Annotated[int | None, _option(text="Memory of the cache.", **_COUNT)] = None,
    gpu_memory_utilization: Annotated[
        float | None, _option(text="Share of the device's memory for weights and cache.")
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, _option("--kv-cache-dtype", "--cache-type-k", "-ctk", text="Dtype of the cache.")
    ] = None,
    cache_type_v: Annotated[
        str | None, _option("--cache-type-v", "-ctv", text="The same: keys and values have one dtype.")
    ] = None,
    cache_mode: Annotated[Literal["paged", "static"] | None, _option(text="How the cache is kept.")] = None,
    enable_prefix_caching: Annotated[Switch, _option(text="Compute equal beginnings once.")] = None,
    enable_chunked_prefill: Annotated[Switch, _option(text="Compute long prompts in pieces.")] = None,
    scheduling_policy: Annotated[Literal["fcfs", "priority"] | None, _option(text="Who goes first.")] = None,
    tensor_parallel_size: Annotated[
        int | None,
        _option("--tensor-parallel-size", "-tp", "--tp", text="Processes that share the model.", **_COUNT),
    ] = None,
    enable_expert_parallel: Annotated[Switch, _option(text="Divide experts by their number.")] = None,
    speculative_config: Annotated[
        dict[str, Any] | None,  # Any: JSON
        _option(text="How tokens are proposed ahead.", **_JSON),
    ] = None,
    spec_method: Annotated[
        Literal["ngram", "draft", "draft_model"] | None, _option(text="ngram, or draft: by a smaller model.")
    ] = None,
    draft_model: Annotated[
        str | None,
        _option("--draft-model", "--model-draft", "-md", "--spec-model", text="The smaller model."),
    ] = None,
    spec_tokens: Annotated[
        int | None, _option("--spec-tokens", "--draft-max", text="Tokens proposed at once.", **_COUNT)
    ] = None,
    seed: Annotated[int | None, _option("--seed", "-s", text="Of calls that bring none.")] = None,
    deterministic: Annotated[
        bool, _option("--deterministic", text="Answers do not depend on what else is answered.")
    ] = False,
    enforce_eager: Annotated[
        bool, _option("--enforce-eager", text="Compile when needed instead of before the first call.")
    ] = False,
    # --- the log
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _option("--log-level", "--uvicorn-log-level", text="Least severe line."),
    ] = "info",
    log_format: Annotated[Literal["text", "json"], _option(text="For people or for programs.")] = "text",
    log_file: Annotated[str | None, _option(text="File to append to instead of standard error.")] = None,
    disable_log_stats: Annotated[
        bool, _option("--disable-log-stats", text="No line about throughput.")
    ] = False,
    enable_log_requests: Annotated[
        bool, _option("--enable-log-requests", text="Log the sampling of each call.")
    ] = False,
    metrics_compat: Annotated[Literal["vllm", "none"], _option(text="Names of metrics.")] = "vllm",
) -> None:
    """Serve a model over HTTP with OpenAI's API.

    The server answers on http://127.0.0.1:8000/v1 unless told otherwise. The first Ctrl-C or SIGTERM lets
    calls finish, the second one kills. Options may also come from the environment, INFINI_SERVE_PORT for
    --port, and from the file of --config. Numbers may be written 32k (thousands) or 32K (of 1024).
    """
    given = dict(context.params)
    given.pop("config")
    raise typer.Exit(serving.run(given))
