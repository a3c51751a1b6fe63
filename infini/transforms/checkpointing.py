"""`checkpoint`: recompute in the backward pass what a policy does not save."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from infini.core import errors, trace, tree
from infini.lax import checkpoint_policies
from infini.lax.checkpoint import checkpoint_p
from infini.transforms import staging


def checkpoint(
    fun: Callable[..., Any] | None = None,
    *,
    prevent_cse: bool = True,
    policy: Callable[..., bool] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
) -> Any:  # Any: a function, or a decorator
    """Recompute inside the backward pass instead of keeping intermediate values, as `jax.checkpoint`.

    Args:
        fun: function of arrays and pytrees.
        prevent_cse: fence the recomputation, so that it is not merged with the first computation. Without
            it, use `checkpoint` only where something else keeps them apart, such as a `scan`.
        policy: which values to save all the same: one of `infini.checkpoint_policies`, or a function
            `policy(op, *types, **attrs)` of each operation; nothing is saved when absent.
        static_argnums: positions of arguments that are not arrays.
        static_argnames: the same by keyword.

    Returns:
        The function, or a decorator when `fun` is absent.

    Raises:
        TypeMismatchError: `fun` or `policy` is no function.
        ValueMismatchError: a number or name does not fit the function.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.grad(inf.checkpoint(lambda x: inp.sin(inp.sin(x))))(0.0)
        Array(1., dtype=float32, weak_type=True)
    """
    if fun is None:
        return functools.partial(
            checkpoint,
            prevent_cse=prevent_cse,
            policy=policy,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
        )
    if not callable(fun):
        raise errors.TypeMismatchError("checkpoint needs a function", got=repr(fun))
    saved = checkpoint_policies.attribute_of(policy)
    jitted = staging.jit(fun, static_argnums=static_argnums, static_argnames=static_argnames)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        values, found = jitted.specialise(args, kwargs, requires_hashable=False)
        staged = found.staged
        results = trace.bind(
            checkpoint_p,
            *staged.captures,
            *values,
            body=staged.program,
            name=found.name,
            policy=saved,
            prevent_cse=bool(prevent_cse),
        )
        marked = [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(found.out_tree, found.out_holes.fill(marked))

    return run


remat = checkpoint
