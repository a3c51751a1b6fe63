"""`Module`: a frozen dataclass that is a pytree, with PyTorch's names for looking into it and its state
dictionaries.

A subclass declares its fields by annotations, as a dataclass does, and sets each of them in `__init__`;
without one it gets the constructor of a dataclass. Fields hold arrays, modules, and lists, tuples and
dictionaries of them; what is none of these is declared with `field(static=True)` and becomes part of the
structure. Nothing can be changed after construction: `replace`, `load_state_dict` and `to` give new modules.
The idea that a module is a pytree is Equinox's, https://docs.kidger.site/equinox.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self, dataclass_transform

import numpy as np

from infini.core import backend, dtypes, errors, tree
from infini.core.value import Value
from infini.lax.quantized import QuantizedArray
from infini.nn import state_dict as state_dict_
from infini.nn.state_dict import State
from infini.numpy._promotion import DTypeLike
from infini.transforms import placement, staging

_OPEN = "_is_being_built"


class FrozenModuleError(errors.InfiniError, dataclasses.FrozenInstanceError):
    """A field of a finished module was assigned to."""


def field(*, static: bool = False, inline: bool = False, **options: Any) -> Any:  # Any: as dataclasses.field
    """A field of a module.

    Args:
        static: the value is no array and no module: it is hashable, part of the structure, and compared when
            `jit` looks for a compiled program.
        inline: keys of the parts carry no name of this field in a state dictionary, as those of
            `Sequential` in PyTorch.
        **options: as of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"static": static, "inline": inline}, **options)


