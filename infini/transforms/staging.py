"""`jit` and its relatives: trace once per signature, compile once per program, run.

The signature is the structure of the arguments, their types and weak flags, the static arguments, the
named axes in scope and
the knobs that change results. A jitted function inside another transformation is one `call` equation.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import array, backend, config, dtypes, errors, events, execute, ir, sharding, trace, tree
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import calls
from infini.transforms import flat, placement


@dataclass(frozen=True, slots=True)
class Traced:
    """One specialisation of a jitted function."""

    staged: trace.Staged
    in_tree: tree.PyTreeDef
    out_tree: tree.PyTreeDef
    runner: execute.Runner


@dataclass(frozen=True, slots=True)
class ShapeDtypeStruct:
    """Shape and dtype of an array that does not exist, as `jax.ShapeDtypeStruct`."""

    shape: ir.Shape
    dtype: np.dtype
    weak_type: bool = False

    def __init__(self, shape: Sequence[int], dtype: Any, weak_type: bool = False) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        object.__setattr__(self, "dtype", dtypes.canonical(dtype))
        object.__setattr__(self, "weak_type", weak_type)

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


def type_and_weak(x: Any) -> tuple[ArrayType, bool]:  # Any: an array, a number, or a description of one
    """Type and weak flag of an argument or of its description."""
    if isinstance(x, ShapeDtypeStruct):
        return x.type, x.weak_type
    v = trace.as_value(x)
    return v.type, v.weak


@dataclass(frozen=True, slots=True)
class Marks:
    """Some arguments of a function, by position (negative from the end) and by name."""

    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def positions(self, count: int) -> set[int]:
        """The marked ones among `count` positional arguments."""
        return {n % count for n in self.numbers if -count <= n < count}


class Jitted:
    """A function compiled per signature. Made by `jit`."""

    def __init__(
        self,
        fun: Callable[..., Any],
        static: Marks,
        donated: Marks,
        donation: str,
        mesh: sharding.Mesh | None = None,
    ) -> None:
        functools.update_wrapper(self, fun)
        self.fun = fun
        self._static, self._donated = static, donated
        self._donation = donation
        self._mesh = mesh
        self._name = getattr(fun, "__name__", type(fun).__name__)
        self._cache: execute.BoundedCache[Hashable, Traced] = execute.BoundedCache(1024)
        self.num_traces = 0

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values, traced = self._prepare(args, kwargs)
        staged = traced.staged
        if trace.is_eager():
            arrays = [trace.to_array(v) for v in (*staged.captures, *values)]
            results: Sequence[Value] = run_donating(traced, arrays, self._name)
        else:
            results = trace.bind(
                calls.call_p, *staged.captures, *values, body=staged.program, name=self._name
            )
        marked = [r.with_weak(flag) if flag else r for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(traced.out_tree, marked)

    def _prepare(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Value], Traced]:
        dynamic_args, dynamic_kwargs, static = self._split_static(args, kwargs)
        leaves, in_tree = tree.flatten((dynamic_args, dynamic_kwargs))
        values = flat.values(leaves, f"arguments of {self._name}")
        signature = tuple((v.type, v.weak) for v in values)
        # 2, 2.0 and True are equal and trace differently.
        kinds = tuple(type(item) for _, item in static)
        key = (
            in_tree,
            signature,
            (static, kinds),
            trace.axis_env(),
            sharding.current_mesh(),
            config.cache_key(),
        )
        try:
            traced = self._cache.get(key)
        except TypeError as error:
            raise errors.ValueMismatchError(
                f"static arguments of {self._name} must be hashable",
                got=repr(static),
                fix="pass a tuple instead of a list",
            ) from error
        if traced is None:
            if config.get("explain") and self.num_traces:
                events.emit("retrace", explain_miss(self._name, key, list(self._cache._items)), level="info")
            traced = self._trace(args, kwargs, in_tree, signature, static)
            if not traced.staged.has_captured_tracers:
                self._cache.put(key, traced)
        return values, traced

    def _split_static(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
        if not self._static.numbers and not self._static.names:
            return tuple(args), kwargs, ()
        numbers = self._static.positions(len(args))
        static = [(n, args[n]) for n in sorted(numbers)]
        named = [(name, kwargs[name]) for name in sorted(kwargs) if name in self._static.names]
        dynamic_args = tuple(a for n, a in enumerate(args) if n not in numbers)
        dynamic_kwargs = {name: v for name, v in kwargs.items() if name not in self._static.names}
        return dynamic_args, dynamic_kwargs, (*static, *named)

    def _trace(
        self,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        in_tree: tree.PyTreeDef,
        signature: Sequence[tuple[ArrayType, bool]],
        static: tuple[Any, ...],
    ) -> Traced:
        self.num_traces += 1
        positions = {key: item for key, item in static if isinstance(key, int)}
        names = {key: item for key, item in static if isinstance(key, str)}

        def call(*dynamic: Any, **dynamic_kwargs: Any) -> Any:
            given = iter(dynamic)
            count = len(dynamic) + len(positions)
            merged = [positions[n] if n in positions else next(given) for n in range(count)]
            return self.fun(*merged, **names, **dynamic_kwargs)

        f = flat.FlatFunction(call, in_tree)
        types, weak = [t for t, _ in signature], [w for _, w in signature]
        staged = trace.stage(f, types, weak=weak, name=self._name, transform="jit")
        assert f.out_tree is not None
        donated = self._donated_parameters(args, kwargs, set(positions), len(staged.captures))
        options = backend.CompileOptions(
            donated=donated,
            donation=self._donation,  # type: ignore[arg-type]  # checked by jit
            mesh=_mesh_in(staged.program),
        )
        mesh = self._mesh or sharding.current_mesh()
        return Traced(staged, in_tree, f.out_tree, execute.Runner(staged.program, options, mesh))

    def _donated_parameters(
        self, args: Sequence[Any], kwargs: dict[str, Any], static: set[int], num_captures: int
    ) -> tuple[int, ...]:
        wanted = self._donated.positions(len(args))
        donated: list[int] = []
        number = num_captures
        dynamic_kwargs = {k: v for k, v in kwargs.items() if k not in self._static.names}
        positional = [(n in wanted, a) for n, a in enumerate(args) if n not in static]
        named = [(k in self._donated.names, dynamic_kwargs[k]) for k in sorted(dynamic_kwargs)]
        for is_donated, arg in (*positional, *named):
            count = len(tree.leaves(arg))
            if is_donated:
                donated += range(number, number + count)
            number += count
        return tuple(donated)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Trace at these arguments (or `ShapeDtypeStruct` in their place) without running."""
        dynamic_args, dynamic_kwargs, static = self._split_static(args, kwargs)
        leaves, in_tree = tree.flatten((dynamic_args, dynamic_kwargs))
        traced = self._trace(args, kwargs, in_tree, [type_and_weak(x) for x in leaves], static)
        return Lowered(self._name, traced)

    def clear_cache(self) -> None:
        """Forget every specialisation."""
        self._cache.clear()

    def __repr__(self) -> str:
        return f"<jitted {self._name}, {len(self._cache)} specialisations>"


