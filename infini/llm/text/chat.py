"""Messages to a prompt, by the template of the model.

Templates come from files that anybody may have written, so they run in a sandbox with limits (`templates`).
One that a request brings runs in a process of its own, which is killed when it takes too long.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from infini.core import errors
from infini.llm.text import template_process, templates
from infini.llm.text.tokenizer import DEFAULT, Tokenizer

Message = Mapping[str, Any]  # Any: whatever JSON holds

CHATML: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '' if message['role'] == 'system' else message['role'] | capitalize + ': ' }}"
    "{{ (message['content'] or '') + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# What a caller may not set by a keyword: `render` sets it, or it would change what is rendered.
RESERVED: Final = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
     "chat_template", "conversation", "tokenize", "tokenizer", "return_tensors", "return_dict",
     "bos_token", "eos_token", "unk_token", "pad_token", "raise_exception", "strftime_now", "namespace",
     "range", "dict", "loop", "self", "caller", "varargs", "kwargs")
)  # fmt: skip
_ASKS_NONE: Final = re.compile(r"content\W{0,3}\s+(?:is(?:\s+not)?|==|!=)\s+[nN]one\b")
_PARTS: Final = re.compile(
    r"\bcontent\b[^%}]*\bis\s+(?:not\s+)?(?:string|iterable|sequence)"
    r"|for\s+\w+\s+in\s+\w*\.?content"
    r"|for\s+\w+\s+in\s+\w+\[['\"]content['\"]\]"
)


def render(
    messages: Sequence[Message],
    *,
    tokenizer: Tokenizer | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,  # Any: JSON
    documents: Sequence[Mapping[str, Any]] | None = None,  # Any: JSON
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template: str | None = None,
    is_trusted: bool = True,
    **template_kwargs: Any,  # Any: JSON
) -> str:
    """The prompt of a conversation. It has its special tokens: encode it with `add_special_tokens=False`.

    Args:
        messages: each has a `role` and a `content`: a text, parts `{"type": "text", "text": ...}`, or None
            beside `tool_calls`.
        tokenizer: whose template and special tokens are used.
        tools: what the model may call, in OpenAI's form.
        documents: what it may quote.
        add_generation_prompt: whether the prompt ends with the beginning of an answer.
        continue_final_message: whether the last message goes on, in place of a new one.
        chat_template: text of a template, or the name of one of the tokenizer's, in place of its default.
        is_trusted: whether the template is the operator's; one of a request is rendered in a process of its
            own.
        template_kwargs: values for variables of the template, such as `enable_thinking`. Those that it does
            not use are ignored.

    Raises:
        ChatTemplateError: the template is wrong, refuses the messages, or exceeds a limit.
        ValueMismatchError: the messages, or a keyword, are wrong.

    Example:
        >>> print(render([{"role": "user", "content": "hello"}], chat_template=CHATML))
        <|im_start|>user
        hello<|im_end|>
        <|im_start|>assistant
        <BLANKLINE>
    """
    text = template_of(tokenizer, chat_template, has_tools=bool(tools))
    reserved = sorted(RESERVED & template_kwargs.keys())
    if reserved:
        raise errors.ValueMismatchError(
            f"a chat template's variable {reserved[0]} cannot be set", got=reserved[0], fix="leave it out"
        )
    if continue_final_message and add_generation_prompt:
        raise errors.ValueMismatchError(
            "a prompt cannot both continue the last message and begin a new one",
            got="continue_final_message and add_generation_prompt",
            fix="set add_generation_prompt=False",
        )
    special = {} if tokenizer is None else tokenizer.special_tokens
    values = (
        {name: special.get(name, "") for name in ("bos_token", "eos_token")}
        | dict(special)
        | template_kwargs
        | {
            "messages": normalized(messages, text),
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": [dict(document) for document in documents] if documents else None,
            "add_generation_prompt": add_generation_prompt,
        }
    )
    try:
        values = templates.plain(values)
    except RecursionError:
        raise templates.ChatTemplateError(
            "the chat template exceeds a limit", got="its values are nested too deeply"
        ) from None
    draw = templates.render if is_trusted else template_process.render
    if not continue_final_message:
        return draw(text, values)
    return _continued(draw(text, _marked(values)), values)


def template_of(
    tokenizer: Tokenizer | None, chat_template: str | None = None, *, has_tools: bool = False
) -> str:
    """The template that is used: the given one, the tokenizer's of that name, its template for tools when
    there are tools, its default, or else ChatML where the vocabulary has its marks, and plain lines where
    not.
    """
    named = {} if tokenizer is None else tokenizer.chat_templates
    if chat_template is not None:
        return named.get(chat_template, chat_template)
    if has_tools and "tool_use" in named:
        return named["tool_use"]
    if DEFAULT in named:
        return named[DEFAULT]
    if named:
        raise errors.ValueMismatchError(
            "the model has several chat templates and none is the default",
            expected=", ".join(sorted(named)),
            fix="name one with chat_template=",
        )
    has_marks = tokenizer is None or tokenizer.token_id("<|im_start|>") is not None
    return CHATML if has_marks else PLAIN


def normalized(messages: Sequence[Message], template: str = "") -> list[dict[str, Any]]:  # Any: JSON
    """Messages as templates expect them: parts of text become one text unless the template reads parts, and
    the arguments of earlier tool calls are objects.

    Raises:
        ValueMismatchError: a message has no role, or content that is no text.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise errors.ValueMismatchError(
            "there are no messages",
            got=repr(messages)[:80],
            expected='[{"role": "user", "content": ...}, ...]',
        )
    keeps_parts, keeps_none = bool(_PARTS.search(template)), bool(_ASKS_NONE.search(template))
    return [_message(message, place, keeps_parts, keeps_none) for place, message in enumerate(messages)]


