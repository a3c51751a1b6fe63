"""The sandbox that chat templates run in: what they may reach, and budgets of what they may use.

Jinja's ImmutableSandboxedEnvironment keeps a template from Python's inside; it does not keep it from running
for ever or filling memory. Here every turn of a loop and every call is counted, and everything that grows
(strings, lists, products, the output) is measured before it is made, against budgets of one rendering. The
sum of what containers hold is remembered, so that lists of the same list, which are small in memory and
endless when written out, are refused where they are made.

Reference: https://jinja.palletsprojects.com/en/stable/sandbox/
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_SECONDS: Final = 5.0
MAX_STEPS: Final = 1_000_000  # turns of loops and calls
MAX_SIZE: Final = 4 << 20  # letters and items of one value
MAX_MADE: Final = 64 << 20  # letters and items of all values that one rendering makes
MAX_NUMBER: Final = 1 << 20  # numbers that say how long something gets
MAX_BITS: Final = 4096  # of an integer

# Of Jinja's filters, those that do something with text or data; the others reach attributes, are random, or
# are made for web pages.
_FILTERS: Final = frozenset(
    ("abs", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
     "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list",
     "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe",
     "select", "selectattr", "slice", "sort", "string", "striptags", "sum", "title", "trim", "truncate",
     "unique", "upper", "urlencode", "wordcount", "center")
)  # fmt: skip


class ExceededError(Exception):
    """A budget is spent."""


@dataclass(slots=True)
class Budget:
    """What one rendering has used."""

    ends_at: float
    steps: int = 0
    made: int = 0
    sizes: dict[int, tuple[object, int]] = field(default_factory=dict)

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ExceededError(f"it took more than {MAX_STEPS:,} steps")
        if not self.steps & 255 and time.monotonic() > self.ends_at:
            raise ExceededError(f"it took more than {MAX_SECONDS:g} s")

    def make(self, size: int) -> None:
        self.made += size
        if size > MAX_SIZE or self.made > MAX_MADE:
            raise ExceededError("its values grew too large")
        if size > 4096 and time.monotonic() > self.ends_at:
            raise ExceededError(f"it took more than {MAX_SECONDS:g} s")

    def size_of(self, value: object) -> int:
        """Letters and items of a value with all that it holds, each as often as it would be written."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise ExceededError("a number grew too large")
            return 1
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return 1
        known = self.sizes.get(id(value))
        if known is not None and known[0] is value:
            return known[1]
        # An explicit stack: JSON may be nested deeply.
        stack: list[tuple[Any, Iterator[Any], list[int]]] = [(value, _inner(value), [1])]  # Any: containers
        while True:
            container, items, total = stack[-1]
            for item in items:
                if isinstance(item, dict | list | tuple | set | frozenset):
                    known = self.sizes.get(id(item))
                    if known is None or known[0] is not item:
                        if len(stack) > 200:
                            raise ExceededError("its values are nested too deeply")
                        stack.append((item, _inner(item), [1]))
                        break
                    total[0] += known[1]
                else:
                    total[0] += 1 + (len(item) if isinstance(item, str) else 0)
                if total[0] > MAX_SIZE:
                    raise ExceededError("its values grew too large")
            else:
                stack.pop()
                # Containers do not change in this sandbox, and are kept here so that no other gets their id.
                self.sizes[id(container)] = (container, total[0])
                if not stack:
                    return total[0]
                stack[-1][2][0] += total[0]


def _inner(value: Any) -> Iterator[Any]:  # Any: a container, and what it holds
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield item
    else:
        yield from value


current: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget of the template")


# --- the environment --------------------------------------------------------------------------


