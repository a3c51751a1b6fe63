"""Keys of a module's arrays, which are PyTorch's, and modules with other arrays at these keys.

A module is any dataclass here, so that `module` can import this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

import infini.numpy as inp
from infini.core import errors, exchange
from infini.core.value import Value
from infini.lax.quantized import QuantizedArray

State: TypeAlias = dict[str, Any]  # Any: arrays, and dictionaries of them by the names of modules


def is_module(x: object) -> bool:
    """Whether a value of a field has fields of its own."""
    return dataclasses.is_dataclass(x) and not isinstance(x, type) and hasattr(x, "state_dict")


def entries(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:  # Any: modules, containers and arrays
    """Keys and values directly inside a module: modules and arrays, looking through containers."""
    for item in dataclasses.fields(node):
        if not item.metadata.get("static"):
            yield from ((prefix + key, value) for key, value in entries_of(item, getattr(node, item.name)))


def entries_of(item: dataclasses.Field[Any], value: Any) -> Iterator[tuple[str, Any]]:  # Any: as entries
    """Keys and values of one field."""
    if item.metadata.get("inline"):
        yield from _spread("", value)
    else:
        yield from _spread(item.name, value)


def _spread(key: str, value: Any) -> Iterator[tuple[str, Any]]:  # Any: as entries
    if isinstance(value, (tuple, list, dict)):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _spread(f"{key}.{name}" if key else str(name), part)
    elif isinstance(value, QuantizedArray):
        yield from ((f"{key}.{name}", plane) for name, plane in value.named_planes())
    elif value is not None:
        yield key, value


def leaves(module: Any, prefix: str) -> Iterator[tuple[str, Any]]:  # Any: arrays
    """Keys and arrays of a module and all inside it."""
    for key, value in entries(module, prefix):
        if is_module(value):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


Change: TypeAlias = Callable[[str, Any], Any]  # Any: arrays


def rebuilt(module: Any, prefix: str, change: Change) -> Any:  # Any: the module's type
    """The module with every array replaced by `change(key, array)`."""
    made = object.__new__(type(module))
    for item in dataclasses.fields(module):
        value = getattr(module, item.name)
        if not item.metadata.get("static"):
            value = _rebuilt_part("" if item.metadata.get("inline") else item.name, value, prefix, change)
        made.__dict__[item.name] = value
    return made


def _rebuilt_part(key: str, value: Any, prefix: str, change: Change) -> Any:  # Any: as entries
    if is_module(value):
        return rebuilt(value, f"{prefix}{key}.", change)
    if isinstance(value, dict):
        return {
            name: _rebuilt_part(f"{key}.{name}" if key else str(name), part, prefix, change)
            for name, part in value.items()
        }
    if isinstance(value, (tuple, list)):
        parts = [
            _rebuilt_part(f"{key}.{i}" if key else str(i), part, prefix, change)
            for i, part in enumerate(value)
        ]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, QuantizedArray):
        planes = {name: change(f"{prefix}{key}.{name}", plane) for name, plane in value.named_planes()}
        return dataclasses.replace(value, **planes)
    return None if value is None else change(prefix + key, value)


def flat_state(state: State, prefix: str) -> Iterator[tuple[str, Any]]:  # Any: arrays
    """Keys and arrays of running statistics."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from flat_state(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def rebuilt_state(state: State, prefix: str, change: Change) -> State:
    return {
        name: rebuilt_state(value, f"{prefix}{name}.", change)
        if isinstance(value, dict)
        else change(prefix + name, value)
        for name, value in state.items()
    }


def check_keys(
    name: str,
    wanted: Mapping[str, Any],
    statistics: Mapping[str, Any],
    has_state: bool,
    given: Mapping[str, Any],
    strict: bool,
) -> None:  # Any: arrays
    """Refuse a state dictionary, with all that is wrong with it in one message.

    Statistics may come along when there is no state to put them into.
    """
    needed = {**wanted, **statistics} if has_state else wanted
    problems = []
    if strict:
        problems += [f"missing: {key}" for key in needed if key not in given]
        problems += [f"unexpected: {key}" for key in given if key not in needed and key not in statistics]
    for key, leaf in needed.items():
        if key in given and tuple(given[key].shape) != tuple(leaf.shape):
            problems.append(f"shape of {key}: {tuple(given[key].shape)}, expected {tuple(leaf.shape)}")
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise errors.ValueMismatchError(
            f"{name}.load_state_dict: the state dictionary does not fit",
            got="; ".join(shown),
            fix="rename keys before loading; strict=False skips keys that are missing or too many",
        )


def loaded(data: Any, leaf: Any) -> Value:  # Any: arrays of any library
    """An array of any library in the dtype of the one that it replaces."""
    if not isinstance(data, (Value, np.ndarray, np.generic)) and hasattr(data, "__dlpack__"):
        if hasattr(data, "detach"):  # PyTorch's: not part of its derivatives, and on the CPU
            data = data.detach().cpu()
        if str(data.dtype) == "torch.bfloat16":  # NumPy has no name for it in DLPack
            data = data.float()
        data = exchange.from_dlpack(data)
    return inp.asarray(data, dtype=leaf.dtype)
