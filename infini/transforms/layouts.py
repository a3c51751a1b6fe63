"""Layouts of arguments and results: moving arrays into them, and what a jitted function was asked for.

Inside a program a layout means nothing, as the compiler lays out what lies in between; these functions work
on arrays, outside of every transformation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from infini.core import (
    array as array_,
    errors,
    events,
    execute,
    layout as layout_,
    physical,
    sharding,
    trace,
    tree,
)
from infini.core.array import Array
from infini.core.formats import Format
from infini.core.ir import ArrayType
from infini.core.layout import AutoLayout, Layout
from infini.core.value import Value
from infini.transforms import flat

Wanted: TypeAlias = Layout | AutoLayout | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a function was jitted with.

    Args:
        inputs: tree of formats, a prefix of the dynamic positional arguments; None when there are none.
        outputs: the same for the result.
    """

    inputs: Any = None  # Any: a pytree
    outputs: Any = None  # Any: a pytree

    def __bool__(self) -> bool:
        return self.inputs is not None or self.outputs is not None


def split(shardings: Any, what: str) -> tuple[Any, Any]:  # Any: pytrees
    """Placements without layouts, and the tree of formats if there are layouts in it.

    Raises:
        ValueMismatchError: a layout stands where a `Format` belongs.
    """
    leaves, treedef = tree.flatten(shardings, is_leaf=lambda x: x is None)
    for leaf in leaves:
        if isinstance(leaf, (Layout, AutoLayout)):
            raise errors.ValueMismatchError(
                f"{what} takes no bare layout", got=str(leaf), fix=f"wrap it: Format({leaf}, sharding)"
            )
    if not any(isinstance(leaf, Format) for leaf in leaves):
        return shardings, None
    plain = [leaf.sharding if isinstance(leaf, Format) else leaf for leaf in leaves]
    formats = [leaf if isinstance(leaf, Format) else Format() for leaf in leaves]
    where = None if all(leaf is None for leaf in plain) else tree.unflatten(treedef, plain)
    if all(item.layout is None for item in formats):
        return where, None
    return where, tree.unflatten(treedef, formats)


def of_leaves(formats: Any, x: Any, what: str) -> list[Wanted]:  # Any: pytrees
    """The layout asked for each leaf of `x` that holds something.

    Raises:
        ValueMismatchError: the formats are no prefix of `x`, or one does not fit the rank of its leaf.
    """
    leaves = tree.leaves(x)
    if formats is None:
        found: list[Wanted] = [None] * len(leaves)
    else:
        prefix = list(formats) if isinstance(x, list) and isinstance(formats, tuple) else formats
        found = [item.layout for item in tree.leaves(tree.broadcast(prefix, x))]
    for leaf, layout in zip(leaves, found, strict=True):
        if isinstance(layout, Layout):
            check_fits(layout, tuple(leaf.shape) if hasattr(leaf, "shape") else (), what)
    return [item for leaf, item in zip(leaves, found, strict=True) if not flat.is_float0(leaf)]


def check_fits(layout: Layout, shape: Sequence[int], what: str) -> None:
    """Refuse a layout of another rank.

    Raises:
        ValueMismatchError: it has another number of dimensions.
    """
    if len(layout.major_to_minor) != len(shape):
        raise errors.ValueMismatchError(
            f"{what}: length of major_to_minor and the rank of the value should match",
            got=f"major_to_minor={layout.major_to_minor} and shape={tuple(shape)}",
            fix="give one entry per dimension",
        )


# --- moving ---------------------------------------------------------------------------------------


def arranged(array: Array, layout: Layout | None) -> Array:
    """An array with its memory in a layout (None: row-major), where it is; one that is so already is not
    copied. The result is as committed as the array.
    """
    wanted = layout_.normal(layout)
    if wanted == array.layout:
        return array
    array.block_until_ready()
    part = array.type.update(shape=array.sharding.shard_shape(array.shape))
    memory, buffers = array.memory, []
    for device, buffer in zip(array.addressable_devices, memory.buffers, strict=True):
        place = sharding.on_one(device)
        if memory.layout is None:
            source = Array(part, (buffer,), place, committed=True)
        else:
            source = Array.arranged(
                part, array_.Arranged(memory.layout, (buffer,)), place, committed=True
            )  # fmt: skip
        (moved,) = _packer(part, wanted)((source,))
        buffers.append(moved.block_until_ready().buffers[0])
    if wanted is None:
        return Array(
            array.type, buffers, array.sharding, weak=array.weak, committed=array.committed
        )  # fmt: skip
    found = array_.Arranged(wanted, tuple(buffers))
    return Array.arranged(array.type, found, array.sharding, weak=array.weak, committed=array.committed)