def _mesh_in(program: ir.Program) -> sharding.AbstractMesh | None:
    """The mesh that a program names in a constraint or a shard_map, if any."""
    for equation in program.equations:
        found = equation.attrs.get("mesh")
        for inner in equation.programs:
            found = found or _mesh_in(inner)
        if found is not None:
            return found
    return None


def run_donating(traced: Traced, arrays: Sequence[array.Array], name: str) -> tuple[array.Array, ...]:
    """Run a program and delete the arguments it was given for good.

    Raises:
        DonationError: an array is donated and passed a second time.
    """
    options = traced.runner.options
    if not options.donated:
        return traced.runner(arrays)
    counts = Counter(map(id, arrays))
    for number in options.donated:
        if counts[id(arrays[number])] > 1:
            raise errors.DonationError(
                f"{name} was given the same array twice and one of them is donated",
                got=str(arrays[number].type),
                fix="pass a copy, or leave the argument out of donate_argnums",
            )
    results = traced.runner(arrays)
    for number in options.donated:
        arrays[number].delete()
    return results


def explain_miss(name: str, key: Any, known: Sequence[Any]) -> str:
    """Why a call was traced again: what differs from the most similar signature seen before."""
    labels = ("structure of the arguments", "types", "static arguments", "named axes", "mesh", "knobs")
    closest = max(known, key=lambda other: sum(a == b for a, b in zip(key, other, strict=True)))
    different = [
        f"{label}: {a} instead of {b}" for label, a, b in zip(labels, key, closest, strict=True) if a != b
    ]
    return f"{name} was traced again because of other {'; '.join(different)}"


