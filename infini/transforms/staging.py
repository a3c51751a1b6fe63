"""`jit` and its relatives: trace once per signature, compile once per program, run.

The signature is the structure of the arguments, their types and weak flags, the static arguments, the named
axes in scope and the knobs that change results. A jitted function inside another transformation is one
`call` equation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from infini.core import backend as backend_, config, errors, events, execute, sharding, trace, tree
from infini.core.ir import ArrayType
from infini.core.machine import Collectives, Machine
from infini.core.mesh import PartitionSpec
from infini.core.value import Value
from infini.transforms import flat, layouts, placement, signature, stages
from infini.transforms.signature import Key, Marks, ShapeDtypeStruct as ShapeDtypeStruct
from infini.transforms.stages import Layouts, Specialisation, Traced


@dataclass(frozen=True, slots=True)
class Options:
    """How a function is jitted; see `jit`.

    Args:
        static: arguments that are compile-time constants.
        donated: arguments whose buffers may be reused.
        donation: `allow` or `require`.
        mesh: devices of its placements, when it has some.
        is_inline: whether its body takes the place of a call inside another trace.
        device: where its arguments are put, when one is given.
        asked: layouts of arguments and results.
        machine: what ways to split the function over a mesh are compared by.
        strategies: pairs (operation, strategy) that the user decided about.
        collectives: how collectives are joined.
        named: pairs (name, spec): how values with a name are split over the mesh.
    """

    static: Marks = Marks()  # noqa: RUF009  # immutable
    donated: Marks = Marks()  # noqa: RUF009  # immutable
    donation: Literal["allow", "require"] = "allow"
    mesh: sharding.Mesh | None = None
    is_inline: bool = False
    device: backend_.Device | None = None
    asked: layouts.Asked = layouts.Asked()  # noqa: RUF009  # immutable
    machine: Machine | None = None
    strategies: tuple[tuple[str, str], ...] = ()
    collectives: Collectives = Collectives()  # noqa: RUF009  # immutable
    named: tuple[tuple[str, PartitionSpec], ...] = ()


_Path: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Any] | None


class Jitted:
    """A function compiled per signature. Made by `jit`."""

    def __init__(self, fun: Callable[..., Any], options: Options, max_signatures: int = 1024) -> None:
        functools.update_wrapper(self, fun)
        self.fun = fun
        self.options = options
        self._static, self._donated = options.static, options.donated
        self._asks_layouts = bool(options.asked)
        self._name = getattr(fun, "__name__", type(fun).__name__)
        self._cache: execute.BoundedCache[Key, Specialisation] = execute.BoundedCache(max_signatures)
        self.num_traces = 0
        self.misses: deque[str] = deque(maxlen=100)
        self._path: _Path = None
        self._learner: backend_.CallPath | None = None
        self._repeats = not self._asks_layouts and options.device is None

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._path is not None:
            result = self._path(args, kwargs)
            if result is not NotImplemented:
                return result
        if config.get("disable_jit"):
            return self.fun(*args, **kwargs)
        values, specialisation = self.specialise(args, kwargs)
        if self.options.device is not None and trace.is_eager():
            values = [placement.device_put(x, self.options.device) for x in values]
        if self._asks_layouts and trace.is_eager():
            return self._in_layouts(args, kwargs, values, specialisation)
        results = specialisation(values)
        if self._repeats and trace.is_eager():
            self._learn(args, kwargs, values, specialisation)
        return results

    def _learn(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], values: Sequence[Value], found: Specialisation
    ) -> None:
        """Let the backend repeat calls like this one without us, where it can."""
        call = found.repeatable(values)
        if call is None:
            return
        if self._learner is None:
            driver = call.placement.device.backend
            self._learner = driver.call_path() if isinstance(driver, backend_.HasCallPath) else None
            if self._learner is None:
                self._repeats = False
                return
            self._path = self._learner.call
        self._learner.learn(
            dataclasses.replace(
                call,
                args=args,
                kwargs=kwargs,
                static=frozenset(self._static.positions(len(args))),
                static_names=frozenset(self._static.names),
            )
        )

    def _in_layouts(
        self, args: Sequence[Any], kwargs: dict[str, Any], values: list[Value], found: Specialisation
    ) -> Any:  # Any: a pytree
        """Results of a call of a function that asks for layouts."""
        wanted = self._wanted_layouts(args, kwargs, found)
        results = found(layouts.called(values, wanted, self._name))
        outputs = self.options.asked.outputs
        return results if outputs is None else layouts.results(results, outputs, "out_shardings")

    def _wanted_layouts(
        self, args: Sequence[Any], kwargs: dict[str, Any], found: Specialisation
    ) -> list[layouts.Wanted]:
        dynamic, named, _ = self._split_static(args, kwargs)
        asked = self.options.asked
        wanted = layouts.of_leaves(asked.inputs, dynamic, "in_shardings")
        wanted += layouts.of_leaves(None, named, "in_shardings")
        count = len(found.staged.captures)
        donated = [n - count for n in found.runner.options.donated]
        layouts.check_donated(wanted, donated, asked.outputs)
        return wanted

    def specialise(
        self, args: Sequence[Any], kwargs: dict[str, Any], *, requires_hashable: bool = True
    ) -> tuple[list[Value], Specialisation]:
        """The dynamic arguments as values, and the function traced for them.

        With `requires_hashable=False` a call whose static arguments cannot be hashed is traced every time.

        Raises:
            TypeMismatchError: an argument is no array.
            ValueMismatchError: a static argument is not hashable.
        """
        dynamic_args, dynamic_kwargs, static = self._split_static(args, kwargs)
        leaves, in_tree = tree.flatten((dynamic_args, dynamic_kwargs))
        holes, leaves = flat.Holes.of(leaves)
        values = flat.values(leaves, f"arguments of {self._name}")
        varying = trace.varying_of(values)
        key = Key.of(
            in_tree,
            tuple([(v.type, v.weak) for v in values]),
            static,
            # 2, 2.0 and True are equal and trace differently.
            tuple([type(item) for _, item in static]),
            holes.shapes,
            trace.axis_env() if varying is None else (*trace.axis_env(), trace.current().manual, *varying),
            sharding.meshes_in_scope(),
            config.cache_key(),
        )
        try:
            found = self._cache.get(key)
        except TypeError as error:
            if not requires_hashable:
                return values, self._trace(args, kwargs, in_tree, holes, key.types, static, varying=varying)
            raise errors.ValueMismatchError(
                f"static arguments of {self._name} must be hashable",
                got=repr(static),
                fix="pass a tuple instead of a list",
            ) from error
        if found is None:
            if len(self._cache):
                self._note_miss(key)
            found = self._trace(args, kwargs, in_tree, holes, key.types, static, varying=varying)
            if not found.staged.has_captured_tracers:
                self._cache.put(key, found)
        if found.runner.mesh is not None:
            sharding.name_mesh(found.runner.mesh)
        return values, found

    def _note_miss(self, key: Key) -> None:
        text = signature.explain_miss(self.fun, self._name, key, list(self._cache._items))
        self.misses.append(text)
        if config.get("explain"):
            events.emit("retrace", text, is_asked=True)

    def _split_static(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], tuple[tuple[int | str, Any], ...]]:
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
        holes: flat.Holes,
        types: Sequence[tuple[ArrayType, bool]],
        static: tuple[tuple[int | str, Any], ...],
        *,
        varying: Sequence[trace.Varying] | None = None,
    ) -> Specialisation:
        self.num_traces += 1
        positions = {key: item for key, item in static if isinstance(key, int)}
        names = {key: item for key, item in static if isinstance(key, str)}

        def call(*dynamic: Any, **dynamic_kwargs: Any) -> Any:
            given = iter(dynamic)
            count = len(dynamic) + len(positions)
            merged = [positions[n] if n in positions else next(given) for n in range(count)]
            return self.fun(*merged, **names, **dynamic_kwargs)

        call.__name__ = self._name
        f = flat.FlatFunction(call, in_tree, holes=holes)
        in_types, weak = [t for t, _ in types], [w for _, w in types]
        with execute.unswept(), sharding.named_meshes() as named:
            staged = trace.stage(f, in_types, weak=weak, name=self._name, transform="jit", varying=varying)
        assert f.out_tree is not None
        called = signature.parameter_names(self.fun, in_tree, [i for i, _ in holes.shapes], list(positions))
        for var, name in zip(staged.program.params[len(staged.captures) :], called, strict=True):
            var.hint = name
        donated = self._donated_parameters(args, kwargs, set(positions), len(staged.captures))
        options = backend_.CompileOptions(
            donated=donated,
            donation=self.options.donation,
            mesh=execute.mesh_in(staged.program) or self._mesh_of_names(),
            machine=self.options.machine,
            strategies=self.options.strategies,
            collectives=self.options.collectives,
            named=self.options.named,
        )
        mesh = self.options.mesh or _devices_of(options.mesh, named) or sharding.current_mesh()
        runner = execute.Runner(staged.program, options, mesh)
        return Specialisation(
            self._name, staged, in_tree, holes, f.out_tree, f.out_holes, runner, self.options.is_inline
        )

    def _mesh_of_names(self) -> sharding.AbstractMesh | None:
        """The mesh over which values with a name are split, which the program does not say."""
        mesh = self.options.mesh
        return mesh.abstract if self.options.named and mesh is not None else None

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
            count = len(flat.Holes.of(tree.leaves(arg))[1])
            if is_donated:
                donated += range(number, number + count)
            number += count
        return tuple(donated)

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """Trace at these arguments (or `ShapeDtypeStruct` in their place) without running."""
        dynamic_args, dynamic_kwargs, static = self._split_static(args, kwargs)
        leaves, in_tree = tree.flatten((dynamic_args, dynamic_kwargs))
        holes, leaves = flat.Holes.of(leaves)
        types = [signature.type_and_weak(x) for x in leaves]
        found = self._trace(args, kwargs, in_tree, holes, types, static)
        wanted = self._wanted_layouts(args, kwargs, found)
        inputs = layouts.lowered(leaves, wanted, self._name)
        has_layouts = any(item is not None for item in inputs)
        return Traced(found, Layouts(tuple(inputs) if has_layouts else (), self.options.asked.outputs))

    def lower(self, *args: Any, **kwargs: Any) -> stages.Lowered:
        """Trace at these arguments (or `ShapeDtypeStruct` in their place), ready to compile."""
        return self.trace(*args, **kwargs).lower()

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:  # Any: a pytree
        """Shapes and dtypes of the results at these arguments, without computing."""
        return self.trace(*args, **kwargs).out_info

    def clear_cache(self) -> None:
        """Forget every specialisation."""
        self._cache.clear()
        if self._learner is not None:
            self._learner.forget()

    def __repr__(self) -> str:
        return f"<jitted {self._name}, {len(self._cache)} specialisations>"


def _devices_of(mesh: sharding.AbstractMesh | None, named: Sequence[sharding.Mesh]) -> sharding.Mesh | None:
    """The mesh with devices whose axes a program names.

    Raises:
        DeviceError: two are named, over different devices.
    """
    found = dict.fromkeys(candidate for candidate in named if candidate.abstract == mesh)
    if len(found) > 1:
        raise errors.DeviceError(
            "one program names two meshes with the same axes and different devices",
            got="; ".join(f"{one} on {', '.join(map(str, one.flat_devices))}" for one in found),
            fix="use one mesh, or a jitted function for each",
        )
    return next(iter(found), None)


def jit(  # noqa: PLR0913  # JAX's arguments
    fun: Callable[..., Any] | None = None,
    /,
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: backend_.Device | None = None,
    backend: str | None = None,
    inline: bool = False,
    compiler_options: Mapping[str, Any] | None = None,
    donation: str = "allow",
) -> Any:  # Any: a jitted function, or a decorator; pytrees of placements
    """Compile a function: trace it once per signature of its arguments and run machine code after that,
    as `jax.jit`.

    Args:
        fun: function of arrays and pytrees of arrays, without side effects.
        in_shardings: how arguments are split over a mesh: a placement, or a tuple with one tree of
            placements (a prefix of the argument) per dynamic positional argument; None where the
            partitioner chooses. A `Format` asks for a layout of the memory, too; `Layout.AUTO` in it lets
            the compiler choose, see `lower(...).compile().input_formats`.
        out_shardings: the same for the result.
        static_argnums: positions of arguments that are compile-time constants; they must be hashable.
        static_argnames: the same by keyword; each set is completed from the other by the function's
            signature.
        donate_argnums: positions of arguments whose buffers may be reused for results; they are deleted
            by the call.
        donate_argnames: the same by keyword.
        keep_unused: accepted for JAX's sake; unused arguments cost nothing.
        device: put the arguments on this device; in_shardings is the better way.
        backend: put the arguments on the first device of the backend of this name.
        inline: inside another trace, put the body in place of the call.
        compiler_options: must be empty; see `infini.config`.
        donation: `require` makes it an error when a donated buffer cannot be reused.

    Returns:
        The jitted function, with `trace(*args)`, `lower(*args)`, `eval_shape(*args)` and `clear_cache()`; a
        decorator when `fun` is absent.

    Raises:
        TypeMismatchError: `fun` is no function.
        ValueMismatchError: a number or name does not fit the function.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.jit(lambda x: inp.tanh(x) * 2)(inp.float32(0.0))
        Array(0., dtype=float32)
    """
    if fun is None:
        return functools.partial(
            jit,
            in_shardings=in_shardings,
            out_shardings=out_shardings,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            donate_argnums=donate_argnums,
            donate_argnames=donate_argnames,
            keep_unused=keep_unused,
            device=device,
            backend=backend,
            inline=inline,
            compiler_options=compiler_options,
            donation=donation,
        )
    if not callable(fun):
        raise errors.TypeMismatchError("jit needs a function", got=repr(fun))
    if donation not in ("allow", "require"):
        raise errors.ValueMismatchError("jit: donation is 'allow' or 'require'", got=repr(donation))
    stages.check_compiler_options(compiler_options)
    static = Marks.of(fun, static_argnums, static_argnames)
    donated = Marks.of(fun, donate_argnums, donate_argnames)
    if set(static.numbers) & set(donated.numbers):
        raise errors.ValueMismatchError(
            "jit: an argument cannot be both static and donated", got=str(static_argnums)
        )
    in_shardings, in_formats = layouts.split(in_shardings, "in_shardings")
    out_shardings, out_formats = layouts.split(out_shardings, "out_shardings")
    mesh = None
    if in_shardings is not None or out_shardings is not None:
        fun, mesh = placement.constrained(fun, in_shardings, out_shardings, static.numbers)
    options = Options(
        static,
        donated,
        donation,  # type: ignore[arg-type]  # checked above
        mesh,
        inline,
        _device(device, backend),
        layouts.Asked(in_formats, out_formats),
    )
    return Jitted(fun, options)


def _device(device: backend_.Device | None, name: str | None) -> backend_.Device | None:
    if device is not None and name is not None:
        raise errors.ValueMismatchError(
            "jit takes a device or a backend, not both", got=f"{device}, {name!r}"
        )
    return backend_.devices(name)[0] if name is not None else device


# --- looking at programs --------------------------------------------------------------------------


def make_jaxpr(
    fun: Callable[..., Any],
    static_argnums: int | Sequence[int] = (),
    axis_env: Sequence[tuple[str, int]] | None = None,
    return_shape: bool = False,
) -> Callable[..., Any]:  # Any: a program, or a pair of it and a pytree
    """Function that returns the program `fun` traces to, as `jax.make_jaxpr`.

    Args:
        fun: function of arrays and pytrees.
        static_argnums: positions of arguments that are constants.
        axis_env: names and sizes of axes that collectives in `fun` may name.
        return_shape: return the shapes and dtypes of the results too.

    Returns:
        Function of the arguments, or of `ShapeDtypeStruct` in their place. Captured arrays of more than 64
        elements are the first parameters of the program.
    """
    if not callable(fun):
        raise errors.TypeMismatchError("make_jaxpr needs a function", got=repr(fun))
    jitted = fun if isinstance(fun, Jitted) else jit(fun, static_argnums=static_argnums)

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        with trace.named_axes(*(axis_env or ())):
            traced = jitted.trace(*args, **kwargs)
        return (traced.program, traced.out_info) if return_shape else traced.program

    return run


def eval_shape(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # Any: pytrees
    """Shapes and dtypes of the results of `fun`, without computing, as `jax.eval_shape`.

    Arguments may be arrays or anything with `shape` and `dtype`.

    Example:
        >>> import infini as inf
        >>> inf.eval_shape(lambda x: x @ x.T, inf.ShapeDtypeStruct((2, 3), "float32"))
        ShapeDtypeStruct(shape=(2, 2), dtype=float32)
    """
    return jit(fun).eval_shape(*args, **kwargs)
