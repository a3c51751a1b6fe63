"""`@kernel`: an arrangement of symbolic tensors and an application on their tiles become one operation.

The application is an ordinary function of tile values that uses `infini.lax` and returns tiles. It is traced
once per combination of operand types, keyword arguments and block sizes; the result is a `Kernel`, bound as
the op `kernel`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import config, dtypes, errors, exchange, execute, host, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Attrs, Program
from infini.core.value import Literal, Value, number_in
from infini.lax import custom_rules, families
from infini.tile import agreement, blocks, buckets, lowering
from infini.tile.application import Application
from infini.tile.arrangement import Tensor
from infini.tile.binding import Binding, Bound
from infini.tile.program import Access, Kernel, kernel_p
from infini.tile.scattered import Scatter, outputs, scattered_kernel_p
from infini.tile.symbols import Size

Function = Callable[..., Any]  # Any: functions of the user's, of tiles or arrays

# Where the tuner lives: it measures compiled kernels, which nothing here can make.
_TUNER = "infini.perf.tuning"
_LAUNCH = ("num_warps", "num_stages")


def kernel(
    arrangement: Callable[..., Sequence[Tensor]],
    *,
    tensors: Sequence[Tensor],
    num_results: int = 1,
    vjp: tuple[Function, Function] | None = None,
    definition: Function | None = None,
    name: str | None = None,
) -> Callable[[Function], KernelFunction]:
    """Decorator that makes a kernel of an application.

    Args:
        arrangement: from the symbolic tensors to arranged ones, whose outermost levels agree: they are the
            grid.
        tensors: the operands, then the results; shapes of results are given in terms of those of the
            operands.
        num_results: how many of the last tensors are results.
        vjp: `(forward, backward)` as of `custom_vjp`: `forward(*operands)` gives (results, residuals), and
            `backward(residuals, cotangents)` the cotangents of the operands.
        definition: the same function on whole arrays, written with lax; its derivative is used, recomputed
            from the operands.
        name: name of the kernel, that of the application by default.

    Raises:
        TypeMismatchError: the arrangement gives another number of tensors, or both `vjp` and `definition` are
            given.

    Example:
        >>> import numpy as np
        >>> from infini import lax
        >>> from infini.tile import Tensor, block_size, kernel
        >>> block = block_size(64, 1024)
        >>> x = Tensor(1)
        >>> like_x = Tensor(shape=x.shape)
        >>> @kernel(lambda *ts: [t.tile((block,)) for t in ts], tensors=(x, like_x, like_x))
        ... def add(x, y):
        ...     return lax.add(x, y)
        >>> add.specialize([ArrayType((1000,), dtypes.float32)] * 2).grid
        (1,)
    """

    def decorate(application: Function) -> KernelFunction:
        return KernelFunction(
            application,
            arrangement,
            tensors=tensors,
            num_results=num_results,
            vjp=vjp,
            definition=definition,
            name=name or application.__name__,
        )

    return decorate


@dataclass(frozen=True, slots=True)
class _Specialised:
    """A kernel at concrete types, and the operation that a call of it is.

    Args:
        kernel: the kernel.
        outputs: types of the results of a call.
        op: `scattered_kernel` where a result is written at run-time places, `kernel` elsewhere.
        attrs: of the operation.
    """

    kernel: Kernel
    outputs: tuple[ArrayType, ...]
    op: primitive.Primitive
    attrs: Attrs

    @classmethod
    def of(cls, kernel: Kernel, scatters: tuple[Scatter | None, ...]) -> _Specialised:
        """The operation of a kernel with these results."""
        if not any(scatters):
            return cls(kernel, kernel.outputs, kernel_p, Attrs({"kernel": kernel}))
        attrs = Attrs({"kernel": kernel, "scatters": scatters})
        return cls(kernel, outputs(kernel, scatters), scattered_kernel_p, attrs)


class KernelFunction:
    """A kernel that can be called on arrays, of NumPy and of any library that speaks DLPack too, and on
    tracers. Keyword arguments are static: they go to the application as they are.
    """

    def __init__(
        self,
        application: Function,
        arrangement: Callable[..., Sequence[Tensor]],
        *,
        tensors: Sequence[Tensor],
        num_results: int,
        vjp: tuple[Function, Function] | None,
        definition: Function | None,
        name: str,
        block_sizes: Mapping[str, int] | None = None,
        launch: tuple[tuple[str, int], ...] = (),
    ) -> None:
        functools.update_wrapper(self, application)
        if vjp is not None and definition is not None:
            raise errors.TypeMismatchError("a kernel takes vjp or definition, not both")
        if not 1 <= num_results <= len(tensors):
            raise errors.ValueMismatchError(
                f"{name}: the last {num_results} of {len(tensors)} tensors cannot be results",
                expected="num_results from 1 to the number of tensors",
            )
        self.application, self.arrangement = application, arrangement
        self.tensors, self.num_results = tuple(tensors), num_results
        self.vjp, self.definition, self.name = vjp, definition, name
        self.block_sizes, self.launch = dict(block_sizes or {}), launch
        # Configurations that were tuned, by shapes about as large; at most 256, the oldest goes first.
        self._tuned: execute.BoundedCache[Hashable, Mapping[str, int]] = execute.BoundedCache(256)
        own = agreement.named(self.tensors, num_results, application)
        arranged = agreement.arrange(name, arrangement, own)
        self.arranged = tuple(t for t in arranged if not t.source.constexpr)
        self.binding = Binding(name, own[: len(own) - num_results], self.arranged)
        names = [symbol.name for symbol in blocks.found_in(self.arranged)]
        if len(set(names)) < len(names):
            raise errors.ValueMismatchError(
                f"{name} has two block sizes of one name",
                got=", ".join(names),
                fix="name them: block_size(16, 64, name='BM')",
            )
        # At most 256 specialisations are kept, the oldest goes first.
        self._kernels: execute.BoundedCache[Hashable, _Specialised] = execute.BoundedCache(256)
        self._definitions: execute.BoundedCache[Hashable, Program] = execute.BoundedCache(256)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """The tensors of the arrays that a call takes."""
        return self.binding.arrays

    @property
    def results(self) -> tuple[Tensor, ...]:
        """The tensors of what it returns."""
        return self.tensors[len(self.tensors) - self.num_results :]

    def configure(self, **block_sizes: int) -> KernelFunction:
        """The same kernel with some block sizes fixed, by the names they were given; for GPUs also with
        `num_warps` and `num_stages`.

        Raises:
            ValueMismatchError: there is no such block size, or the value is no power of two within its
                bounds.
        """
        known = {symbol.name: symbol for symbol in blocks.found_in(self.arranged)}
        launch = {n: v for n, v in block_sizes.items() if n in _LAUNCH and n not in known}
        block_sizes = {n: v for n, v in block_sizes.items() if n not in launch}
        for name, value in launch.items():
            if not _is_whole(value) or value < 1 or (name == "num_warps" and value & (value - 1)):
                raise errors.ValueMismatchError(
                    f"{self.name}: wrong value of {name}", got=repr(value), expected="an integer such as 4"
                )
        for name, value in block_sizes.items():
            if name not in known:
                raise errors.ValueMismatchError(
                    f"{self.name} has no block size {name!r}", expected=", ".join(known) or "none"
                )
            lower, upper = known[name].lower, known[name].upper
            if not _is_whole(value) or not lower <= value <= upper or value & (value - 1):
                raise errors.ValueMismatchError(
                    f"{self.name}: wrong value of {name}",
                    got=repr(value),
                    expected=f"a power of two from {lower} to {upper}",
                )
        merged = {**self.block_sizes, **{n: int(v) for n, v in block_sizes.items()}}
        return KernelFunction(
            self.application,
            self.arrangement,
            tensors=self.tensors,
            num_results=self.num_results,
            vjp=self.vjp,
            definition=self.definition,
            name=self.name,
            block_sizes=merged,
            launch=tuple(sorted({**dict(self.launch), **{n: int(v) for n, v in launch.items()}}.items())),
        )

    # --- tuning -------------------------------------------------------------------------------

    def tune(
        self, *operands: Any, constraints: Sequence[Size] = (), **static: Hashable
    ) -> Any:  # Any: arrays or types in, a report of `infini.perf.tuning` out
        """Measure configurations at operands like these, and run in the fastest one from now on.

        See `infini.perf.tuning.tune` for the options and the report.
        """
        return importlib.import_module(_TUNER).tune(self, *operands, constraints=constraints, **static)

    def use(self, types: Sequence[ArrayType], values: Mapping[str, int], static: Mapping[str, Any]) -> None:
        """Run in a configuration from now on, where sizes are about those of `types`. What was jitted before
        stays as it is.
        """
        self._tuned.put(buckets.key(types, static), dict(values))
        self._kernels.clear()

    def in_configuration(
        self, types: Sequence[ArrayType], values: Mapping[str, int], static: Mapping[str, Any]
    ) -> Kernel:
        """The tile program with these block sizes and launch options, whatever was tuned."""
        return self._specialize(types, static, values).kernel

    def __call__(
        self, *operands: Any, **static: Hashable
    ) -> Any:  # Any: arrays in, an array or a tuple of arrays out
        found, static = self._taken(operands, static)
        # Calls are many: what tools are told of them is made for errors alone.
        values = [x for x in found if isinstance(x, Value)]
        if len(values) != len(found):
            self.bind(operands, static).values(self.name)
        types = [x.type for x in values]
        # A program that is being traced must not depend on a clock.
        is_asked = config.get("tune") == "all" and trace.is_eager()
        if is_asked and self._tuned.get(buckets.key(types, static)) is None:
            importlib.import_module(_TUNER).tune_first_use(self, types, static)
        specialised = self._specialized(types, static)
        if self.vjp is not None:
            results = self._with_vjp(values, types, specialised, static)
        else:
            attrs = specialised.attrs
            if self.definition is not None:
                attrs = attrs.replace(definition=self._defined(types, specialised, static))
            results = trace.bind_attrs(specialised.op, values, attrs)
        return results[0] if self.num_results == 1 else tuple(results)

    def bind(
        self, operands: Sequence[Any], static: Mapping[str, Any]
    ) -> Bound:  # Any: arrays or types; hashable constants
        """What a call makes of its operands and keyword arguments: what every tool takes, a call makes too.

        Args:
            operands: as of a call; types may stand for arrays: an `ArrayType`, a `ShapeDtypeStruct` or
                whatever has a shape and a dtype and no elements.
            static: keyword arguments, parameters of compilation among them.

        Raises:
            TypeMismatchError: an operand is no array, or a keyword argument is unknown, missing or no
                constant.

        Example:
            >>> import numpy as np
            >>> from infini.tile import Tensor, kernel
            >>> x, factor = Tensor(1), Tensor(0, constexpr=True)
            >>> cut = lambda x, factor, y: (x.tile((4,)), factor, y.tile((4,)))
            >>> scale = kernel(cut, tensors=(x, factor, Tensor(shape=x.shape)))(lambda x, factor: x * factor)
            >>> bound = scale.bind([np.ones(6), 2], {})
            >>> bound.types, bound.static
            ((f32[6],), {'factor': 2})
        """
        found, complete = self._taken(operands, static)
        types = tuple(x if isinstance(x, ArrayType) else x.type for x in found)
        return Bound(tuple(found), types, complete)

    def _taken(
        self, operands: Sequence[Any], static: Mapping[str, Any]
    ) -> tuple[list[Value | ArrayType], dict[str, Any]]:  # Any: as of bind
        arrays, given = self.binding.split(operands, static)
        complete = self._complete(given)
        return [self._array(number, x) for number, x in enumerate(arrays)], complete

    def _array(self, number: int, x: Any) -> Value | ArrayType:  # Any: as of bind
        if isinstance(x, Value):
            return self._operand(number, x)
        if isinstance(x, Tensor):
            raise errors.TypeMismatchError(
                f"{self.name}: operand {number} is symbolic and has no sizes",
                got=repr(x),
                expected="an array, an ArrayType or a ShapeDtypeStruct",
            )
        type_ = _given_type(x)
        return self._operand(number, _value(x)) if type_ is None else type_

    def _complete(self, static: Mapping[str, Any]) -> dict[str, Any]:  # Any: hashable constants
        """All keyword arguments, which the application takes."""
        found = dict(self.binding.complete(static))
        self.binding.check(self.application, found)
        return found

    def specialize(self, types: Sequence[ArrayType], **static: Hashable) -> Kernel:
        """The tile program at these operand types. In the place of a result that is written at run-time
        places it gives two: the places, and what is written there.

        Raises:
            TypeMismatchError: the operands do not fit the tensors, the tensors disagree on the grid, the
                application takes other keyword arguments, or returns other tiles than the results have.
        """
        return self._specialized(types, self._complete(static)).kernel

    def as_program(self, types: Sequence[ArrayType], **static: Hashable) -> Program:
        """The program that a call at these operand types is: one operation.

        Raises:
            TypeMismatchError: as of `specialize`.
        """
        found = self._specialized(types, self._complete(static))
        return ir.single_equation(found.op, types, found.attrs)

    def _specialized(
        self, types: Sequence[ArrayType], static: Mapping[str, Any]
    ) -> _Specialised:  # Any: hashable constants
        key = _key(types, static)
        found = self._kernels.get(key)
        return found if found is not None else self._kernels.put(key, self._specialize(types, static))

    # --- specialisation -----------------------------------------------------------------------

    def _operand(self, number: int, value: Value) -> Value:
        wanted = self.operands[number].source.dtype if number < len(self.operands) else None
        if wanted is not None and wanted != value.dtype and isinstance(value, Literal) and value.weak:
            what = f"{self.operands[number].label(number)} of {self.name}"
            return Literal(number_in(wanted, value.host.item(), what), weak=False)
        return value

    def lower(
        self,
        types: Sequence[ArrayType],
        static: Mapping[str, Any] | None = None,
        values: Mapping[str, int] | None = None,
    ) -> tuple[lowering.Lowered, dict[Size, int]]:
        """The grid and the accesses at these operand types, and the values of all sizes.

        Args:
            types: types of the operands.
            static: keyword arguments of the application.
            values: block sizes by name; what was tuned or fixed when absent.

        Raises:
            TypeMismatchError: the operands do not fit the tensors, or the tensors disagree on the grid.
        """
        chosen = self._chosen(types, static or {}, values)
        sizes = blocks.choose(
            self.arranged, self.binding.sizes(types, static or {}), {**chosen, **self.block_sizes}
        )
        try:
            return lowering.lower(self.arranged, self.num_results, sizes), sizes
        except errors.TypeMismatchError:
            if values is not None or not chosen:
                raise
        return self.lower(types, static, {})  # what was tuned at other sizes does not fit these

    def _chosen(
        self, types: Sequence[ArrayType], static: Mapping[str, Any], values: Mapping[str, int] | None
    ) -> Mapping[str, int]:
        return values if values is not None else self._tuned.get(buckets.key(types, static)) or {}

    def _specialize(
        self,
        types: Sequence[ArrayType],
        static: Mapping[str, Any],
        values: Mapping[str, int] | None = None,
    ) -> _Specialised:
        chosen = self._chosen(types, static, values)
        launch = {n: v for n, v in chosen.items() if n in _LAUNCH} | dict(self.launch)
        lowered, sizes = self.lower(types, static, values)
        num_loads = len(self.operands)
        loads, stores = lowered.accesses[:num_loads], lowered.accesses[num_loads:]
        for number, (tensor, type_) in enumerate(zip(self.operands, types, strict=True)):
            if tensor.source.other is not None:
                number_in(
                    type_.dtype, tensor.source.other, f"{tensor.label(number)} of {self.name}, and so other=,"
                )
        application = Application(
            self.name, self.application, self.binding, self.arranged[num_loads:], self.arranged[:num_loads]
        )
        arrays = application.results_at(sizes)
        body, scatters = application.traced(types, arrays, lowered, static)
        kept, given = [], iter(body.out_types)
        for store, shape, scatter in zip(stores, arrays, scatters, strict=True):
            type_ = next(given)
            if scatter is None:
                kept.append((store, type_.update(shape=shape)))
            else:
                kept += [_side_by_side(lowered.grid, tile) for tile in (type_, next(given))]
        kernel = Kernel(
            lowered.grid, loads, tuple(store for store, _ in kept), tuple(type_ for _, type_ in kept), body,
            name=self.name, launch=tuple(sorted(launch.items())),
        )  # fmt: skip
        return _Specialised.of(kernel, scatters)

    # --- derivatives ----------------------------------------------------------------------------

    def _defined(
        self, types: Sequence[ArrayType], specialised: _Specialised, static: Mapping[str, Any]
    ) -> Program:
        """The definition traced at the operand types."""
        key = _key(types, static)
        if (known := self._definitions.get(key)) is not None:
            return known

        def run(*args: Value) -> list[Any]:
            assert self.definition is not None
            found = self.binding.run(self.definition, args, static)
            return list(found) if isinstance(found, (tuple, list)) else [found]

        staged = trace.stage(run, types, name=f"{self.name}_definition")
        if staged.captures or staged.program.out_types != specialised.outputs:
            raise errors.TypeMismatchError(
                f"the definition of {self.name} is another function than the kernel",
                got=str(staged.program.out_types),
                expected=str(specialised.outputs),
            )
        return self._definitions.put(key, staged.program)

    def _with_vjp(
        self,
        values: Sequence[Value],
        types: Sequence[ArrayType],
        specialised: _Specialised,
        static: Mapping[str, Hashable],
    ) -> Sequence[Value]:
        key = (self, _key(types, static))
        body = ir.single_equation(specialised.op, types, specialised.attrs)
        return trace.bind(
            custom_rules.custom_vjp_call_p,
            *values,
            body=body,
            forward=host.register(_flat_forward(self, static), key=("kernel", key)),
        )


def _flat_forward(function: KernelFunction, static: Mapping[str, Any]) -> custom_rules.Forward:
    """The user's rules on flat lists, as `custom_vjp_call` wants them."""
    assert function.vjp is not None
    user_forward, user_backward = function.vjp

    def forward(
        primals: Sequence[Value], perturbed: tuple[bool, ...]
    ) -> tuple[list[Value], list[Value], custom_rules.Backward]:
        found, residuals = function.binding.run(user_forward, primals, static)
        leaves, treedef = tree.flatten(residuals)
        outs = [trace.as_value(x) for x in (found if isinstance(found, (tuple, list)) else [found])]

        def backward(saved: Sequence[Value], cotangents: Sequence[Value | None]) -> list[Value]:
            full = families.filled(cotangents, out_types)
            given = full[0] if function.num_results == 1 else tuple(full)
            keywords = function.binding.keywords(user_backward, static)
            found = user_backward(tree.unflatten(treedef, saved), given, **keywords)
            return [trace.as_value(x) for x in found]

        out_types = [x.type for x in outs]
        return outs, [trace.as_value(x) for x in leaves], backward

    return forward


