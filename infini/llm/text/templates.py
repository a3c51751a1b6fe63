"""Chat templates rendered in a sandbox with limits, as transformers renders them.

Chat templates come with models, and models from anywhere: what a template may reach and use is decided by
`template_sandbox`. Whatever goes wrong is a `ChatTemplateError`.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from infini.core import errors
from infini.llm.text import template_sandbox as sandbox

if TYPE_CHECKING:
    import jinja2

MAX_TEMPLATE_BYTES: Final = 64 << 10
MAX_OUTPUT_BYTES: Final = 1 << 20


class ChatTemplateError(errors.InfiniError, ValueError):
    """A chat template is wrong, refuses the messages, or exceeds a limit."""


def render(template: str, values: Mapping[str, Any]) -> str:  # Any: JSON
    """The text of a template.

    Args:
        template: Jinja source as chat templates use it.
        values: its variables; plain data as `plain` makes it.

    Raises:
        ChatTemplateError: the template is wrong, raises an error, or exceeds a limit.
    """
    import jinja2

    if len(template.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
        raise ChatTemplateError(
            "the chat template is too long",
            got=f"{len(template.encode('utf-8', 'replace')):,} bytes",
            expected=f"at most {MAX_TEMPLATE_BYTES:,}",
        )
    budget = sandbox.Budget(time.monotonic() + sandbox.MAX_SECONDS)
    token = sandbox.current.set(budget)
    try:
        found: list[str] = []
        nbytes = 0
        for piece in compiled(template).generate(values):
            nbytes += len(piece.encode("utf-8", "replace"))
            if nbytes > MAX_OUTPUT_BYTES:
                raise sandbox.ExceededError(f"it made more than {MAX_OUTPUT_BYTES:,} bytes")
            found.append(piece)
        return "".join(found)
    except sandbox.ExceededError as error:
        raise ChatTemplateError("the chat template exceeds a limit", got=str(error)) from None
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            "the chat template is not valid", got=f"{error.message} in line {error.lineno}"
        ) from error
    except jinja2.exceptions.SecurityError as error:
        raise ChatTemplateError("the chat template does what templates may not do", got=str(error)) from error
    except jinja2.TemplateError as error:
        raise ChatTemplateError("the chat template refuses the messages", got=error.message) from error
    except RecursionError:
        raise ChatTemplateError(
            "the chat template exceeds a limit", got="it calls itself too deeply"
        ) from None
    except _FAULTS as error:
        raise ChatTemplateError(
            "the chat template failed", got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="correct the template, or the messages it was not made for",
        ) from error  # fmt: skip
    finally:
        sandbox.current.reset(token)


# What wrong operations in a template raise; the template is the user's, so they are the user's errors.
_FAULTS: Final = (
    TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, AssertionError, LookupError,
    MemoryError, SyntaxError, NotImplementedError, StopIteration, RuntimeError,
)  # fmt: skip


def variables(template: str) -> frozenset[str]:
    """Names of the variables that a template uses and does not set itself.

    Raises:
        ChatTemplateError: the template is not valid.
    """
    import jinja2
    from jinja2 import meta

    try:
        return frozenset(meta.find_undeclared_variables(sandbox.environment().parse(template)))
    except (jinja2.TemplateError, RecursionError) as error:
        raise ChatTemplateError("the chat template is not valid", got=str(error)[:200]) from error


@functools.lru_cache(maxsize=32)
def compiled(template: str) -> jinja2.Template:
    """A template ready to run; the same object for the same text."""
    with warnings.catch_warnings():  # of Python's compiler, on what the template turned into
        warnings.simplefilter("ignore")
        return sandbox.environment().from_string(template)


def plain(value: Any) -> Any:  # Any: JSON
    """Data without methods of its own: exact strings, numbers, lists and dictionaries. What is nothing of
    that becomes its type's name, so a template sees no object that does something.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"