@functools.lru_cache(maxsize=256)
def _packer(type_: ArrayType, layout: Layout | None) -> execute.Runner:
    return execute.Runner(physical.packing(type_, layout_.shown(layout, type_.ndim)))


def results(x: Any, formats: Any, what: str) -> Any:  # Any: pytrees
    """Results in the layouts they were asked in."""
    leaves, treedef = tree.flatten(x)
    wanted = of_leaves(formats, x, what)
    holes, rest = flat.Holes.of(leaves)
    moved = [
        arranged(leaf, layout) if isinstance(layout, Layout) and isinstance(leaf, Array) else leaf
        for leaf, layout in zip(rest, wanted, strict=True)
    ]
    return tree.unflatten(treedef, holes.fill(moved))


# --- arguments of jitted and compiled functions ---------------------------------------------------


def called(values: Sequence[Value], wanted: Sequence[Wanted], what: str) -> list[Value]:
    """Arguments of a jitted function in the layouts it asks for; those that people have placed must be.

    Raises:
        ValueMismatchError: a committed array is in another layout.
    """
    found: list[Value] = []
    for number, (value, layout) in enumerate(zip(values, wanted, strict=True)):
        if layout is None:
            found.append(value)
            continue
        array = trace.to_array(value)
        if array.committed:
            _check_matches(array.layout, layout, f"argument {number} ({array.type}) of {what}")
        elif isinstance(layout, Layout):
            array = arranged(array, layout)
        found.append(array)
    return found


def lowered(leaves: Sequence[Any], wanted: Sequence[Wanted], what: str) -> list[Wanted]:  # Any: arguments
    """Layouts for which a function is lowered: those asked for, else those of the arguments.

    Raises:
        ValueMismatchError: an argument is committed to another layout.
    """
    found: list[Wanted] = []
    for number, (leaf, layout) in enumerate(zip(leaves, wanted, strict=True)):
        is_array = isinstance(leaf, Array)
        own = leaf.layout if is_array else getattr(leaf, "layout", None)
        is_fixed = leaf.committed if is_array else own is not None
        if layout is not None and is_fixed:
            _check_matches(own, layout, f"argument {number} of {what}")
        found.append(layout if layout is not None else layout_.normal(own))
    return found


def _check_matches(own: Layout | None, asked: Layout | AutoLayout, what: str) -> None:
    if isinstance(asked, Layout) and layout_.normal(asked) == layout_.normal(own):
        return
    is_auto = isinstance(asked, AutoLayout)
    raise errors.ValueMismatchError(
        f"layout passed to jit does not match the layout of {what}",
        got=f"an array committed to {'row-major memory' if own is None else own}",
        expected=str(asked),
        fix="pass a ShapeDtypeStruct to lower(), then device_put the array to compiled.input_formats"
        if is_auto
        else "move it with device_put(x, Format(layout, x.sharding)), or jit without the layout",
    )


def check_donated(wanted: Sequence[Wanted], donated: Sequence[int], outputs: Any) -> None:  # Any: a pytree
    """Refuse a donated argument in a layout that the compiler chooses while results do not have one.

    Raises:
        ValueMismatchError: there is one.
    """
    is_open = outputs is not None and any(item.layout is layout_.AUTO for item in tree.leaves(outputs))
    if not is_open and any(wanted[i] is layout_.AUTO for i in donated):
        raise errors.ValueMismatchError(
            "the input layout of a donated argument is AUTO while the output layout is not",
            fix="pass out_shardings=Format(Layout.AUTO), too, or give the donated argument no layout",
        )


def compiled(values: Sequence[Value], wanted: Sequence[Layout | None], name: str) -> list[Value]:
    """Arguments of a compiled function in its layouts. What is not committed is moved, at every call.

    Raises:
        ValueMismatchError: a committed array is in another layout.
    """
    found = list(values)
    for number, (value, layout) in enumerate(zip(values, wanted, strict=True)):
        if layout is None and not (isinstance(value, Array) and value.layout is not None):
            continue
        array = trace.to_array(value)
        if array.layout == layout:
            continue
        if array.committed:
            raise errors.ValueMismatchError(
                f"the compiled {name} was compiled for input layouts that disagree with its arguments",
                got=f"argument {number} ({array.type}) in {array.format.layout}",
                expected=str(layout_.shown(layout, array.ndim)),
                fix="move it once with device_put(x, format), format from compiled.input_formats",
            )
        message = f"argument {number} ({array.type}) of the compiled {name} is repacked at every call"
        events.emit("layout-moved", message)
        found[number] = arranged(array, layout)
    return found
