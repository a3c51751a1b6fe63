"""The forms in which families write tool calls, as grammars that read one letter at a time.

A grammar is a generator over the readers of `tool_readers`: it asks for letters and tells an `Output` what
they are, so every way of cutting an answer gives the same.
"""

from __future__ import annotations

import ast
import json
import warnings

from infini.llm.text import tool_readers as read
from infini.llm.text.tool_readers import MAX_NAME, NAME, Call, Machine, Output, Reader

# --- the forms --------------------------------------------------------------------------------


def hermes(output: Output) -> Machine:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, of Hermes and Qwen."""
    while (yield from read.text_until(output, "<tool_call>")):
        if (yield from read.call_object(output, "<tool_call>")):
            yield from read.skip(output, "</tool_call>")
    output.end()


def llama3_json(output: Output) -> Machine:
    """`{"name": ..., "parameters": {...}}` as the whole answer, several with `;` between them."""
    raw = yield from read.optional(output, "<|python_tag|>")
    if (yield from read.call_object(output, raw)):
        while (yield from read.skip(output, ";")):
            if not (yield from read.call_object(output, ";")):
                break
    yield from read.all_text(output)
    output.end()


def mistral(output: Output) -> Machine:
    """`[TOOL_CALLS]` and an array of calls; in newer models `[TOOL_CALLS]name[ARGS]{...}` for each."""
    mark = "[TOOL_CALLS]"
    while (yield from read.text_until(output, mark)):
        raw = [mark]
        letter = yield from read.space(output, raw)
        if letter == "[":
            raw.append("[")
            while (yield from read.call_object(output, "".join(raw))):
                if not (yield from read.skip(output, ",")):
                    yield from read.skip(output, "]")
                    break
                raw = [","]
            continue
        if letter == "{":  # one call without an array
            output.back.append(letter)
            yield from read.call_object(output, "".join(raw))
            continue
        output.back.append(letter)
        name = yield from read.word_until(output, raw, ("[ARGS]", "[CALL_ID]", "{"))
        if name is not None:
            yield from read.arguments(output, name, raw)
    output.end()


def deepseek(output: Output) -> Machine:
    """`<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a block of JSON, and an end; in newer models
    the name stands before the separator and the object follows bare.
    """
    begin, separator = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
    first, last = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    while mark := (yield from read.text_until(output, begin, first, last)):
        if mark != begin:
            continue
        raw = [begin]
        name = yield from read.word_until(output, raw, (separator,))
        if name is None:
            continue
        if name == "function":
            letter = yield from read.letter_of(output, raw)
            found: list[str | None] = []
            while letter not in (None, "\n", "{", "`") and len(found) < MAX_NAME:
                found.append(letter)
                letter = yield from read.letter_of(output, raw)
            name = "".join(part for part in found if part is not None).strip()
            if letter in ("{", "`"):
                raw.pop()
                output.back.append(letter)
                name = name or "function"  # the newer form, and a tool of this name
            fence = yield from read.optional_in(output, raw, "```json")
            if not NAME.fullmatch(name) or fence is None:
                output.text("".join(raw))
                continue
        if (yield from read.arguments(output, name, raw)):
            yield from read.skip(output, "```")
            yield from read.skip(output, "<｜tool▁call▁end｜>")
    output.end()


def pythonic(output: Output) -> Machine:
    """`[name(key=value, ...), ...]` as the whole answer. Values are literals; a call is passed on when it
    ends.
    """
    raw = [(yield from read.optional(output, "<|python_start|>"))]
    letter = yield from read.space(output, raw)
    if letter != "[":
        output.text("".join(raw))
        output.back.append(letter)
    else:
        raw.append("[")
        yield from _python_list(output, raw)
    yield from read.all_text(output)
    output.end()


