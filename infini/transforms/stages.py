"""The stages of a jitted function: traced, lowered, compiled; with the names of `jax.stages`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import (
    array,
    backend,
    errors,
    execute,
    ir,
    layout as layout_,
    mesh as mesh_,
    sharding,
    trace,
    tree,
)
from infini.core.formats import Format
from infini.core.layout import Layout
from infini.core.value import Value
from infini.lax import calls
from infini.transforms import flat, layouts as layouts_
from infini.transforms.signature import ShapeDtypeStruct


@dataclass(frozen=True, slots=True)
class Specialisation:
    """A function traced at one signature, ready to run.

    Args:
        name: name of the function.
        staged: its program, and the values it closes over.
        in_tree: structure of the dynamic arguments, as (args, kwargs).
        in_holes: float0 leaves among the arguments.
        out_tree: structure of the results.
        out_holes: float0 leaves among the results.
        runner: the program with its executables.
        is_inline: whether a call inside another trace is replaced by the body.
    """

    name: str
    staged: trace.Staged
    in_tree: tree.PyTreeDef
    in_holes: flat.Holes
    out_tree: tree.PyTreeDef
    out_holes: flat.Holes
    runner: execute.Runner
    is_inline: bool = False

    def __call__(self, values: Sequence[Value]) -> Any:  # Any: a pytree
        """Results of a call, outside or inside a transformation."""
        staged = self.staged
        if trace.is_eager():
            arrays = [trace.to_array(v) for v in (*staged.captures, *values)]
            results: Sequence[Value] = run_donating(self.runner, arrays, self.name)
        elif self.is_inline:
            results = trace.evaluate(staged.program, [*staged.captures, *values])
        else:
            results = trace.bind(calls.call_p, *staged.captures, *values, body=staged.program, name=self.name)
        marked = [r.with_weak(flag) if flag else r for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(self.out_tree, self.out_holes.fill(marked))

    def repeatable(self, values: Sequence[Value]) -> backend.Call | None:
        """A call with these operands that has been made, for `backend.CallPath`, the arguments left out; None
        when it is one that only Python can make.
        """
        arrays = [v for v in (*self.staged.captures, *values) if isinstance(v, array.Array)]
        if self.in_holes.shapes or self.out_holes.shapes or self.runner.options.mesh is not None:
            return None
        placement, committed = execute.common_sharding(arrays)
        if not isinstance(placement, sharding.SingleDeviceSharding):
            return None
        executable = self.runner.last_executable(placement.device, [a.layout for a in arrays])
        if executable is None or any(a.sharding is not placement for a in arrays):
            return None
        finish = None if self.out_tree.is_leaf() else self.out_tree.unflatten
        return backend.Call(
            args=(),
            kwargs={},
            static=frozenset(),
            static_names=frozenset(),
            captures=self.staged.captures,
            executable=executable,
            placement=placement,
            committed=committed,
            out_types=self.staged.program.out_types,
            out_weak=tuple(self.staged.weak),
            finish=finish,
        )

    @property
    def out_info(self) -> Any:  # Any: a pytree
        """Shapes and dtypes of the results."""
        types = self.staged.program.out_types
        leaves = [
            ShapeDtypeStruct(t.shape, t.dtype, weak_type=w)
            for t, w in zip(types, self.staged.weak, strict=True)
        ]
        return tree.unflatten(self.out_tree, self.out_holes.fill(leaves))


def run_donating(runner: execute.Runner, arrays: Sequence[array.Array], name: str) -> tuple[array.Array, ...]:
    """Run a program and delete the arguments it was given for good.

    Raises:
        DonationError: an array is donated and passed a second time.
    """
    options = runner.options
    if not options.donated:
        return runner(arrays)
    counts = Counter(map(id, arrays))
    for number in options.donated:
        if counts[id(arrays[number])] > 1:
            raise errors.DonationError(
                f"{name} was given the same array twice and one of them is donated",
                got=str(arrays[number].type),
                fix="pass a copy, or leave the argument out of donate_argnums",
            )
    results = runner(arrays)
    for number in options.donated:
        arrays[number].delete()
    return results


@dataclass(frozen=True, slots=True)
class ArgInfo:
    """One argument leaf: its type, and whether its buffer is donated; as `jax.stages.ArgInfo`."""

    shape: ir.Shape
    dtype: Any  # Any: a dtype
    donated: bool


class _Stage:
    """What every stage knows of arguments and results."""

    __slots__ = ()
    traced: Specialisation

    @property
    def in_tree(self) -> tree.PyTreeDef:
        """Structure of the dynamic arguments, as (args, kwargs)."""
        return self.traced.in_tree

    @property
    def out_tree(self) -> tree.PyTreeDef:
        """Structure of the results."""
        return self.traced.out_tree

    @property
    def in_avals(self) -> Any:  # Any: a pytree
        """Types of the dynamic arguments, as (args, kwargs)."""
        types = self.traced.staged.program.in_types[len(self.traced.staged.captures) :]
        return tree.unflatten(self.in_tree, self.traced.in_holes.fill(types))

    @property
    def args_info(self) -> Any:  # Any: a pytree
        """Types of the dynamic arguments with their donation, as (args, kwargs)."""
        count, donated = len(self.traced.staged.captures), self.traced.runner.options.donated
        types = self.traced.staged.program.in_types[count:]
        leaves = [ArgInfo(t.shape, t.dtype, count + i in donated) for i, t in enumerate(types)]
        return tree.unflatten(self.in_tree, self.traced.in_holes.fill(leaves))

    @property
    def donate_argnums(self) -> tuple[int, ...]:
        """Numbers of the donated leaves."""
        count = len(self.traced.staged.captures)
        return tuple(n - count for n in self.traced.runner.options.donated)

    @property
    def out_info(self) -> Any:  # Any: a pytree
        """Shapes and dtypes of the results."""
        return self.traced.out_info

    @property
    def program(self) -> ir.Program:
        """The program; captured arrays are its first parameters."""
        return self.traced.staged.program


@dataclass(frozen=True, slots=True)
class Layouts:
    """Layouts of a function that is being compiled.

    Args:
        inputs: one per dynamic leaf; nothing when no argument has or wants one.
        outputs: tree of formats for the results, or None.
    """

    inputs: tuple[layouts_.Wanted, ...] = ()
    outputs: Any = None  # Any: a pytree


@dataclass(frozen=True, slots=True)
class Traced(_Stage):
    """A function traced at the types of some arguments."""

    traced: Specialisation
    layouts: Layouts = Layouts()

    @property
    def jaxpr(self) -> ir.Program:
        """The program, under JAX's name."""
        return self.program

    @property
    def fun_name(self) -> str:
        """Name of the function."""
        return self.traced.name

    @property
    def out_avals(self) -> tuple[ir.ArrayType, ...]:
        """Types of the results."""
        return self.program.out_types

    def lower(self, *, lowering_platforms: Any = None) -> Lowered:
        """The next stage. The program is the same for every platform."""
        return Lowered(self.traced, self.layouts)