@dataclass(frozen=True, slots=True)
class Lowered:
    """A traced function before compilation."""

    name: str
    traced: Traced

    @property
    def program(self) -> ir.Program:
        """The program; captured arrays are its first parameters."""
        return self.traced.staged.program

    def as_text(self) -> str:
        """The program as text."""
        return repr(self.program)

    def compile(self) -> Compiled:
        """Machine code for the default device."""
        device = backend.default_device()
        return Compiled(self, execute.compile(self.program, device, self.traced.runner.options))


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled function: call it, or look at its text, cost and memory."""

    lowered: Lowered
    executable: backend.Executable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        traced = self.lowered.traced
        leaves, in_tree = tree.flatten((args, kwargs))
        if in_tree != traced.in_tree:
            raise errors.TypeMismatchError(
                f"the compiled {self.lowered.name} takes arguments of another structure",
                got=str(in_tree),
                expected=str(traced.in_tree),
                fix="pass the same pytrees as to lower(), static arguments left out",
            )
        values = [trace.to_array(trace.as_value(x)) for x in leaves]
        arrays = [*(trace.to_array(c) for c in traced.staged.captures), *values]
        found = tuple(a.type for a in arrays)
        if found != self.lowered.program.in_types:
            raise errors.TypeMismatchError(
                f"the compiled {self.lowered.name} takes other types",
                got=str(found),
                expected=str(self.lowered.program.in_types),
            )
        results = run_donating(traced, arrays, self.lowered.name)
        return tree.unflatten(traced.out_tree, results)

    def as_text(self, stage: str = "kernels") -> str:
        """Text of a stage of the compiler: `program`, `kernels`, or one of the backend's own."""
        return self.executable.text(stage)

    def cost_analysis(self) -> dict[str, float]:
        """Counts such as FLOPs, bytes and kernels."""
        return self.executable.cost_analysis()

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments, results, aliases and temporaries."""
        return self.executable.memory_analysis()


def jit(
    fun: Callable[..., Any] | None = None,
    *,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    donation: str = "allow",
    keep_unused: bool = False,
    inline: bool = False,
    in_shardings: Any = None,
    out_shardings: Any = None,
) -> Any:  # Any: a jitted function, or a decorator; pytrees of placements
    """Compile a function: trace it once per signature of its arguments and run machine code after that,
    as `jax.jit`.

    Args:
        fun: function of arrays and pytrees of arrays, without side effects.
        static_argnums: positions of arguments that are compile-time constants; they must be hashable.
        static_argnames: the same by keyword; each set is completed from the other by the function's
            signature.
        donate_argnums: positions of arguments whose buffers may be reused for results; they are deleted
            by the call.
        donate_argnames: the same by keyword.
        donation: `require` makes it an error when a donated buffer cannot be reused.
        keep_unused: accepted for JAX's sake; unused arguments cost nothing.
        inline: accepted for JAX's sake; nested calls are always inlined by the compiler.
        in_shardings: how arguments are split over a mesh: a placement, or a tuple with one tree of
            placements (a prefix of the argument) per dynamic positional argument; None where the
            partitioner chooses.
        out_shardings: the same for the result.

    Returns:
        The jitted function, with `lower(*args)` and `clear_cache()`; a decorator when `fun` is absent.

    Raises:
        ValueMismatchError: a number or name does not fit the function.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.jit(lambda x: inp.tanh(x) * 2)(inp.float32(0.0))
        Array(0., dtype=float32)
    """
    if fun is None:
        return functools.partial(
            jit,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            donate_argnums=donate_argnums,
            donate_argnames=donate_argnames,
            donation=donation,
            keep_unused=keep_unused,
            inline=inline,
            in_shardings=in_shardings,
            out_shardings=out_shardings,
        )
    if not callable(fun):
        raise errors.TypeMismatchError("jit needs a function", got=type(fun).__name__)
    if donation not in ("allow", "require"):
        raise errors.ValueMismatchError("jit: donation is 'allow' or 'require'", got=repr(donation))
    static = _numbers_and_names(fun, static_argnums, static_argnames)
    donated = _numbers_and_names(fun, donate_argnums, donate_argnames)
    if set(static.numbers) & set(donated.numbers):
        raise errors.ValueMismatchError(
            "jit: an argument cannot be both static and donated", got=str(static_argnums)
        )
    mesh = None
    if in_shardings is not None or out_shardings is not None:
        fun, mesh = placement.constrained(fun, in_shardings, out_shardings, static.numbers)
    return Jitted(fun, static, donated, donation, mesh)


def _numbers_and_names(
    fun: Callable[..., Any], numbers: int | Sequence[int] | None, names: str | Iterable[str] | None
) -> Marks:
    """Positions and names of the same arguments, each completed from the other by the signature of the
    function.
    """
    given = () if numbers is None else (numbers,) if isinstance(numbers, int) else tuple(numbers)
    named = () if names is None else (names,) if isinstance(names, str) else tuple(names)
    if not given and not named:
        return Marks()
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        return Marks(given, named)
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
    return Marks(tuple(dict.fromkeys((*given, *from_names))), tuple(dict.fromkeys((*named, *from_numbers))))


def make_jaxpr(
    fun: Callable[..., Any], static_argnums: int | Sequence[int] = ()
) -> Callable[..., ir.Program]:
    """Function that returns the program `fun` traces to, as `jax.make_jaxpr`.

    Captured arrays of more than 64 elements are its first parameters.
    """
    jitted = fun if isinstance(fun, Jitted) else jit(fun, static_argnums=static_argnums)

    def run(*args: Any, **kwargs: Any) -> ir.Program:
        return jitted.lower(*args, **kwargs).program

    return run


def eval_shape(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # Any: pytrees
    """Shapes and dtypes of the results of `fun`, without computing, as `jax.eval_shape`.

    Arguments may be arrays or anything with `shape` and `dtype`.
    """
    leaves, in_tree = tree.flatten((args, kwargs))
    pairs = [type_and_weak(ShapeDtypeStruct(x.shape, x.dtype) if _is_description(x) else x) for x in leaves]
    f = flat.FlatFunction(fun, in_tree)
    staged = trace.stage(f, [t for t, _ in pairs], weak=[w for _, w in pairs])
    assert f.out_tree is not None
    types = staged.program.out_types
    return tree.unflatten(
        f.out_tree, [ShapeDtypeStruct(t.shape, t.dtype, w) for t, w in zip(types, staged.weak, strict=True)]
    )


def _is_description(x: Any) -> bool:  # Any: any argument
    return (
        not isinstance(x, (Value, ShapeDtypeStruct, np.ndarray, np.generic))
        and hasattr(x, "shape")
        and hasattr(x, "dtype")
    )


def checkpoint(
    fun: Callable[..., Any] | None = None,
    *,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
) -> Any:  # Any: a function, or a decorator
    """Recompute inside the backward pass instead of keeping intermediate values, as `jax.checkpoint`.

    Args:
        fun: function of arrays and pytrees.
        prevent_cse: accepted for JAX's sake; recomputation is always fenced from the first computation.
        static_argnums: positions of arguments that are not arrays.

    Returns:
        The function, or a decorator when `fun` is absent.
    """
    if fun is None:
        return functools.partial(checkpoint, prevent_cse=prevent_cse, static_argnums=static_argnums)
    jitted = jit(fun, static_argnums=static_argnums)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        values, traced = jitted._prepare(args, kwargs)
        staged = traced.staged
        results = trace.bind(
            calls.checkpoint_p, *staged.captures, *values, body=staged.program, name=jitted._name
        )
        marked = [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(traced.out_tree, marked)

    return run


remat = checkpoint


def block_until_ready(x: Any) -> Any:  # Any: pytrees
    """Wait for every array of a tree, and return the tree."""
    for leaf in tree.leaves(x):
        if isinstance(leaf, array.Array):
            leaf.block_until_ready()
    return x


def device_get(x: Any) -> Any:  # Any: pytrees
    """A tree of arrays as NumPy arrays."""
    return tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, Value) else leaf, x)
