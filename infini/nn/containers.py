"""Modules of modules: Sequential, ModuleList, ModuleDict; and Identity, Lambda, Flatten, Unflatten.

Keys of their parts in a state dictionary are those of PyTorch: `0.weight`, `name.weight`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import infini.numpy as inp
from infini import random
from infini.core import errors
from infini.core.value import Value
from infini.nn.module import Module, State, field, initial_state
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, as_value
from infini.random.keys import KeyLike


class Identity(Module):
    """Gives back its argument; constructor arguments are ignored, as PyTorch's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: ignored
        pass

    def __call__(self, x: Any) -> Any:  # Any: anything
        """The argument."""
        return x


class Lambda(Module):
    """A function as a module.

    Args:
        fn: function of one array; it becomes part of the structure of the module.
    """

    fn: Callable[..., Any] = field(static=True)  # Any: arrays

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, x: Any) -> Any:  # Any: arrays
        """The function of `x`."""
        return self.fn(x)


class Flatten(Module):
    """Several dimensions as one.

    Args:
        start_dim: first of them.
        end_dim: last of them.
    """

    start_dim: int = field(static=True)
    end_dim: int = field(static=True)

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim

    def __call__(self, x: ArrayLike) -> Value:
        """The same elements."""
        value = as_value("Flatten", x)
        first, last = (_axes.one("Flatten", d, value.ndim) for d in (self.start_dim, self.end_dim))
        size = math.prod(value.shape[first : last + 1])
        return inp.reshape(value, (*value.shape[:first], size, *value.shape[last + 1 :]))


class Unflatten(Module):
    """One dimension as several.

    Args:
        dim: the dimension.
        unflattened_size: sizes; one of them may be -1.
    """

    dim: int = field(static=True)
    unflattened_size: tuple[int, ...] = field(static=True)

    def __init__(self, dim: int, unflattened_size: Iterable[int]) -> None:
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def __call__(self, x: ArrayLike) -> Value:
        """The same elements."""
        value = as_value("Unflatten", x)
        place = _axes.one("Unflatten", self.dim, value.ndim)
        known = -math.prod(self.unflattened_size)
        sizes = [value.shape[place] // max(known, 1) if n == -1 else n for n in self.unflattened_size]
        return inp.reshape(value, (*value.shape[:place], *sizes, *value.shape[place + 1 :]))


class Sequential(Module):
    """Modules one after the other. What is no module but a function becomes a `Lambda`.

    Args:
        *layers: modules and functions; or one dictionary of them.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn, random
        >>> first, second = random.split(random.key(0))
        >>> mlp = nn.Sequential(nn.Linear(2, 8, key=first), nn.relu, nn.Linear(8, 1, key=second))
        >>> mlp(inp.ones((4, 2))).shape
        (4, 1)
        >>> list(mlp.state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    layers: dict[str, Module] = field(inline=True)
    order: tuple[str, ...] = field(static=True, repr=False)

    def __init__(self, *layers: Any) -> None:  # Any: modules, functions, or a dictionary of them
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], Mapping) else dict(enumerate(layers))
        self.layers = {str(name): _as_module(layer) for name, layer in named.items()}
        self.order = tuple(self.layers)

    def __call__(
        self, x: Any, state: State | None = None, *, key: KeyLike | None = None, training: bool | None = None
    ) -> Any:  # Any: arrays
        """Apply the layers in turn.

        Args:
            x: argument of the first layer.
            state: running statistics, from `nn.initial_state` or the last call; needed when a layer has any.
            key: a key, split among the layers that take one.
            training: passed to the layers that take it.

        Returns:
            The result of the last layer; with `state`, the pair of it and the new state.
        """
        drawing = [name for name in self.order if _takes(self.layers[name], "key")]
        keys = (
            dict(zip(drawing, random.split(key, len(drawing)), strict=True))
            if key is not None and drawing
            else {}
        )
        after: State = {}
        for name in self.order:
            layer, options = self.layers[name], {}
            if name in keys:
                options["key"] = keys[name]
            if training is not None and _takes(layer, "training"):
                options["training"] = training
            if not _takes(layer, "state"):
                x = layer(x, **options)  # type: ignore[operator]  # layers are called
            elif state is not None and name in state:
                x, after[name] = layer(x, state[name], **options)  # type: ignore[operator]  # as above
            elif initial_state(layer):
                raise errors.ValueMismatchError(
                    f"Sequential: layer {name} has running statistics, and none were given",
                    got=f"{type(layer).__name__}, state={None if state is None else sorted(state)}",
                    fix="state = nn.initial_state(model), then y, state = model(x, state, training=...)",
                )
            else:
                x = _without_state(layer, x, options)
        return x if state is None else (x, after)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int | slice | str) -> Module:
        if isinstance(index, str):
            return self.layers[index]
        if isinstance(index, slice):
            return Sequential({name: self.layers[name] for name in self.order[index]})
        return self.layers[self.order[index]]

    def __iter__(self) -> Iterator[Module]:
        return (self.layers[name] for name in self.order)


class ModuleList(Module):
    """A sequence of modules that is called by the code around it.

    Args:
        modules: the modules.
    """

    items: tuple[Module, ...] = field(inline=True)

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.items = tuple(_as_module(module) for module in modules)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | slice) -> Any:  # Any: a module, or a list of them
        return ModuleList(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[Module]:
        return iter(self.items)

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList((*self.items, *other))


class ModuleDict(Module):
    """Modules by name, called by the code around them.

    Args:
        modules: the modules by name, or pairs of both.
    """

    entries: dict[str, Module] = field(inline=True)

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        self.entries = {name: _as_module(module) for name, module in dict(modules).items()}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Module:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def keys(self) -> Iterable[str]:
        """The names."""
        return self.entries.keys()

    def values(self) -> Iterable[Module]:
        """The modules."""
        return self.entries.values()

    def items(self) -> Iterable[tuple[str, Module]]:
        """Pairs of name and module."""
        return self.entries.items()


def _without_state(layer: Module, x: Any, options: dict[str, Any]) -> Any:  # Any: arrays, and options
    """The result of a layer that could have running statistics and has none."""
    if isinstance(layer, Sequential):
        return layer(x, **options)
    found, _ = layer(x, {}, **options)  # type: ignore[operator]  # layers are called
    return found


def _as_module(layer: object) -> Module:
    if isinstance(layer, Module):
        return layer
    if callable(layer):
        return Lambda(layer)
    raise errors.TypeMismatchError(
        "a container of modules holds modules and functions", got=f"{layer!r} of type {type(layer).__name__}"
    )


def _takes(layer: Module, option: str) -> bool:
    return option in _call_parameters(type(layer))  # type: ignore[arg-type]  # classes are hashable


@functools.cache
def _call_parameters(cls: type[Module]) -> frozenset[str]:
    """Names of the parameters of a class's call. One entry per class, kept while the process runs."""
    call = getattr(cls, "__call__", None)  # noqa: B004  # its parameters are read, not whether it is there
    return frozenset() if call is None else frozenset(inspect.signature(call).parameters)