# Type checkers know no fields that are set once; for them, a constructor may assign.
@dataclass_transform(field_specifiers=(field, dataclasses.field))
class Module:
    """Base of modules. Subclasses become frozen dataclasses and pytrees.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn, random
        >>> class Scale(nn.Module):
        ...     factor: inp.ndarray
        ...     power: int = nn.field(static=True)
        ...     def __init__(self, size, power=1):
        ...         self.factor = inp.ones(size)
        ...         self.power = power
        ...     def __call__(self, x):
        ...         return self.factor * x**self.power
        >>> Scale(3, power=2)
        Scale(factor=f32[3], power=2)
        >>> sorted(Scale(3).state_dict())
        ['factor']
    """

    def __init_subclass__(cls, **options: Any) -> None:  # Any: as of object
        super().__init_subclass__(**options)
        has_constructor = _is_written(cls)
        dataclasses.dataclass(frozen=True, init=not has_constructor, repr=False, eq=False)(cls)
        # A dataclass that is frozen cannot be built by assignments; ours is frozen when it is built.
        del cls.__setattr__, cls.__delattr__
        cls.__init__ = _sealing(cls, cls.__init__, has_constructor)  # type: ignore[method-assign]  # wrapped
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # it is a dataclass by now
        static = [f.name for f in fields if f.metadata.get("static", False)]
        tree.register_dataclass(cls, [f.name for f in fields if f.name not in static], static)

    def __setattr__(self, name: str, value: object) -> None:
        if not self.__dict__.get(_OPEN, False):
            raise FrozenModuleError(
                f"modules cannot be changed: {type(self).__name__}.{name}",
                fix=f"make another one with module.replace({name}=...)",
            )
        if name not in type(self).__dataclass_fields__:  # type: ignore[attr-defined]  # a dataclass
            raise errors.TypeMismatchError(
                f"{type(self).__name__} has no field {name!r}",
                fix=f"declare it in the class: `{name}: Array`, or `{name}: int = nn.field(static=True)`",
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenModuleError(f"modules cannot be changed: {type(self).__name__}.{name}")

    def replace(self, **fields: Any) -> Self:  # Any: values of fields
        """This module with other values of some fields.

        Raises:
            TypeMismatchError: there is no such field, or a value does not belong into a module.
        """
        unknown = [name for name in fields if name not in self.__dict__]
        if unknown:
            raise errors.TypeMismatchError(
                f"{type(self).__name__} has no field {unknown[0]!r}",
                expected=", ".join(self.__dict__) or "no fields at all",
            )
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__ | fields)
        _check(made)
        return made

    def children(self) -> list[Module]:
        """The modules directly inside."""
        return [child for _, child in self.named_children()]

    def named_children(self) -> list[tuple[str, Module]]:
        """The modules directly inside, with their keys."""
        return [(key, child) for key, child in state_dict_.entries(self, "") if isinstance(child, Module)]

    def modules(self) -> list[Module]:
        """This module and all inside it."""
        return [module for _, module in self.named_modules()]

    def named_modules(self, prefix: str = "") -> list[tuple[str, Module]]:
        """This module and all inside it, with their keys."""
        found: list[tuple[str, Module]] = [(prefix, self)]
        for name, child in self.named_children():
            found += child.named_modules(f"{prefix}.{name}" if prefix else name)
        return found

    def parameters(self) -> list[Any]:  # Any: arrays
        """The arrays inside, in the order of `state_dict`."""
        return [leaf for _, leaf in self.named_parameters()]

    def named_parameters(self, prefix: str = "") -> list[tuple[str, Any]]:  # Any: arrays
        """The arrays inside with their keys, in the order of `state_dict`."""
        return list(state_dict_.leaves(self, f"{prefix}." if prefix else ""))

    def state_dict(self, state: State | None = None, *, prefix: str = "") -> dict[str, Any]:  # Any: arrays
        """The arrays inside by PyTorch's keys.

        Args:
            state: running statistics of the module, from `initial_state` or a training step; their keys
                are PyTorch's names of buffers.
            prefix: put in front of every key.
        """
        found = dict(state_dict_.leaves(self, prefix))
        if state is not None:
            found.update((prefix + key, leaf) for key, leaf in state_dict_.flat_state(state, ""))
        return found

    def load_state_dict(
        self, state_dict: Mapping[str, Any], state: State | None = None, *, strict: bool = True
    ) -> Any:  # Any: arrays of any library; a module, or one with a state
        """This module with the arrays of a state dictionary, converted to the dtypes they have here.

        Args:
            state_dict: arrays by key: ours, NumPy's, or PyTorch's and others' with DLPack.
            state: running statistics to be replaced as well.
            strict: refuse keys that are missing or too many; otherwise those arrays stay as they are.

        Returns:
            The module; with `state`, the pair of the module and the new state.

        Raises:
            ValueMismatchError: keys or shapes do not agree. The message lists all of them.
        """
        wanted = dict(state_dict_.leaves(self, ""))
        statistics = dict(state_dict_.flat_state(initial_state(self) if state is None else state, ""))
        state_dict_.check_keys(type(self).__name__, wanted, statistics, state is not None, state_dict, strict)
        made = state_dict_.rebuilt(
            self,
            "",
            lambda key, leaf: state_dict_.loaded(state_dict[key], leaf) if key in state_dict else leaf,
        )
        if state is None:
            return made
        return made, state_dict_.rebuilt_state(
            state,
            "",
            lambda key, leaf: state_dict_.loaded(state_dict[key], leaf) if key in state_dict else leaf,
        )

    def to(
        self, device: Any = None, dtype: DTypeLike | None = None
    ) -> Self:  # Any: device, sharding or dtype
        """This module on another device, or with its floating arrays in another dtype.

        Args:
            device: a device or a sharding, as of `device_put`, or the name of a device, such as `"cpu:0"`; a
                dtype here counts as `dtype`, as in PyTorch.
            dtype: a floating dtype. Integers keep theirs, and so do the parts of quantized arrays, which
                give numbers of that dtype from then on.

        Raises:
            DeviceError: there is no device of that name here.
            TypeMismatchError: `device` is neither a place nor a dtype, or `dtype` is none.

        Example:
            >>> from infini import nn, random
            >>> layer = nn.Linear(2, 2, key=random.key(0)).to("cpu:0")
            >>> layer.to("bfloat16").weight.dtype
            dtype(bfloat16)
        """
        device, target = _destination(device, dtype)

        def move(leaf: Any) -> Any:  # Any: an array
            if isinstance(leaf, QuantizedArray):
                moved = leaf if target is None else dataclasses.replace(leaf, dtype=target)
                return moved if device is None else placement.device_put(moved, device)
            moved = leaf if target is None or not dtypes.is_inexact(leaf.dtype) else leaf.astype(target)
            return moved if device is None else placement.device_put(moved, device)

        return tree.map(move, self, is_leaf=lambda part: isinstance(part, QuantizedArray))

    def __repr__(self) -> str:
        parts, lines = [], []
        for item in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if item.name not in self.__dict__:
                continue  # the constructor has not come that far
            value = getattr(self, item.name)
            inner = [] if item.metadata.get("static") else [
                (key, part) for key, part in state_dict_.entries_of(item, value) if isinstance(part, Module)
            ]  # fmt: skip
            lines += [f"({key}): {child!r}" for key, child in inner]
            if item.repr and not inner and not (isinstance(value, (tuple, list, dict)) and not value):
                parts.append(f"{item.name}={_short(value)}")
        if not lines:
            return f"{type(self).__name__}({', '.join(parts)})"
        body = "".join(f"  {line}\n" for text in (*parts, *lines) for line in text.split("\n"))
        return f"{type(self).__name__}(\n{body})"