@dataclass(frozen=True, slots=True)
class Lowered(_Stage):
    """A traced function before compilation."""

    traced: Specialisation
    layouts: Layouts = Layouts()

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.traced.name

    def as_text(self, dialect: str | None = None, *, debug_info: bool = False) -> str:
        """The program as text.

        Args:
            dialect: accepted for JAX's sake; there is one program type.
            debug_info: accepted for JAX's sake; lines are part of the text.
        """
        return repr(self.program)

    def compiler_ir(self, dialect: str | None = None) -> ir.Program:
        """The program."""
        return self.program

    def cost_analysis(self) -> dict[str, float]:
        """As that of the compiled function."""
        return self.compile().cost_analysis()

    def compile(self, compiler_options: Mapping[str, Any] | None = None) -> Compiled:
        """Machine code for the default device.

        Args:
            compiler_options: must be empty; knobs are set with `infini.config`.
        """
        check_compiler_options(compiler_options)
        device, options = backend.default_device(), self.traced.runner.options
        captures = [x.layout if isinstance(x, array.Array) else None for x in self.traced.staged.captures]
        wanted = [*captures, *self.layouts.inputs]
        wanted += [None] * (len(self.program.params) - len(wanted))
        if any(item is not None for item in wanted):
            chosen = execute.chosen_layouts(self.program, device, options, wanted)
            options = dataclasses.replace(options, in_layouts=chosen if any(chosen) else ())
        executable = execute.compile(self.program, device, options)
        return Compiled(self.traced, executable, options.in_layouts, self.layouts.outputs)


def check_compiler_options(options: Mapping[str, Any] | None) -> None:
    """Refuse options of another compiler.

    Raises:
        ValueMismatchError: there are some.
    """
    if options:
        raise errors.ValueMismatchError(
            "compiler_options are those of XLA and mean nothing here",
            got=", ".join(options),
            fix="use `with infini.config(...)` around the call",
        )


