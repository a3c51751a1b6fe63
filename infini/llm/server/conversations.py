"""From the messages of a call to the text of a prompt, by the model's template and within limits."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from infini.core import errors
from infini.llm.server import failures, requests
from infini.llm.server.service import Service
from infini.llm.text import chat

_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_ROLES_OF_SYSTEM: Final = "developer"
# What rendering itself decides: a call that set these would render something else than it was checked for.
_RESERVED: Final = chat.RESERVED | {"is_trusted"}


async def prompt_of(call: requests.Templated | requests.TokenizeRequest, service: Service) -> str:
    """The prompt of a conversation, with its special tokens written out.

    Args:
        call: the body.
        service: the model and what may be asked for.

    Returns:
        The text; encode it without adding special tokens.

    Raises:
        ApiError: a message is no text, or the template refuses the messages, is not allowed, or is too slow.
    """
    settings = service.settings
    if call.chat_template is not None and not settings.trusts_request_templates:
        raise failures.invalid(
            "this server takes no chat_template of a call (--trust-request-chat-template allows it)",
            "chat_template",
        )
    template = call.chat_template if call.chat_template is not None else settings.chat_template
    tools = tools_of(call.tools, service)
    messages = messages_of(call.messages or [], chat.template_of(service.tokenizer, template))
    values = dict(call.chat_template_kwargs or {})
    reserved = sorted(_RESERVED & values.keys())
    if reserved:
        raise failures.invalid(f"chat_template_kwargs may not set {reserved[0]}", "chat_template_kwargs")
    if call.reasoning_effort is not None:
        values.setdefault("reasoning_effort", call.reasoning_effort)

    def render() -> str:
        return chat.render(
            messages,
            tokenizer=service.tokenizer,
            tools=tools,
            add_generation_prompt=call.add_generation_prompt and not call.continue_final_message,
            continue_final_message=call.continue_final_message,
            chat_template=template,
            is_trusted=call.chat_template is None,
            **values,
        )

    try:
        # The template has limits of its own; this one keeps a client from waiting for a thread for ever.
        async with asyncio.timeout(2 * settings.limits.template_render_s):
            return await run_in_threadpool(render)
    except TimeoutError:
        raise failures.invalid("the chat template took too long", "messages", code="template_error") from None
    except errors.InfiniError as error:
        raise failures.of_infini(error, "messages") from None


def messages_of(given: list[requests.Message], template: str) -> list[dict[str, Any]]:  # Any: JSON
    """Messages as plain data, of text only.

    Args:
        given: of the call.
        template: one that knows no developers sees them as the system.

    Raises:
        ApiError: a part is no text.
    """
    found = []
    for index, message in enumerate(given):
        plain = message.model_dump(exclude_none=True, exclude_unset=True)
        if isinstance(message.content, list):
            for place, part in enumerate(message.content):
                if part.type not in _TEXT_PARTS:
                    raise failures.invalid(
                        f"parts of type {part.type[:40]} are not served: this model takes text only",
                        f"messages[{index}].content[{place}].type",
                        code="unsupported_content",
                    )
                if part.text is None and part.type != "refusal":
                    raise failures.invalid("the part has no text", f"messages[{index}].content[{place}].text")
            plain["content"] = [
                {"type": "text", "text": part.text or ""} for part in message.content if part.text
            ] or ""
        if message.role == _ROLES_OF_SYSTEM and _ROLES_OF_SYSTEM not in template:
            plain["role"] = "system"
        found.append(plain)
    return found


def tools_of(given: list[requests.Tool] | None, service: Service) -> list[dict[str, Any]] | None:  # Any: JSON
    """Tools as plain data, within limits.

    Raises:
        ApiError: there are too many, or they are too long.
    """
    if given is None:
        return None
    limits = service.settings.limits
    if len(given) > limits.num_tools:
        raise failures.invalid(f"there are more than {limits.num_tools} tools", "tools")
    plain = [tool.model_dump(exclude_none=True, exclude_unset=True) for tool in given]
    if len(json.dumps(plain)) > limits.tools_nbytes:
        raise failures.invalid(f"the tools have more than {limits.tools_nbytes} bytes", "tools")
    return plain