def qwen_xml(output: Output) -> Machine:
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`; a model of this
    form may write the JSON of `hermes` as well.
    """
    while (yield from read.text_until(output, "<tool_call>")):
        raw = ["<tool_call>"]
        letter = yield from read.space(output, raw)
        output.back.append(letter)
        if letter == "{":
            is_whole = yield from read.call_object(output, "".join(raw))
        else:
            is_whole = yield from _xml_call(output, raw)
        if is_whole:
            yield from read.skip(output, "</tool_call>")
    output.end()


def _xml_call(output: Output, raw: list[str]) -> Reader[bool]:
    """A function with parameters as elements. Values that are JSON are taken as such, others as strings."""
    call: Call | None = None
    count = 0
    if (yield from read.optional_in(output, raw, "<function=")) != "<function=":
        output.text("".join(raw))
        return False
    name = yield from _element_text(output, raw, ">")
    if name is None or not 0 < len(name.strip()) <= MAX_NAME:
        output.text("".join(raw))
        return False
    while True:
        before = len(raw)
        found = yield from read.optional_in(output, raw, "</function>")
        if found == "</function>":
            break
        key = value = None
        is_open = found is None and "".join(raw[before:]).strip() == "<"
        if is_open and (yield from read.optional_in(output, raw, "parameter=")) == "parameter=":
            key = yield from _element_text(output, raw, ">")
            value = None if key is None else (yield from _element_text(output, raw, "</parameter>"))
        if key is None or value is None:
            if call is None:
                output.text("".join(raw))
            return False
        if call is None:
            call = output.begin(name.strip())
            call.raw = raw
        pair = f"{json.dumps(key.strip(), ensure_ascii=False)}: {_as_json(value)}"
        output.arguments(call, (", " if count else "{") + pair)
        count += 1
    if call is None:
        call = output.begin(name.strip())
        call.raw = raw
        output.arguments(call, "{")
    output.arguments(call, "}")
    call.is_whole = True
    return True


def _element_text(output: Output, raw: list[str], mark: str) -> Reader[str | None]:
    """Text up to a mark, which is left out of the result; None when the answer ends before."""
    start = len(raw)
    while (letter := (yield from read.letter_of(output, raw))) is not None:
        if letter == mark[-1] and "".join(raw[-len(mark) :]) == mark and len(raw) - start >= len(mark):
            return "".join(raw[start : len(raw) - len(mark)])
    return None


def _as_json(value: str) -> str:
    """A parameter's value: JSON where it is a number, a truth or a structure, else a string."""
    text = value.removeprefix("\n").removesuffix("\n")
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(found if not isinstance(found, str) else text, ensure_ascii=False)


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _python_list(output: Output, raw: list[str]) -> Reader[None]:
    """Calls in Python's syntax, separated by commas, up to the bracket that ends them."""
    while True:
        source: list[str] = []
        quote, depth = "", 0
        while True:
            letter = yield from read.letter_of(output, raw)
            if letter is None:
                output.text("".join(raw))
                return
            if not quote and depth == 0 and letter in ",]":
                break
            source.append(letter)
            if quote:
                if letter == quote and not _was_escaped(source):
                    quote = ""
            elif letter in "'\"":
                quote = letter
            elif letter in "([{":
                depth += 1
            elif letter in ")]}":
                depth -= 1
        found = _python_call("".join(source))
        if found is None:
            output.text("".join(raw))
            return
        call = output.begin(found[0])
        output.arguments(call, found[1])
        call.is_whole = True
        raw.clear()
        if letter == "]":
            yield from read.skip(output, "<|python_end|>")
            return


def _was_escaped(source: list[str]) -> bool:
    """Whether an odd number of backslashes stands before the last letter."""
    count = 0
    while count < len(source) - 1 and source[-2 - count] == "\\":
        count += 1
    return count % 2 == 1


def _python_call(source: str) -> tuple[str, str] | None:
    """Name and arguments, as JSON, of a call in Python's syntax; None without one. Nothing is evaluated."""
    try:
        with warnings.catch_warnings():  # a model's odd escapes are no business of the program's author
            warnings.simplefilter("ignore")
            node = ast.parse(source.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or node.args or any(item.arg is None for item in node.keywords):
            return None
        name = ast.unparse(node.func)
        if not all(part.isidentifier() for part in name.split(".")):
            return None
        arguments = {str(item.arg): ast.literal_eval(_with_truths(item.value)) for item in node.keywords}
        return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _with_truths(node: ast.expr) -> ast.expr:
    """JSON's `true`, `false` and `null`, which models mix in, as Python's."""
    names = {"true": True, "false": False, "null": None}

    class Names(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return ast.Constant(names[name.id]) if name.id in names else name

    found = Names().visit(node)
    return found if isinstance(found, ast.expr) else node
