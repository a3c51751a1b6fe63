"""What the handlers of one server share: the engine, its settings, and small questions about both."""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from starlette.requests import Request

from infini.core import errors
from infini.llm.sampling.params import SamplingParams
from infini.llm.server import failures, logs, sampled
from infini.llm.server.generation import Generation
from infini.llm.server.metrics import Metrics
from infini.llm.server.protocol import Engine
from infini.llm.server.settings import Settings
from infini.llm.text import chat, reasoning, tools
from infini.llm.text.tokenizer import Tokenizer

_STATE: Final = "service"


class Service:
    """One engine and how it is served.

    Args:
        engine: makes the tokens.
        settings: how.

    Raises:
        ValueMismatchError: the settings do not fit the model.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        if engine.tokenizer is None:
            raise errors.ValueMismatchError(
                "a server needs the model's tokenizer",
                got="a model without one",
                fix="name the folder of one with --tokenizer",
            )
        self.tokenizer = engine.tokenizer
        self.created = int(time.time()) if settings.created is None else settings.created
        self.defaults = sampled.defaults(engine.get_default_sampling_params(), settings)
        config = engine.config
        self.metrics = Metrics(
            engine.stats,
            model_name=settings.names[0],
            max_model_len=engine.max_model_len,
            cache_config={
                "block_size": config.block_size,
                "cache_dtype": config.kv_cache_dtype,
                "enable_prefix_caching": config.enable_prefix_caching,
                "num_gpu_blocks": engine.stats().num_blocks,
            },
            has_vllm_names=settings.has_vllm_metrics,
        )
        _check_template(self.tokenizer, settings.chat_template)
        self.parsers = _parsers(self.tokenizer, settings)
        self.is_draining = False
        self.open: set[Generation] = set()

    def model_name(self, asked: str | None) -> str:
        """The name to answer with: what a call asked for, or the first one.

        Raises:
            ApiError: no model has this name.
        """
        if asked is None or not asked:
            return self.settings.names[0]
        if asked not in self.settings.names:
            raise failures.unknown_model(asked)
        return asked

    def generation(
        self,
        request: Request,
        call_id: str,
        prompts: list[list[int]],
        params: SamplingParams,
        *,
        is_streamed: bool,
        cache_salt: str | None,
        priority: int,
    ) -> Generation:
        """A call that can be started.

        Raises:
            ApiError: it makes too many sequences.
        """
        most = self.settings.max_sequences
        if len(prompts) * params.n > most:
            raise failures.invalid(f"prompts times n is larger than {most}", "n")
        generation = Generation(
            engine=self.engine,
            metrics=self.metrics,
            settings=self.settings,
            call_id=call_id,
            prompts=prompts,
            params=params,
            kind="delta" if is_streamed else "final",
            cache_salt=_salt(request, cache_salt),
            priority=priority,
            open=self.open,
        )
        # The line of the log about this call is written at its end, with what was made by then.
        request.scope["state"]["generation"] = generation
        if self.settings.logs_requests:
            logs.say(
                "call",
                f"{call_id} asks for {len(prompts)} x {params.n}",
                request_id=request_id(request),
                prompt_tokens=sum(map(len, prompts)),
                sampling=_shown(params),
            )
        return generation

    async def abort_all(self) -> None:
        """End every call that is being answered; their clients are told."""
        for generation in tuple(self.open):
            await generation.abort()

    def max_tokens(self, asked: int | None, num_prompt: int, param: str, *, default: int | None) -> int:
        """Length of an answer at most.

        Args:
            asked: what a call asked for.
            num_prompt: tokens of its longest prompt.
            param: field of the prompt.
            default: where nothing is asked for; None is as much as fits.

        Raises:
            ApiError: it does not fit the model.
        """
        room = self.engine.max_model_len - num_prompt
        if num_prompt == 0:
            raise failures.invalid("the prompt has no tokens", param, code="empty_prompt")
        if room < 1 or (asked is not None and asked > room):
            raise failures.too_long(num_prompt, asked, self.engine.max_model_len, param)
        return asked if asked is not None else room if default is None else min(default, room)


def _check_template(tokenizer: Tokenizer, template: str | None) -> None:
    """A template of the owner renders a conversation now, rather than failing at every call."""
    if template is None:
        return
    if "{" not in template and template not in tokenizer.chat_templates:
        raise errors.ValueMismatchError(
            "the model has no chat template of this name",
            got=template,
            expected=", ".join(tokenizer.chat_templates) or "a template, or the file of one",
            fix="correct --chat-template",
        )
    chat.render([{"role": "user", "content": "hello"}], tokenizer=tokenizer, chat_template=template)


def _shown(params: SamplingParams) -> dict[str, Any]:  # Any: fields of SamplingParams
    """How tokens are chosen, without texts of the client."""
    texts = ("stop", "bad_words", "structured_outputs")
    return {name: "..." if name in texts else value for name, value in params.to_dict().items()}


def _parsers(
    tokenizer: Tokenizer, settings: Settings
) -> tuple[reasoning.ReasoningParser | None, tools.ToolParser | None]:
    """What takes answers apart: by the names in the settings, or by what the model's template writes."""
    named = settings.chat_template
    source = tokenizer if named is None else chat.template_of(tokenizer, named)
    thought = spoken = None
    if settings.reasoning_parser is not None:
        name = None if settings.reasoning_parser == "auto" else settings.reasoning_parser
        thought = reasoning.parser_of(source, name=name)
    if settings.tool_parser is not None:
        name = None if settings.tool_parser == "auto" else settings.tool_parser
        spoken = tools.parser_of(source, name=name)
    return thought, spoken


def _salt(request: Request, given: str | None) -> str:
    """What separates the blocks of clients: their own salt, and their key where there are several."""
    key = getattr(request.state, "key", None)
    return (given or "") if key is None else f"{key}@{given or ''}"


def of(request: Request) -> Service:
    """The service of the application that got a request."""
    found: Service = getattr(request.app.state, _STATE)
    return found


def bind(state: Any, service: Service) -> None:  # Any: Starlette's bag
    """Let handlers of an application find its service."""
    setattr(state, _STATE, service)


def request_id(request: Request) -> str:
    """The number of a request, which its answer has as X-Request-Id."""
    found: str = request.state.request_id
    return found


def new_id(prefix: str) -> str:
    """A name of a call, such as `cmpl-` and 32 digits.

    Args:
        prefix: with the sign that follows it.
    """
    return prefix + uuid.uuid4().hex
