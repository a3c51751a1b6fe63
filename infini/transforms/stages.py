"""The stages of a jitted function: traced, lowered, compiled; with the names of `jax.stages`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import array, backend, errors, execute, ir, trace, tree
from infini.core.value import Value
from infini.lax import calls
from infini.transforms import flat
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
class Traced(_Stage):
    """A function traced at the types of some arguments."""

    traced: Specialisation

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
        return Lowered(self.traced)


@dataclass(frozen=True, slots=True)
class Lowered(_Stage):
    """A traced function before compilation."""

    traced: Specialisation

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
        device = backend.default_device()
        return Compiled(self.traced, execute.compile(self.program, device, self.traced.runner.options))


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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # Any: pytrees
        """Run on arguments of the types it was compiled for, static ones left out.

        Raises:
            TypeMismatchError: structure or types differ, or the call is inside a transformation.
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
        return self.traced(values)

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
