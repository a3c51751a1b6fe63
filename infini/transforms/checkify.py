"""`checkify`: run-time checks as values, so that functions with checks can be jitted and batched.

`check` outside of checkify raises at once; inside, its failure becomes part of an `Error`, a pytree.
References: https://docs.jax.dev/en/latest/debugging/checkify_guide.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from infini import lax
from infini.core import dtypes, errors as errors_, host, trace, tree
from infini.core.ir import Attrs
from infini.core.value import Value
from infini.transforms import check_operation, check_rules, flat
from infini.transforms.check_operation import (
    Check,
    CheckFailedError as CheckFailedError,
    Entry,
    ErrorCategory as ErrorCategory,
)

Categories = frozenset[ErrorCategory]
user_checks: Final[Categories] = frozenset({ErrorCategory.USER})
nan_checks: Final[Categories] = frozenset({ErrorCategory.NAN})
div_checks: Final[Categories] = frozenset({ErrorCategory.DIVISION})
index_checks: Final[Categories] = frozenset({ErrorCategory.INDEX})
float_checks: Final[Categories] = nan_checks | div_checks
automatic_checks: Final[Categories] = float_checks | index_checks
all_checks: Final[Categories] = automatic_checks | user_checks


class Error:
    """The outcome of all checks of a function: a pytree of arrays, so that it may leave `jit` and `vmap`.

    Args:
        code: 0, or the number from 1 of the first check that failed; batched under vmap.
        payload: run-time values of each check.
        entries: the checks.
    """

    def __init__(self, code: Any, payload: Sequence[Sequence[Any]], entries: tuple[Entry, ...]) -> None:
        self._code, self._entries = code, entries
        self._payload = tuple(map(tuple, payload))

    def get(self) -> str | None:
        """The message of the first check that failed, or None; one line per failed element when batched."""
        failed = list(self._failed())
        if not failed:
            return None
        if np.ndim(self._code) == 0:
            return failed[0][2]
        return "\n".join(f"at mapped index {', '.join(map(str, at))}: {text}" for at, _, text in failed)

    def throw(self) -> None:
        """Raise when a check failed.

        Raises:
            CheckFailedError: with the message of the check, at its line.
        """
        check_error(self)

    def get_exception(self) -> CheckFailedError | None:
        """The exception that `throw` raises, or None."""
        failed = list(self._failed())
        if not failed:
            return None
        message = self.get()
        assert message is not None
        return CheckFailedError(message, where=failed[0][1].where)

    def _failed(self) -> Iterator[tuple[tuple[int, ...], Entry, str]]:
        """Place in the batch, check and message of each failure."""
        codes = np.asarray(self._code)
        for at in np.ndindex(*codes.shape):
            if codes[at]:
                number = int(codes[at]) - 1
                values = [np.asarray(x)[at] for x in self._payload[number]]
                yield at, self._entries[number], self._entries[number].check.describe(values)

    def __str__(self) -> str:
        return f"Error({self.get()})"

    def __repr__(self) -> str:
        return f"Error({len(self._entries)} checks, code {self._code!r})"


tree.register_pytree_node(
    Error,
    lambda error: ((error._code, error._payload), error._entries),
    lambda entries, children: Error(children[0], children[1], entries),
)
init_error: Final = Error(np.int32(0), (), ())


# --- making checks --------------------------------------------------------------------------------


def check(pred: Any, msg: str, *fmt_args: Any, debug: bool = False, **fmt_kwargs: Any) -> None:
    """Fail with a message when a predicate is false, as `jax.experimental.checkify.check`.

    Inside `checkify` the failure becomes part of its `Error`; outside of every transformation it is raised.

    Args:
        pred: boolean scalar.
        msg: message, with fields of `str.format` for the values.
        *fmt_args: pytrees of arrays for `{}`.
        debug: leave the check out where checkify is not used.
        **fmt_kwargs: pytrees of arrays for `{name}`.

    Raises:
        CheckFailedError: outside of every transformation, when `pred` is false.
        TypeMismatchError: `pred` is no boolean scalar, or a value is no array.
        ValueMismatchError: a function that is not checkified is traced.

    Example:
        >>> import infini, infini.numpy as inp
        >>> from infini.experimental import checkify
        >>> def f(x):
        ...     checkify.check(x > 0, "must be positive, got {}", x)
        ...     return inp.log(x)
        >>> err, out = infini.jit(checkify.checkify(f))(inp.float32(-1.0))
        >>> err.get()
        'must be positive, got -1.0 (`check` failed)'
    """
    holds = trace.as_value(pred) if isinstance(pred, (bool, np.bool_, np.ndarray, Value)) else None
    if holds is None or holds.shape != () or holds.dtype != dtypes.bool_:
        raise errors_.TypeMismatchError(
            "check takes a scalar pred as argument", got=str(pred), expected="bool[]"
        )
    if not isinstance(msg, str):
        raise errors_.TypeMismatchError("the message of a check must be text", got=repr(msg))
    leaves, treedef = tree.flatten((fmt_args, fmt_kwargs))
    for leaf in leaves:
        if not isinstance(leaf, (Value, np.ndarray, np.generic)):
            raise errors_.TypeMismatchError(
                "Formatting arguments to checkify.check need to be PyTrees of arrays",
                got=f"{leaf!r} of type {type(leaf).__name__}",
                fix="put Python values into the message itself, for example by an f-string",
            )

    def form(*arrays: np.ndarray) -> str:
        args, kwargs = tree.unflatten(treedef, arrays)
        return msg.format(*args, **kwargs)

    reference = host.register(form, key=("check", msg, treedef))
    made = Check(ErrorCategory.USER.value, msg, form=reference)
    values = [holds, *(trace.as_value(leaf) for leaf in leaves)]
    _emit(values, made, debug=debug)


def debug_check(pred: Any, msg: str, *fmt_args: Any, **fmt_kwargs: Any) -> None:
    """As `check`, and left out where checkify is not used."""
    check(pred, msg, *fmt_args, debug=True, **fmt_kwargs)


def check_error(error: Error) -> None:
    """Raise when an `Error` holds a failure; inside `checkify` the failure is passed on.

    Raises:
        TypeMismatchError: the argument is no `Error`.
        CheckFailedError: outside of every transformation, when a check failed.
    """
    if not isinstance(error, Error):
        raise errors_.TypeMismatchError("check_error takes an Error", got=type(error).__name__)
    leaves = tree.leaves(error)
    if trace.is_eager() and not any(isinstance(leaf, trace.Tracer) for leaf in leaves):
        found = error.get_exception()
        if found is not None:
            raise found
        return
    code = trace.as_value(error._code)
    for number, (entry, payload) in enumerate(zip(error._entries, error._payload, strict=True), 1):
        holds = lax.ne(code, check_rules.number(number))
        with trace.at_line(entry.where):
            values = [holds, *(trace.as_value(x) for x in payload)]
            _emit(values, entry.check, debug=False, num_batch=code.ndim)


def _emit(values: Sequence[Value], made: Check, *, debug: bool, num_batch: int = 0) -> None:
    attrs = Attrs({"check": made, "debug": debug, "num_batch": num_batch})
    if not debug and not trace.is_eager() and not check_operation.are_off() and not _is_checkified():
        check_operation.refuse(check=made, debug=False, num_batch=0)
    check_operation.bind(values, attrs)


def _is_checkified() -> bool:
    """Whether a checkify is being traced around, or nothing is traced at all."""
    interpreter, is_traced = trace.current(), False
    while interpreter is not None:
        if interpreter.transform == "checkify":
            return True
        is_traced |= isinstance(interpreter, trace.Staging)
        interpreter = interpreter.parent  # type: ignore[assignment]  # the outermost has none
    return not is_traced


# --- the transform --------------------------------------------------------------------------------


def checkify(
    f: Callable[..., Any], errors: Categories = user_checks
) -> Callable[..., tuple[Error, Any]]:  # Any: functions of pytrees
    """Turn the checks of a function into a value that it returns, as `jax.experimental.checkify.checkify`.

    Args:
        f: function of arrays and pytrees, whose `check` calls become values.
        errors: which checks are made: `user_checks`, and those that need no call, `nan_checks`, `div_checks`,
            `index_checks`, or unions of these such as `float_checks` and `all_checks`.

    Returns:
        A function with the arguments of `f` that returns `(error, output)`. `error.get()` is the message of
        the first check that failed, or None; `error.throw()` raises it.

    Raises:
        TypeMismatchError: `errors` is no set of categories.

    Example:
        >>> import infini, infini.numpy as inp
        >>> from infini.experimental import checkify
        >>> err, y = checkify.checkify(inp.log, errors=checkify.float_checks)(inp.float32(-1.0))
        >>> print(err.get())
        nan generated by primitive: log.
    """
    if not isinstance(errors, frozenset) or not all(isinstance(e, ErrorCategory) for e in errors):
        raise errors_.TypeMismatchError(
            "checkify: errors is a set of categories",
            got=repr(errors),
            expected="for example checkify.all_checks",
        )

    @functools.wraps(f)
    def checked(*args: Any, **kwargs: Any) -> tuple[Error, Any]:
        out_trees: list[tree.PyTreeDef] = []

        # The arguments are closed over, so that what is concrete stays so.
        def closed() -> Sequence[Any]:
            results, out_tree = tree.flatten(f(*args, **kwargs))
            out_trees.append(out_tree)
            return flat.values(results, "results of a checkified function")

        name = getattr(f, "__name__", type(f).__name__)
        staged = trace.stage(closed, (), name=name, transform="checkify")
        made = check_rules.rewrite(staged.program, errors)
        found = flat.finished(trace.evaluate(made.program, staged.captures))
        results, code, payload = made.split(found)
        weak = [r.with_weak(flag) if flag else r for r, flag in zip(results, staged.weak, strict=True)]
        return Error(code, payload, made.entries), tree.unflatten(out_trees[0], weak)

    return checked
