"""How a server is reached and what it allows: names, keys, limits. Plain data, made by `infini serve`.

What a single call may ask for is `infini.llm.sampling.limits.Limits`; here is what only a server has.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from infini.llm.sampling.limits import SERVER, Limits

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server presents itself.

    Args:
        names: names that clients may give as `model`; the first one is shown in answers.
        limits: bounds of what clients may ask for.
        max_sequences: prompts times choices of a call (400).
        body_s: seconds for a body to arrive (408).
        header_nbytes: bytes of a request's line and headers (431).
        comment_s: seconds of silence in a stream after which a comment keeps proxies awake.
        drain_s: seconds that calls have to end in after SIGTERM.
        api_keys: keys of clients; with none, nobody needs one. They are kept as digests by `keys.Keys`.
        is_metrics_open: whether `/metrics` is readable without a key.
        allowed_origins: origins of web pages that may call, or `("*",)`.
        allowed_hosts: values of the header Host that are accepted; None accepts all.
        root_path: path under which a proxy shows the server.
        default_sampling: values of sampling fields that a call leaves open.
        chat_template: template that replaces the model's.
        trusts_request_templates: whether a call may bring a `chat_template` of its own.
        tool_parser: name of the parser of tool calls; "auto" is found from the model, None offers no tools.
        reasoning_parser: name of the parser of reasoning; "auto" is found from the model, None for none.
        sends_reasoning: whether answers have the field `reasoning` beside `reasoning_content`.
        has_vllm_metrics: whether `/metrics` has vLLM's names beside those of infini.
        logs_requests: whether each call is logged with its sampling.
        logs_stats: whether throughput is logged every ten seconds.
        created: time of the models, seconds since 1970; None takes the time of the start.
    """

    names: tuple[str, ...] = ("model",)
    limits: Limits = SERVER
    max_sequences: int = 256
    body_s: float = 60.0
    header_nbytes: int = 64 << 10
    comment_s: float = 15.0
    drain_s: float = 30.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    is_metrics_open: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: frozenset[str] | None = LOOPBACK_NAMES
    root_path: str = ""
    default_sampling: tuple[tuple[str, object], ...] = ()
    chat_template: str | None = None
    trusts_request_templates: bool = False
    tool_parser: str | None = "auto"
    reasoning_parser: str | None = "auto"
    sends_reasoning: bool = False
    has_vllm_metrics: bool = True
    logs_requests: bool = False
    logs_stats: bool = True
    created: int | None = None


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host is reachable from this machine only.

    Args:
        host: name or address to bind to.

    Returns:
        True for `localhost` and the addresses of 127.0.0.0/8 and ::1.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