def _message(
    message: Message, place: int, keeps_parts: bool, keeps_none: bool
) -> dict[str, Any]:  # Any: JSON
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise errors.ValueMismatchError(
            f"messages[{place}] has no role",
            got=repr(message)[:80],
            expected="an object with role and content",
        )
    # Most templates expect a missing key where an interface says null; a few ask whether content is none.
    found = {name: value for name, value in message.items() if value is not None}
    content = found.get("content")
    if content is None:
        if keeps_none:
            found["content"] = None
    elif isinstance(content, list | tuple):
        parts = [_part(part, place) for part in content]
        found["content"] = (
            [{"type": "text", "text": text} for text in parts] if keeps_parts else "\n".join(parts)
        )
    elif not isinstance(content, str):
        raise errors.ValueMismatchError(
            f"the content of messages[{place}] is no text",
            got=type(content).__name__,
            expected="a string, or parts of type text",
        )
    if "reasoning" in found and "reasoning_content" not in found:
        found["reasoning_content"] = found["reasoning"]
    if found.get("tool_calls"):
        found["tool_calls"] = [_tool_call(call, place) for call in found["tool_calls"]]
    return found


def _part(part: Any, place: int) -> str:  # Any: JSON
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") in ("text", "input_text", "output_text"):
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise errors.ValueMismatchError(
        f"messages[{place}] has a part that is no text",
        got=str(kind)[:80],
        expected='{"type": "text", "text": ...}',
        fix="leave the part out: models of text take nothing else",
    )


def _tool_call(call: Any, place: int) -> dict[str, Any]:  # Any: JSON
    """An earlier call with its arguments as an object, as templates print it."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise errors.ValueMismatchError(
            f"messages[{place}] has a tool call without a function",
            got=repr(call)[:80],
            expected='{"type": "function", "function": {"name": ..., "arguments": ...}}',
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # what a model wrote wrongly is shown as it was
            arguments = json.loads(arguments) if arguments.strip() else {}
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}


_MARK: Final = "\ue000continue\ue001"


def _marked(values: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """The last message with a mark at its end, behind which the template's own text begins."""
    messages = [dict(message) for message in values["messages"]]
    content = messages[-1].get("content")
    if isinstance(content, str):
        messages[-1]["content"] = content + _MARK
    elif not content:
        raise errors.ValueMismatchError("the last message has no content to be continued")
    else:
        messages[-1]["content"] = [*content[:-1], {**content[-1], "text": content[-1]["text"] + _MARK}]
    return values | {"messages": messages}


def _continued(text: str, values: Mapping[str, Any]) -> str:  # Any: JSON
    head, mark, _ = text.rpartition(_MARK)
    if not mark:
        raise templates.ChatTemplateError(
            "the chat template left out the end of the last message, which was to be continued",
            fix="leave continue_final_message out",
        )
    content = values["messages"][-1]["content"]
    last = content if isinstance(content, str) else content[-1]["text"]
    return head if head.endswith(last) else head.rstrip()
