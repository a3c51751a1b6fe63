"""What one request may ask for at most: one table that sampling, structured output and the server read.

The numbers are of two kinds: `OFFLINE` bounds what a program of the user's own may ask, `SERVER` what a
stranger may ask over HTTP. Everything here is data; who enforces a limit is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request. Sizes are in bytes, durations in seconds.

    Args:
        n: answers to one prompt.
        num_prompts: prompts of one call.
        num_stop_strings: stop strings of one request.
        stop_string_chars: length of one of them.
        num_bad_words: forbidden words.
        num_bad_word_tokens: tokens of all of them together.
        num_logit_biases: entries of `logit_bias`.
        top_logprobs: alternatives told with each token.
        schema_nbytes: text of a JSON schema or a grammar.
        schema_depth: nesting of a JSON schema.
        num_choices: strings of a choice.
        regex_chars: length of a regular expression.
        grammar_compile_s: time to compile a schema, expression or grammar.
        body_nbytes: body of an HTTP request.
        json_depth: nesting of such a body.
        num_tools: tools of one request.
        tools_nbytes: their JSON text together.
        template_render_s: time to render a chat template.
        template_nbytes: its text.
        tool_parse_s: time to look for tool calls in an answer.
        queue_length: requests that wait.
        request_s: whole time of one request.
        idle_stream_s: time without a new token.
        slow_client_nbytes: what may wait for a client that does not read.
        slow_client_s: how long it may wait.
        header_read_s: time to send the headers.
        keep_alive_s: time that an idle connection stays open.
        num_connections: connections at a time.
    """

    n: int = 16
    num_prompts: int = 128
    num_stop_strings: int = 4
    stop_string_chars: int = 256
    num_bad_words: int = 128
    num_bad_word_tokens: int = 1024
    num_logit_biases: int = 1024
    top_logprobs: int = 20
    schema_nbytes: int = 64 * 1024
    schema_depth: int = 32
    num_choices: int = 1024
    regex_chars: int = 4096
    grammar_compile_s: float = 5.0
    body_nbytes: int = 10 * 1024 * 1024
    json_depth: int = 64
    num_tools: int = 128
    tools_nbytes: int = 256 * 1024
    template_render_s: float = 5.0
    template_nbytes: int = 64 * 1024
    tool_parse_s: float = 1.0
    queue_length: int = 1024
    request_s: float = 1000.0
    idle_stream_s: float = 100.0
    slow_client_nbytes: int = 1024 * 1024
    slow_client_s: float = 30.0
    header_read_s: float = 10.0
    keep_alive_s: float = 5.0
    num_connections: int = 1024


SERVER: Final = Limits()
OFFLINE: Final = Limits(n=16384, num_stop_strings=1024, stop_string_chars=64 * 1024)