class MemoryAnalysis(dict[str, int]):
    """Bytes of a compiled program by name, with the attributes of JAX's analysis."""

    @property
    def argument_size_in_bytes(self) -> int:
        """Bytes of the arguments."""
        return self["argument bytes"]

    @property
    def output_size_in_bytes(self) -> int:
        """Bytes of the results."""
        return self["output bytes"]

    @property
    def alias_size_in_bytes(self) -> int:
        """Bytes of results that lie in donated arguments."""
        return self["alias bytes"]

    @property
    def temp_size_in_bytes(self) -> int:
        """Bytes of the arena for values in between."""
        return self["temp bytes"]

    @property
    def peak_memory_in_bytes(self) -> int:
        """Bytes of everything at once."""
        return self["argument bytes"] + self["output bytes"] - self["alias bytes"] + self["temp bytes"]


@dataclass(frozen=True, slots=True)
class Compiled(_Stage):
    """A compiled function: call it, or look at its text, cost and memory."""

    traced: Specialisation
    executable: backend.Executable
    in_layouts: tuple[Layout | None, ...] = ()
    out_formats: Any = None  # Any: a pytree

    @property
    def input_formats(self) -> Any:  # Any: a pytree
        """How the program wants its dynamic arguments in memory, as (args, kwargs): see `device_put`."""
        count = len(self.traced.staged.captures)
        types = self.program.in_types
        layouts = self.in_layouts or (None,) * len(types)
        leaves = self._formats(types[count:], layouts[count:], self.executable.in_specs[count:])
        return tree.unflatten(self.in_tree, self.traced.in_holes.fill(leaves))

    @property
    def output_formats(self) -> Any:  # Any: a pytree
        """How the results lie in memory."""
        types = self.program.out_types
        found = self._formats(types, [None] * len(types), self.executable.out_specs)
        result = tree.unflatten(self.out_tree, self.traced.out_holes.fill(found))
        if self.out_formats is None:
            return result
        wanted = layouts_.of_leaves(self.out_formats, self.out_info, "out_shardings")
        asked = [
            Format(normal, f.sharding) if isinstance(w, Layout) and (normal := layout_.normal(w)) else f
            for f, w in zip(found, wanted, strict=True)
        ]
        return tree.unflatten(self.out_tree, self.traced.out_holes.fill(asked))

    def _formats(
        self, types: Sequence[ir.ArrayType], layouts: Sequence[Layout | None], specs: Sequence[Any]
    ) -> list[Format]:  # Any: specs
        shown = [layout_.shown(item, t.ndim) for item, t in zip(layouts, types, strict=True)]
        if self.traced.runner.options.mesh is None:
            place = sharding.on_one(backend.default_device())
            return [Format(item, place) for item in shown]
        mesh = execute.mesh_of([], self.traced.runner.options, self.traced.runner.mesh)
        places = [sharding.NamedSharding(mesh, mesh_.as_p(spec)) for spec in specs]
        return [Format(item, where) for item, where in zip(shown, places, strict=True)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # Any: pytrees
        """Run on arguments of the types it was compiled for, static ones left out.

        Raises:
            TypeMismatchError: structure or types differ, or the call is inside a transformation.
            ValueMismatchError: an array is committed to another layout than `input_formats` says.
        """
        if not trace.is_eager():
            raise errors.TypeMismatchError(
                f"the compiled {self.traced.name} cannot be transformed", fix="transform the jitted function"
            )
        leaves, in_tree = tree.flatten((args, kwargs))
        if in_tree != self.traced.in_tree:
            raise errors.TypeMismatchError(
                f"the compiled {self.traced.name} takes arguments of another structure",
                got=str(in_tree),
                expected=str(self.traced.in_tree),
                fix="pass the same pytrees as to lower(), static arguments left out",
            )
        _, rest = flat.Holes.of(leaves)
        values = flat.values(rest, f"arguments of {self.traced.name}")
        found = tuple(v.type for v in values)
        expected = self.program.in_types[len(self.traced.staged.captures) :]
        if found != expected:
            raise errors.TypeMismatchError(
                f"the compiled {self.traced.name} takes other types", got=str(found), expected=str(expected)
            )
        count = len(self.traced.staged.captures)
        wanted = self.in_layouts[count:] or (None,) * len(values)
        found_results = self.traced(layouts_.compiled(values, wanted, self.traced.name))
        if self.out_formats is None:
            return found_results
        return layouts_.results(found_results, self.out_formats, "out_shardings")

    call = __call__

    def as_text(self, stage: str = "kernels") -> str:
        """Text of a stage of the compiler: `program`, `kernels`, or one of the backend's own."""
        return self.executable.text(stage)

    def cost_analysis(self) -> dict[str, float]:
        """Counts such as FLOPs, bytes and kernels."""
        return self.executable.cost_analysis()

    def memory_analysis(self) -> MemoryAnalysis:
        """Bytes of arguments, results, aliases and temporaries."""
        return MemoryAnalysis(self.executable.memory_analysis())

    def runtime_executable(self) -> backend.Executable:
        """The executable of the backend."""
        return self.executable
