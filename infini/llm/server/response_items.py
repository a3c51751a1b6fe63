"""The items of /v1/responses: those of a call become messages, those of an answer are made here."""

from __future__ import annotations

from typing import Any, Final

import pydantic

from infini.llm.server import failures, requests, service as service_

Json = dict[str, Any]  # Any: JSON
_LOGPROBS: Final = "message.output_text.logprobs"


def chat_of(call: requests.ResponsesRequest) -> requests.ChatRequest:
    """The conversation that a call stands for.

    Args:
        call: the body.

    Raises:
        ApiError: it asks for what is not offered: a store of responses, other tools than functions.
    """
    _refuse(call)
    body: Json = {"messages": _messages(call)}
    same = (
        "temperature",
        "top_p",
        "seed",
        "top_k",
        "min_p",
        "repetition_penalty",
        "stream",
        "parallel_tool_calls",
    )
    for name in same:
        value = getattr(call, name)
        if value is not None:
            body[name] = value
    if call.max_output_tokens is not None:
        body["max_completion_tokens"] = call.max_output_tokens
    if call.reasoning is not None and call.reasoning.effort is not None:
        body["reasoning_effort"] = call.reasoning.effort
    if call.top_logprobs or _LOGPROBS in (call.include or ()):
        body |= {"logprobs": True, "top_logprobs": call.top_logprobs or 0}
    if call.tools:
        body["tools"] = [_tool(tool) for tool in call.tools]
    if isinstance(call.tool_choice, requests.NamedResponseTool):
        body["tool_choice"] = {"type": "function", "function": {"name": call.tool_choice.name}}
    elif call.tool_choice is not None and call.tools:
        body["tool_choice"] = call.tool_choice
    form = None if call.text is None else call.text.format
    if form is not None and form.type != "text":
        body["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            body["response_format"]["json_schema"] = {"name": form.name, "schema": form.schema_}
    try:
        return requests.ChatRequest.model_validate(body)
    except pydantic.ValidationError as error:
        raise failures.of_validation(error) from None


def _refuse(call: requests.ResponsesRequest) -> None:
    """What needs a store of responses, which this server has not."""
    for name in ("previous_response_id", "conversation"):
        if getattr(call, name) is not None:
            raise failures.invalid(
                f"{name} is not offered: this server keeps no responses; send the whole conversation",
                name,
            )
    if call.background:
        raise failures.invalid("background is not offered: this server keeps no responses", "background")
    for index, tool in enumerate(call.tools or ()):
        if tool.type != "function" or not tool.name:
            raise failures.invalid("only tools of type function, with a name, are offered", f"tools[{index}]")


def _tool(tool: requests.ResponseTool) -> Json:
    function = tool.model_dump(exclude_none=True, exclude={"type"})
    return {"type": "function", "function": function}


def _messages(call: requests.ResponsesRequest) -> list[Json]:
    found: list[Json] = []
    if call.instructions is not None:
        found.append({"role": "system", "content": call.instructions})
    if isinstance(call.input, str):
        return [*found, {"role": "user", "content": call.input}]
    for index, item in enumerate(call.input):
        place = f"input[{index}]"
        if item.type == "message":
            if item.role is None or item.content is None:
                raise failures.invalid("a message has a role and a content", place)
            content = item.content if isinstance(item.content, str) else _parts(item.content, place)
            found.append({"role": item.role, "content": content})
        elif item.type == "function_call":
            if item.name is None or item.call_id is None:
                raise failures.invalid("a function_call has a name and a call_id", place)
            function = {"name": item.name, "arguments": item.arguments or "{}"}
            one = {"id": item.call_id, "type": "function", "function": function}
            # Calls of one turn belong to one message.
            if found and found[-1].get("tool_calls"):
                found[-1]["tool_calls"].append(one)
            else:
                found.append({"role": "assistant", "content": None, "tool_calls": [one]})
        elif item.type == "function_call_output":
            if item.call_id is None or item.output is None:
                raise failures.invalid("a function_call_output has a call_id and an output", place)
            output = item.output if isinstance(item.output, str) else _parts(item.output, place)
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        elif item.type != "reasoning":  # earlier thoughts are not shown to a model again
            raise failures.invalid(f"items of type {item.type[:40]} are not offered", f"{place}.type")
    return found


def _parts(parts: list[requests.Part], place: str) -> list[Json]:
    found = []
    for index, part in enumerate(parts):
        if part.type not in ("input_text", "output_text", "text", "summary_text", "refusal"):
            raise failures.invalid(
                f"parts of type {part.type[:40]} are not served: this model takes text only",
                f"{place}.content[{index}].type",
                code="unsupported_content",
            )
        found.append({"type": "text", "text": part.text or ""})
    return found


def message(id: str, text: str, *, status: str, logprobs: list[Json] | None = None) -> Json:
    """An item with what the model says."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [] if status == "in_progress" else [text_part(text, logprobs)],
    }


def text_part(text: str, logprobs: list[Json] | None = None) -> Json:
    """The part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def thought(id: str, text: str | None) -> Json:
    """An item with what the model thought; None: it has just begun."""
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"id": id, "type": "reasoning", "summary": [], "content": content}


def function_call(id: str, call_id: str, name: str, arguments: str, *, status: str) -> Json:
    """An item with a call."""
    return {
        "id": id,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def frame(
    call: requests.ResponsesRequest, id: str, model: str, created: int, service: service_.Service
) -> Json:
    """The response without what comes out of the model."""
    form = None if call.text is None or call.text.format is None else call.text.format
    defaults = service.defaults
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": call.instructions,
        "max_output_tokens": call.max_output_tokens,
        "metadata": call.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": call.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": call.reasoning.effort if call.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": defaults.get("temperature", 1.0) if call.temperature is None else call.temperature,
        "text": {
            "format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        },
        "tool_choice": call.tool_choice.model_dump()
        if isinstance(call.tool_choice, requests.NamedResponseTool)
        else call.tool_choice or "auto",
        "tools": [
            {"parameters": None, "strict": None, **tool.model_dump(exclude_none=True)}
            for tool in call.tools or ()
        ],
        "top_p": defaults.get("top_p", 1.0) if call.top_p is None else call.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": call.user,
    }