@functools.cache
def environment() -> Any:  # Any: an environment, whose class exists when jinja2 is loaded
    import jinja2
    from jinja2 import ext, nodes, runtime, sandbox, utils
    from jinja2.ext import Extension

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        """Counts calls, and measures what operators make."""

        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            _instrument(tree)
            return tree

        def call_binop(
            self, context: runtime.Context, operator: str, left: Any, right: Any
        ) -> Any:  # Any: data
            _check_operator(operator, left, right)
            return _measured(super().call_binop(context, operator, left, right))

        def call(self, context: runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
            current.get().step()
            _check_call(obj, args, kwargs)
            return _measured(super().call(context, obj, *args, **kwargs))

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # Any: a method
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None

            def formatted(*args: Any, **kwargs: Any) -> str:  # Any: data
                _check_text("format", value.__self__, args, kwargs)
                return wrapped(*args, **kwargs)

            return formatted

    class Generation(Extension):
        """`{% generation %}`: marks what a model wrote, for training; it renders its body."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's protocol

        def parse(self, parser: Any) -> Any:  # Any: a parser, and nodes
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Namespace(utils.Namespace):
        """Refuses names that begin with an underscore, and shows nothing of what it holds."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of the names
            self, rest = args[0], args[1:]
            values = dict(*rest, **kwargs)
            for name in values:
                _check_name(name)
            utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:  # Any: data
            _check_name(name)
            utils.Namespace.__setitem__(self, name, value)

        def __repr__(self) -> str:
            return "<namespace>"

    def _check_name(name: object) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")

    @jinja2.pass_context
    def shown(context: runtime.Context, value: Any) -> Any:  # Any: data
        """Everything that is written passes here; `context` keeps Jinja from doing it while compiling."""
        budget = current.get()
        budget.make(budget.size_of(value))
        return value

    found = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols], finalize=shown,
        optimized=False,
    )  # fmt: skip
    own = {"tojson": _tojson, "indent": _indent, "join": _join, "counted": _counted, "concat": _concat,
           "measured": _measured, "items": _items}  # fmt: skip
    filters = {name: found.filters[name] for name in _FILTERS if name in found.filters}
    found.filters = {name: _guarded(fn) for name, fn in (filters | own).items()}
    found.globals = {
        "range": found.globals["range"],
        "namespace": Namespace,
        "dict": _make_dict,
        "joiner": found.globals["joiner"],
        "cycler": found.globals["cycler"],
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    found.policies["json.dumps_kwargs"] = {}
    return found


def _instrument(tree: Any) -> None:  # Any: a node
    """Let loops count their turns, and let `~` and displays of containers be measured."""
    from jinja2 import nodes

    def through(name: str, node: Any) -> Any:  # Any: nodes
        return (
            nodes.Filter(node, name, [], [], None, None)
            .set_lineno(node.lineno)
            .set_environment(_environment_of(node))
        )

    def _environment_of(node: Any) -> Any:  # Any: a node, and its environment
        return node.environment

    def changed(node: Any) -> Any:  # Any: nodes
        for name, child in list(node.iter_fields()):
            if isinstance(child, list):
                setattr(
                    node, name, [changed(item) if isinstance(item, nodes.Node) else item for item in child]
                )
            elif isinstance(child, nodes.Node):
                setattr(node, name, changed(child))
        if isinstance(node, nodes.For):
            node.iter = through("counted", node.iter)
        elif isinstance(node, nodes.Concat):
            return through(
                "concat",
                nodes.List(node.nodes).set_lineno(node.lineno).set_environment(_environment_of(node)),
            )
        elif isinstance(node, nodes.List | nodes.Dict) or (
            isinstance(node, nodes.Tuple) and getattr(node, "ctx", "load") == "load"
        ):
            return through("measured", node)
        return node

    changed(tree)


def _guarded(fn: Callable[..., Any]) -> Callable[..., Any]:  # Any: filters take anything
    """A filter that counts as a step, with lengths in bounds and its result measured."""
    import jinja2
    from jinja2.utils import _PassArg

    kind = _PassArg.from_obj(fn)

    @functools.wraps(fn)
    def guarded(context: Any, *args: Any, **kwargs: Any) -> Any:  # Any: data
        budget = current.get()
        budget.step()
        _check_lengths(args[1:], kwargs)
        if fn.__name__ in ("do_replace", "do_format", "do_center", "do_truncate"):
            _check_text(fn.__name__.removeprefix("do_"), args[0] if args else "", args[1:], kwargs)
        for value in args[:1]:
            budget.size_of(value)
        first = (
            (context,) if kind is _PassArg.context
            else (context.eval_ctx,) if kind is _PassArg.eval_context
            else (context.environment,) if kind is _PassArg.environment
            else ()
        )  # fmt: skip
        return _measured(fn(*first, *args, **kwargs))

    # Jinja runs filters of constants while it compiles, unless they take the context.
    guarded.__dict__.pop("jinja_pass_arg", None)
    return jinja2.pass_context(guarded)


def _measured(value: Any) -> Any:  # Any: data
    if isinstance(value, str | bytes | int | dict | list | tuple):
        budget = current.get()
        budget.make(budget.size_of(value) if not isinstance(value, dict | list | tuple) else 1 + len(value))
        if isinstance(value, dict | list | tuple):
            budget.size_of(value)
    return value


def _counted(value: Any) -> Any:  # Any: data
    """What a loop runs over, with every turn counted."""
    if value is None or not isinstance(value, Iterable):
        return value
    return _Turns(value)


class _Turns:
    """Counts turns and keeps the length, which `loop.length` and `loop.last` ask for."""

    def __init__(self, value: Iterable[Any]) -> None:  # Any: data
        self._value = value

    def __iter__(self) -> Iterator[Any]:  # Any: data
        budget = current.get()
        for item in self._value:
            budget.step()
            yield item

    def __len__(self) -> int:
        return len(self._value)  # type: ignore[arg-type]  # a TypeError is what Jinja expects of a stream


def _concat(parts: list[Any]) -> str:  # Any: data
    """`a ~ b`: both are measured before they are written out."""
    budget = current.get()
    budget.make(sum(budget.size_of(part) for part in parts))
    return "".join(map(str, parts))


def _check_operator(operator: str, left: Any, right: Any) -> None:  # Any: data
    budget = current.get()
    budget.step()
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
                budget.make(budget.size_of(value) * max(times, 0))
                return
        budget.size_of(left), budget.size_of(right)
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_BITS:
            raise ExceededError("a number grew too large")
    elif operator == "%" and isinstance(left, str):
        _check_text("format", left, right if isinstance(right, tuple) else (right,), {})
    elif operator == "+":
        budget.make(budget.size_of(left) + budget.size_of(right) if isinstance(left, str) else 1)


def _check_call(obj: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # Any: data
    _check_lengths(args, kwargs)
    owner = getattr(obj, "__self__", None)
    if isinstance(owner, str):
        _check_text(getattr(obj, "__name__", ""), owner, args, kwargs)


def _check_lengths(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:  # Any: data
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise ExceededError(f"a number in a call is larger than {MAX_NUMBER:,}")


# A width of a placeholder, `%100000d` or `{:100000}`, or one that an argument gives.
_WIDTH: Final = re.compile(r"%[^%a-zA-Z]*(?:\d{5}|\*)|\{[^{}]*:[^{}]*(?:\d{5}|\{)")


def _check_text(name: str, text: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # Any: data
    """Methods and filters of texts whose result may be much longer than what they get."""
    budget = current.get()
    text = text if isinstance(text, str) else str(text) if isinstance(text, int | float) else ""
    values = (*args, *kwargs.values())
    sizes = [budget.size_of(value) for value in values]
    if name == "replace" and len(values) > 1:
        old = values[0] if isinstance(values[0], str) else ""
        new = values[1] if isinstance(values[1], str) else ""
        budget.make(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "join":
        items = values[0] if values and isinstance(values[0], list | tuple | dict | str) else ()
        budget.make((sizes[0] if sizes else 0) + len(text) * len(items))
    elif name in ("format", "format_map"):
        if _WIDTH.search(text):
            raise ExceededError("a format asks for a width")
        budget.make(len(text) + (text.count("%") + text.count("{")) * max(sizes, default=0))
    elif name == "expandtabs":
        budget.make(len(text) + text.count("\t") * max((v for v in values if isinstance(v, int)), default=8))
    elif name == "translate":
        raise ExceededError("translate is not offered")


# --- filters and functions of chat templates --------------------------------------------------


def _tojson(
    value: Any,  # Any: data
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models saw it while training: without HTML's escapes."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > 16:
        raise ExceededError("JSON is indented too far")
    pair = tuple(separators) if isinstance(separators, list | tuple) else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:  # Any: data
    space = width if isinstance(width, str) else " " * width
    source = str(text) if not isinstance(text, dict | list) else repr(text)
    lines = (source + "\n").splitlines()
    current.get().make(len(source) + len(space) * (len(lines) + 1))
    if blank:
        found = ("\n" + space).join(lines)
    else:
        found = "\n".join([*lines[:1], *(space + line if line else line for line in lines[1:])])
    return space + found if first else found


def _join(value: Any, d: str = "", attribute: str | int | None = None) -> str:  # Any: data
    budget = current.get()
    found, size = [], 0
    for item in value:
        budget.step()
        if attribute is not None:
            item = item.get(attribute, "") if isinstance(item, dict) else item[attribute]
        size += budget.size_of(item) + len(d)
        budget.make(budget.size_of(item) + len(d))
        found.append(str(item))
    return str(d).join(found)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:  # Any: data
    if isinstance(value, Mapping):
        return iter(value.items())
    if type(value).__name__.endswith("Undefined"):
        return iter(())
    raise TypeError("items takes a mapping")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:  # Any: data
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> str:
    import jinja2

    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(format: str) -> str:
    if len(format) > 100 or re.search(r"\d{3,}", format):
        raise ExceededError("a format of a date is too long")
    return datetime.datetime.now().strftime(format)  # templates mean the local day