def checked(kernel: object, tool: str) -> KernelFunction:
    """What a tool was given, which is a kernel.

    Raises:
        TypeMismatchError: it is something else.
    """
    if not isinstance(kernel, KernelFunction):
        raise errors.TypeMismatchError(
            f"{tool} takes a kernel",
            got=repr(kernel),
            expected="what the decorator tile.kernel made of a function",
        )
    return kernel


def _given_type(x: Any) -> ArrayType | None:  # Any: whatever is given for an operand
    """The type that stands for an array; None for an array itself, or what a call can make one of."""
    if isinstance(x, (ArrayType, np.ndarray, np.generic)):
        return x if isinstance(x, ArrayType) else None
    has_elements = any(hasattr(x, name) for name in ("__infini_array__", "__dlpack__", "__array__"))
    if has_elements or not (hasattr(x, "shape") and hasattr(x, "dtype")):
        return None
    return ArrayType(tuple(map(int, x.shape)), dtypes.canonical(x.dtype))


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _value(x: object) -> Value:
    """An operand: tensors of other libraries come by DLPack, which keeps every dtype."""
    is_own = isinstance(x, (Value, np.ndarray, np.generic)) or hasattr(x, "__infini_array__")
    return exchange.from_dlpack(x) if hasattr(x, "__dlpack__") and not is_own else trace.as_value(x)


def _key(types: Sequence[ArrayType], static: Mapping[str, Any]) -> Hashable:
    """What a specialisation depends on: 1, 1.0 and True are other arguments, and knobs change results."""
    return tuple(types), tuple((k, type(static[k]), static[k]) for k in sorted(static)), config.cache_key()


def _side_by_side(grid: ir.Shape, tile: ArrayType) -> tuple[Access, ArrayType]:
    """The tiles of all programs as one array, whose first dimensions are those of the grid."""
    rank = len(grid) + tile.ndim
    by_grid = tuple(tuple(int(d == j) for j in range(len(grid))) for d in range(rank))
    by_tile = tuple(tuple(int(d == len(grid) + t) for t in range(tile.ndim)) for d in range(rank))
    access = Access(tile.shape, by_grid, by_tile, (0,) * rank)
    return access, tile.update(shape=(*grid, *tile.shape))
