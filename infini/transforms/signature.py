"""What identifies a specialisation of a jitted function, and what tells two of them apart in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from infini.core import dtypes, errors, ir, sharding as sharding_, tree
from infini.core.formats import Format
from infini.core.ir import ArrayType
from infini.core.layout import Layout
from infini.core.value import Value
from infini.transforms import flat


@dataclass(frozen=True, slots=True)
class ShapeDtypeStruct:
    """Shape and dtype of an array that does not exist, as `jax.ShapeDtypeStruct`.

    Args:
        shape: its shape.
        dtype: its dtype.
        sharding: where it would live, or None; a `Format` says how it would lie in memory, too.
        weak_type: whether the dtype yields to others, as a Python number's does.
    """

    shape: ir.Shape
    dtype: np.dtype
    sharding: Any = None
    weak_type: bool = False
    layout: Layout | None = None

    def __init__(
        self, shape: Sequence[int], dtype: Any, *, sharding: Any = None, weak_type: bool = False
    ) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        is_nothing = isinstance(dtype, np.dtype) and dtype == dtypes.float0
        object.__setattr__(self, "dtype", dtype if is_nothing else dtypes.canonical(dtype))
        layout = sharding.layout if isinstance(sharding, Format) else None
        object.__setattr__(self, "layout", layout if isinstance(layout, Layout) else None)
        where = sharding.sharding if isinstance(sharding, Format) else sharding
        object.__setattr__(self, "sharding", where)
        object.__setattr__(self, "weak_type", weak_type)

    def __repr__(self) -> str:
        said = [f"shape={self.shape}", f"dtype={self.dtype.name}"]
        said += [f"sharding={self.sharding}"] if self.sharding is not None else []
        said += ["weak_type=True"] if self.weak_type else []
        said += [f"layout={self.layout}"] if self.layout is not None else []
        return f"ShapeDtypeStruct({', '.join(said)})"

    @property
    def format(self) -> Format:
        """How it would lie in memory, and where."""
        return Format(self.layout, self.sharding)

    @property
    def type(self) -> ArrayType:
        """The array type."""
        return ArrayType(self.shape, self.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.type.size

    def __len__(self) -> int:
        if not self.shape:
            raise errors.TypeMismatchError("a scalar has no length", got=str(self.type))
        return self.shape[0]

    def update(self, **changes: Any) -> ShapeDtypeStruct:
        """The same description with some fields changed."""
        fields = {
            "shape": self.shape,
            "dtype": self.dtype,
            "sharding": self.format if self.layout else self.sharding,
            "weak_type": self.weak_type,
        }  # fmt: skip
        unknown = sorted(set(changes) - set(fields))
        if unknown:
            raise errors.TypeMismatchError(f"ShapeDtypeStruct has no field {unknown[0]!r}")
        return ShapeDtypeStruct(**{**fields, **changes})


def type_and_weak(x: Any) -> tuple[ArrayType, bool]:  # Any: an array, a number, or a description of one
    """Type and weak flag of an argument or of its description.

    Raises:
        TypeMismatchError: it is neither.
    """
    if isinstance(x, ShapeDtypeStruct):
        return x.type, x.weak_type
    is_described = hasattr(x, "shape") and hasattr(x, "dtype")
    if is_described and not isinstance(x, (np.ndarray, np.generic, Value)):
        return ArrayType(tuple(int(n) for n in x.shape), dtypes.canonical(x.dtype)), False
    (value,) = flat.values([x], "arguments")
    return value.type, value.weak


# --- static and donated arguments -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marks:
    """Some arguments of a function, by position (negative from the end) and by name."""

    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def positions(self, count: int) -> set[int]:
        """The marked ones among `count` positional arguments."""
        return {n % count for n in self.numbers if -count <= n < count}

    @classmethod
    def of(
        cls, fun: Callable[..., Any], numbers: int | Sequence[int] | None, names: str | Iterable[str] | None
    ) -> Marks:
        """Positions and names of the same arguments, each completed from the other by the signature of the
        function.

        Raises:
            ValueMismatchError: the function has no such argument.
            TypeMismatchError: a position is no integer, or a name no string.
        """
        given = () if numbers is None else (numbers,) if isinstance(numbers, int) else tuple(numbers)
        named = () if names is None else (names,) if isinstance(names, str) else tuple(names)
        for kind, items, what in ((int, given, "positions"), (str, named, "names")):
            for item in items:
                if not isinstance(item, kind):
                    raise errors.TypeMismatchError(
                        f"{what} of arguments must be {kind.__name__}s", got=repr(item)
                    )
        if not given and not named:
            return cls()
        try:
            parameters = list(inspect.signature(fun).parameters.values())
        except (TypeError, ValueError):
            return cls(given, named)
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
        keywords = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        for name in named:
            if name not in keywords and not takes_any:
                raise errors.ValueMismatchError(
                    f"the function has no argument {name!r}", expected=", ".join(sorted(keywords))
                )
        for n in given:
            if not -len(positional) <= n < len(positional) and not takes_any:
                raise errors.ValueMismatchError(
                    f"the function has no positional argument number {n}", expected=str(positional)
                )
        from_numbers = [positional[n] for n in given if -len(positional) <= n < len(positional)]
        from_names = [positional.index(name) for name in named if name in positional]
        return cls(tuple(dict.fromkeys((*given, *from_names))), tuple(dict.fromkeys((*named, *from_numbers))))


# --- keys -----------------------------------------------------------------------------------------


class Key(NamedTuple):
    """What identifies a specialisation. A named tuple, as one is made and hashed in every call."""

    structure: tree.PyTreeDef
    types: tuple[tuple[ArrayType, bool], ...]
    static: tuple[tuple[int | str, Any], ...]
    static_kinds: tuple[type, ...]
    holes: tuple[tuple[int, ir.Shape], ...]
    axes: tuple[Hashable, ...]  # names and sizes, then along which of them arguments vary
    mesh: sharding_.Entered
    knobs: tuple[Hashable, ...]

    @classmethod
    def of(cls, *fields: Any) -> Key:  # Any: as the fields, in order
        """The key with these fields; quicker than the constructor."""
        return tuple.__new__(cls, fields)


_LABELS: Final[Mapping[str, str]] = {
    "structure": "structure of the arguments",
    "types": "types",
    "static": "static arguments",
    "static_kinds": "types of static arguments",
    "holes": "float0 arguments",
    "axes": "named axes",
    "mesh": "mesh",
    "knobs": "knobs",
}


def explain_miss(fun: Callable[..., Any], name: str, key: Key, known: Sequence[Key]) -> str:
    """Why a call was traced again: what differs from the most similar signature seen before."""
    closest = max(known, key=lambda other: sum(a == b for a, b in zip(key, other, strict=True)))
    found = []
    for field, a, b in zip(Key._fields, key, closest, strict=True):
        if a == b:
            continue
        if field == "types":
            if key.structure == closest.structure:
                found.append(_different_types(fun, key, closest))
        elif field == "static":
            found += _different_static(fun, dict(a), dict(b))
        elif field == "static_kinds" and key.static != closest.static:
            continue
        else:
            found.append(f"{_LABELS[field]}: {a} instead of {b}")
    return f"{name} was traced again because of other {'; '.join(found)}"


def _different_static(
    fun: Callable[..., Any], given: Mapping[int | str, Any], before: Mapping[int | str, Any]
) -> list[str]:
    names = [*given, *(name for name in before if name not in given)]

    def shown(values: Mapping[int | str, Any], name: int | str) -> str:
        return repr(values[name]) if name in values else "its default"

    return [
        f"static argument {_named(fun, name)}: {shown(given, name)} instead of {shown(before, name)}"
        for name in names
        if name not in given or name not in before or given[name] != before[name]
    ]


def parameter_names(
    fun: Callable[..., Any], structure: tree.PyTreeDef, holes: Sequence[int], static: Sequence[int]
) -> list[str]:
    """Names of the leaves of the arguments, for people: `weight` of `layer.weight`, and `x` of `x`.

    Args:
        fun: function.
        structure: of its arguments, static ones left out.
        holes: leaves without contents.
        static: positions of static arguments.
    """
    dummy = tree.unflatten(structure, list(range(structure.num_leaves)))
    paths = [path for path, _ in tree.flatten_with_path(dummy)[0]]
    dynamic = [n for n in range(len(paths) + len(static) + 1) if n not in static]
    found = []
    for number, path in enumerate(paths):
        if number not in holes:
            argument = _named(fun, dynamic[path[1].idx]) if isinstance(path[1], tree.SequenceKey) else ""
            words = [
                argument,
                *(tree.keystr((key,), simple=True) for key in path[1 if not argument else 2 :]),
            ]
            found.append("_".join(words[-2:]).strip("_"))
    return found


def _different_types(fun: Callable[..., Any], key: Key, other: Key) -> str:
    dummy = tree.unflatten(key.structure, list(range(key.structure.num_leaves)))
    paths = [path for path, _ in tree.flatten_with_path(dummy)[0]]
    holes = dict(key.holes)
    paths = [path for i, path in enumerate(paths) if i not in holes]
    dynamic = [n for n in range(len(paths) + len(key.static)) if n not in dict(key.static)]
    parts = []
    for path, (a, a_weak), (b, b_weak) in zip(paths, key.types, other.types, strict=True):
        if (a, a_weak) != (b, b_weak):
            label = _argument(fun, path, dynamic)
            parts.append(f"{label} is {_typed(a, a_weak)} instead of {_typed(b, b_weak)}")
    return "types: " + ", ".join(parts)


def _argument(fun: Callable[..., Any], path: tuple[Any, ...], dynamic: Sequence[int]) -> str:
    """A leaf of `(args, kwargs)` by the name of its argument, as in `params['w']`."""
    keys = [getattr(key, "idx", getattr(key, "key", key)) for key in path]
    is_named = keys[0] == 1
    base = str(keys[1]) if is_named else _named(fun, dynamic[keys[1]])
    return base + tree.keystr(path[2:])


def _named(fun: Callable[..., Any], position: int | str) -> str:
    if isinstance(position, str):
        return position
    try:
        return list(inspect.signature(fun).parameters)[position]
    except (TypeError, ValueError, IndexError):
        return f"number {position}"


def _typed(type_: ArrayType, weak: bool) -> str:
    return f"weak {type_}" if weak else str(type_)