def initial_state(module: Module) -> State:
    """Running statistics at the start of training of every module inside, by the names of modules; empty
    when there are none.

    Example:
        >>> from infini import nn
        >>> sorted(nn.initial_state(nn.BatchNorm1d(3)))
        ['num_batches_tracked', 'running_mean', 'running_var']
    """
    own = getattr(module, "initial_state", None)
    if own is not None:
        return own()
    found: State = {}
    for key, child in module.named_children():
        inner = initial_state(child)
        if inner:
            _put(found, key.split("."), inner)
    return found


def _put(state: State, path: list[str], inner: State) -> None:
    for name in path[:-1]:
        state = state.setdefault(name, {})
    state[path[-1]] = inner


# --- building ---------------------------------------------------------------------------------


def _is_written(cls: type) -> bool:
    """Whether the class or one above it has a constructor of its own."""
    for base in cls.__mro__:
        if base is Module:
            return False
        if "__init__" in base.__dict__:
            return getattr(base.__dict__["__init__"], "is_written", True)
    return False


def _sealing(cls: type, constructor: Callable[..., None], is_written: bool) -> Callable[..., None]:
    """A constructor after which the module is frozen and checked; those of classes above run within it."""

    @functools.wraps(constructor)
    def init(self: Module, *args: Any, **kwargs: Any) -> None:  # Any: the constructor's
        if type(self) is not cls:
            constructor(self, *args, **kwargs)
            return
        self.__dict__[_OPEN] = True
        try:
            constructor(self, *args, **kwargs)
        finally:
            del self.__dict__[_OPEN]
        _check(self)

    init.is_written = is_written  # type: ignore[attr-defined]  # read by subclasses
    return init


def _check(module: Module) -> None:
    name = type(module).__name__
    for item in dataclasses.fields(module):  # type: ignore[arg-type]  # subclasses are dataclasses
        if item.name not in module.__dict__:
            if item.default is not dataclasses.MISSING:
                module.__dict__[item.name] = item.default
            elif item.default_factory is not dataclasses.MISSING:
                module.__dict__[item.name] = item.default_factory()
            else:
                raise errors.TypeMismatchError(
                    f"the constructor of {name} did not set the field {item.name!r}",
                    fix=f"assign self.{item.name}, or give it a default",
                )
        value = module.__dict__[item.name]
        if item.metadata.get("static"):
            _check_static(f"{name}.{item.name}", value)
        else:
            for leaf in tree.leaves(value):
                _check_leaf(f"{name}.{item.name}", leaf)


def _check_static(name: str, value: object) -> None:
    try:
        hash(value)
    except TypeError:
        raise errors.TypeMismatchError(
            f"the static field {name} has to be hashable",
            got=f"{type(value).__name__}",
            fix="use a tuple instead of a list; leave static=True out for arrays and modules",
        ) from None


_NUMBERS = (bool, int, float, complex)


def _check_leaf(name: str, leaf: object) -> None:
    if not (
        isinstance(leaf, (Value, np.ndarray, np.generic, staging.ShapeDtypeStruct)) or type(leaf) in _NUMBERS
    ):
        raise errors.TypeMismatchError(
            f"the field {name} holds something that is neither an array nor a module",
            got=f"{leaf!r} of type {type(leaf).__name__}",
            fix="declare the field with nn.field(static=True), or wrap a function in nn.Lambda",
        )


def _destination(
    device: Any, dtype: DTypeLike | None
) -> tuple[Any, np.dtype | None]:  # Any: a device or a sharding
    """The place and the dtype that `to` is asked for; PyTorch gives either as the first argument."""
    if isinstance(device, str) and (dtype is not None or _may_name_device(device)):
        device = backend.device_by_name(device)
    if isinstance(device, (str, np.dtype, type)) and dtype is None:
        try:
            return None, dtypes.canonical(device)
        except errors.TypeMismatchError as error:
            raise _no_destination(device) from error
    if device is not None and not placement.is_place(device):
        raise _no_destination(device)
    return device, None if dtype is None else dtypes.canonical(dtype)


def _may_name_device(name: str) -> bool:
    platform, colon, _ = name.partition(":")
    return bool(colon) or platform in backend.names()


def _no_destination(given: object) -> errors.TypeMismatchError:
    return errors.TypeMismatchError(
        "Module.to: this is neither a device nor a dtype",
        got=f"{given!r} of type {type(given).__name__}",
        expected=f"a name such as 'cpu:0' (of {', '.join(backend.names())}), a Device, a sharding or a dtype",
        fix="see infini.devices(); a dtype is given as dtype=",
    )


def _short(value: Any) -> str:  # Any: a value of a field
    if isinstance(value, (Value, staging.ShapeDtypeStruct, np.ndarray)):
        name = dtypes.SHORT_NAMES.get(value.dtype, str(value.dtype))
        return f"{name}[{','.join(map(str, value.shape))}]"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        parts = ", ".join(map(_short, value))
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_short(part)}" for key, part in value.items()) + "}"
    return getattr(value, "__name__", None) or repr(value)
