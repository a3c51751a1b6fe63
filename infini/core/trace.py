"""Tracing: one current interpreter decides what an operation does. `bind` types it and hands it over,
nothing else.

`Eval` runs operations on devices; `Staging` writes them into a Program. The transforms above define
others. A tracer belongs
to the interpreter that made it; using it after that interpreter has finished is a leak, reported with the
line of its birth.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy as copy_
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from infini.core import array as array_, check, config, errors, execute, ir, leaks, primitive, source, value

Varying: TypeAlias = frozenset[str]  # manual axes of a mesh along which devices hold different values
EQUAL: Final[Varying] = frozenset()


class Manual(Protocol):
    """What `shard_map` does to operations inside it, to know along which of its axes values vary; see
    `lax.varying`.
    """

    def prepare(
        self, op: primitive.Primitive, args: Sequence[value.Value], attrs: ir.Attrs
    ) -> tuple[primitive.Primitive, Sequence[value.Value], ir.Attrs]:
        """An operation with operands that vary along the same axes."""

    def varying(self, x: value.Value) -> Varying:
        """Along which axes a value varies here."""

    def results(
        self, op: primitive.Primitive, args: Sequence[value.Value], attrs: ir.Attrs, count: int
    ) -> Sequence[Varying]:
        """Along which axes the results of an operation vary."""


class Interpreter:
    """Decides what operations do. `parent` is the interpreter that was current when this one was made.

    Args:
        parent: the interpreter that was current.
        function: name of the function that is transformed, for messages.
    """

    transform = "a transformation"  # its name for people, as in "a value made inside vmap"

    def __init__(self, parent: Interpreter | None, function: str = "") -> None:
        self.parent = parent
        self.function = function
        self.manual: Manual | None = parent.manual if parent is not None else None
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether its transformation has finished, so that nothing may use its tracers any more."""
        return self._is_closed

    @is_closed.setter
    def is_closed(self, is_closed: bool) -> None:
        self._is_closed = is_closed
        if is_closed and config.get("check_tracer_leaks"):
            leaks.watch(self)

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[value.Value],
        attrs: ir.Attrs,
        out_types: tuple[ir.ArrayType, ...],
    ) -> tuple[value.Value, ...]:
        """Results of an operation that has been typed."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.transform} of {self.function}" if self.function else self.transform


class Tracer(value.Value):
    """A value inside a transformation. `owner` is its interpreter, `born` the user's line that made it."""

    __slots__ = ("__weakref__", "born", "owner")

    def __init__(self, owner: Interpreter, type: ir.ArrayType, weak: bool) -> None:
        self.owner = owner
        self.type = type
        self.weak = weak
        self.born = user_line()

    def with_weak(self, weak: bool) -> Tracer:
        """The same value with another weak flag."""
        twin = copy_.copy(self)
        twin.weak = weak
        return twin

    @property
    def varying(self) -> Varying:
        """Manual axes along which devices hold different values, inside `shard_map(check_vma=True)`."""
        return EQUAL

    def concrete(self) -> array_.Array | None:
        """The array behind this tracer, when its transformation has one."""
        return None

    def origin(self) -> str:
        """Where the value comes from, for messages."""
        return f"made at {self.born} inside {self.owner}" if self.born else f"made inside {self.owner}"

    def _concrete(
        self, purpose: str, fix: str, error: type[errors.ConcretizationError] = errors.ConcretizationError
    ) -> array_.Array:
        found = self.concrete()
        if found is None:
            raise error(
                f"Python needs the value of a traced array of type {self.type}, {purpose}",
                got=f"a value {self.origin()}, which is known only when the program runs",
                expected="an operation that can be traced, or a value that is known while tracing",
                fix=fix,
            )
        return found

    def block_until_ready(self) -> Tracer:
        """Nothing to wait for while tracing."""
        return self

    def item(self) -> Any:  # Any: a Python number
        """The only element as a Python number, where it is known."""
        return self._concrete("for item()", _KEEP).item()

    def tolist(self) -> Any:  # Any: nested lists
        """The elements as nested lists, where they are known."""
        return self._concrete("for tolist()", _KEEP).tolist()

    def tobytes(self, order: str = "C") -> bytes:
        """The bytes of the elements, where they are known."""
        return self._concrete("for tobytes()", _KEEP).tobytes(order)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise array_.ambiguous(self.type)
        return bool(
            self._concrete(
                "to decide a Python condition",
                f"use infini.numpy.where or lax.cond to choose, lax.while_loop to repeat; {_STATIC}",
                errors.TracerBoolConversionError,
            )
        )

    def __int__(self) -> int:
        return int(self._concrete("as a Python int", f"use x.astype(int), which is traced; {_STATIC}"))

    def __float__(self) -> float:
        fix = f"use x.astype(float) and functions of infini.numpy instead of math; {_STATIC}"
        return float(self._concrete("as a Python float", fix))

    def __complex__(self) -> complex:
        fix = f"use x.astype(complex) and functions of infini.numpy; {_STATIC}"
        return complex(self._concrete("as a Python complex", fix))

    def __index__(self) -> int:
        return self._concrete(
            "as an index or a size",
            "index an infini array with it, use lax.dynamic_slice or lax.fori_loop; for a size, "
            "mark the argument it comes from static with static_argnums",
            errors.TracerIntegerConversionError,
        ).__index__()

    def __array__(
        self, dtype: Any = None, copy: bool | None = None
    ) -> np.ndarray:  # Any: as NumPy's protocol
        return self._concrete(
            "as a NumPy array",
            "use the function of this name in infini.numpy, or infini.pure_callback for one that it lacks",
            errors.TracerArrayConversionError,
        ).__array__(dtype, copy)

    def __deepcopy__(self, memo: dict[int, object]) -> Tracer:
        return self

    def __hash__(self) -> int:
        raise errors.TypeMismatchError(
            "traced arrays are not hashable",
            got=f"{self.type}, {self.origin()}",
            fix=f"use id(x) for identity; {_STATIC}",
        )

    def __format__(self, spec: str) -> str:
        found = self.concrete()
        if spec and found is None:
            raise errors.TypeMismatchError(
                f"a traced array cannot be formatted as {spec!r}",
                got=f"{self.type}, {self.origin()}",
                fix='print it when the program runs: infini.debug.print("{}", x)',
            )
        return format(str(self), spec) if found is None else format(found, spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.type}{', weak' if self.weak else ''}>"


_STATIC: Final = "or mark the argument it comes from static with static_argnums"
_KEEP: Final = "keep the array and compute with it; or return it from the function and convert it outside"


class Eval(Interpreter):
    """Run operations at once, each as a cached program of one equation."""

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[value.Value],
        attrs: ir.Attrs,
        out_types: tuple[ir.ArrayType, ...],
    ) -> tuple[value.Value, ...]:
        arrays = [to_array(arg) for arg in args]
        weak = out_weak(op, args, attrs, len(out_types))
        results = execute.run_equation(op, arrays, attrs)
        return tuple(result.with_weak(flag) for result, flag in zip(results, weak, strict=True))


def to_array(x: value.Value) -> array_.Array:
    """A concrete value as an array.

    Raises:
        LeakedTracerError: `x` is a tracer whose transformation has finished.
    """
    if isinstance(x, array_.Array):
        return x
    if isinstance(x, value.Literal):
        return array_.materialize(x)
    raise leaked(x)


def leaked(x: value.Value) -> errors.LeakedTracerError:
    """The error for a tracer used outside its transformation."""
    assert isinstance(x, Tracer)
    return errors.LeakedTracerError(
        f"a traced value of type {x.type} was used after {x.owner} had finished",
        got=f"a value {x.origin()}",
        expected="values of the transformation that is running, and arrays",
        fix="return it from the transformed function instead of storing it in a global, attribute or list; "
        "with infini.checking_leaks(): finds where it is stored",
    )


def out_weak(
    op: primitive.Primitive, args: Sequence[value.Value], attrs: ir.Attrs, count: int
) -> tuple[bool, ...]:
    """Weak flags of the results: by the WEAK rule, or weak when every operand is."""
    rule = op.rules.get(primitive.WEAK)
    if rule is not None:
        flags = rule(tuple(arg.weak for arg in args), attrs)
        return (flags,) * count if isinstance(flags, bool) else tuple(flags)
    return (bool(args) and all(arg.weak for arg in args),) * count


_EVAL = Eval(None)
_current: contextvars.ContextVar[Interpreter] = contextvars.ContextVar("infini_interpreter", default=_EVAL)
_axes: contextvars.ContextVar[tuple[tuple[str, int], ...]] = contextvars.ContextVar("infini_axes", default=())

_line: contextvars.ContextVar[source.Where | None] = contextvars.ContextVar("infini_line", default=None)

current = _current.get


@contextlib.contextmanager
def at_line(where: source.Where | None) -> Iterator[None]:
    """Attribute what happens inside the block to a line of the user: derived equations keep the line they
    derive from.
    """
    token = _line.set(where if where is not None else _line.get())
    try:
        yield
    finally:
        _line.reset(token)


def user_line() -> source.Where | None:
    """The user's line that is being traced: an inherited one, or the innermost on the stack."""
    return _line.get() or source.here()


@contextlib.contextmanager
def running(interpreter: Interpreter) -> Iterator[None]:
    """Make `interpreter` the current one inside the block."""
    token = _current.set(interpreter)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run operations at once inside the block, whatever is being traced."""
    with running(_EVAL):
        yield


def is_eager() -> bool:
    """Whether operations run at once, outside every transformation."""
    return _current.get() is _EVAL


def plain_state() -> list[tuple[object, str | None, object]]:
    """What holds outside every transformation and named axis: (context variable, None, value)."""
    return [(_current, None, _EVAL), (_axes, None, ())]


@contextlib.contextmanager
def named_axes(*axes: tuple[str, int]) -> Iterator[None]:
    """Make axis names known to collectives inside the block, innermost last."""
    token = _axes.set(_axes.get() + axes)
    try:
        yield
    finally:
        _axes.reset(token)


def axis_size(name: str) -> int:
    """Size of a named axis.

    Raises:
        UnboundAxisError: no enclosing vmap or shard_map names it.
    """
    for known, size in reversed(_axes.get()):
        if known == name:
            return size
    raise errors.UnboundAxisError(
        f"there is no axis named {name!r} here",
        expected=", ".join(repr(n) for n, _ in _axes.get())
        or "an enclosing vmap(axis_name=...) or shard_map",
    )


def axis_env() -> tuple[tuple[str, int], ...]:
    """The named axes in scope; part of the key of every traced program."""
    return _axes.get()


def as_value(x: object) -> value.Value:
    """`x` as an operand: values pass, `__infini_array__` is honoured, host data become literals."""
    if isinstance(x, value.Value):
        return x
    convert = getattr(x, "__infini_array__", None)
    return convert() if convert is not None else value.literal(x)


def bind(op: primitive.Primitive, *args: object, **attrs: object) -> tuple[value.Value, ...]:
    """Apply an operation under the current interpreter: canonical operands, type rule once, then
    `process`.
    """
    values = [as_value(arg) for arg in args]
    frozen = ir.Attrs(attrs) if attrs else ir.NO_ATTRS
    return bind_attrs(op, values, frozen)


def bind_attrs(
    op: primitive.Primitive, values: Sequence[value.Value], attrs: ir.Attrs
) -> tuple[value.Value, ...]:
    """As `bind`, for operands and attributes that are canonical."""
    interpreter = _current.get()
    if interpreter.manual is not None:
        op, values, attrs = interpreter.manual.prepare(op, values, attrs)
    out_types = ir.infer_types(op, [v.type for v in values], attrs)
    return interpreter.process(op, values, attrs, out_types)


def bind1(op: primitive.Primitive, *args: object, **attrs: object) -> value.Value:
    """Apply an operation with one result."""
    (result,) = bind(op, *args, **attrs)
    return result


class StagedTracer(Tracer):
    """A value of a program under construction; `number` is set for its arguments."""

    __slots__ = ("_varying", "number", "variable")

    def __init__(
        self, owner: Staging, var: ir.Var, weak: bool, number: int | None = None, varying: Varying = EQUAL
    ) -> None:
        super().__init__(owner, var.type, weak)
        self.variable = var
        self.number = number
        self._varying = varying

    @property
    def varying(self) -> Varying:
        """See `Tracer`."""
        return self._varying

    def origin(self) -> str:
        """Where the value comes from, for messages."""
        if self.number is None:
            return super().origin()
        function = self.owner.function or "the function"
        return (
            f"that is array {self.number} among the arguments of {function} "
            f"({self.owner.transform}, called at {self.born})"
        )


class Staging(Interpreter):
    """Write operations into a program. Values from outside are captured by identity and become hidden
    parameters.
    """

    transform = "tracing"

    def __init__(self, parent: Interpreter | None, function: str = "", manual: Manual | None = None) -> None:
        super().__init__(parent, function)
        self.manual = (
            manual  # programs that are traced again hold all that it adds, and do not say what varies
        )
        self.builder = ir.Builder()
        self.captures: dict[int, tuple[ir.Var, value.Value]] = {}
        self.num_parameters = 0

    def parameter(self, type: ir.ArrayType, weak: bool = False, varying: Varying = EQUAL) -> StagedTracer:
        """A tracer for a fresh parameter."""
        self.num_parameters += 1
        return StagedTracer(self, ir.Var(type), weak, self.num_parameters - 1, varying)

    def var(self, x: value.Value) -> ir.Var:
        """The variable that holds `x` in the program under construction."""
        if isinstance(x, StagedTracer) and x.owner is self:
            if self.is_closed:
                raise leaked(x)
            return x.variable
        if isinstance(x, value.Literal) and x.size <= ir.Constant.MAX_SIZE:
            return self.builder.constant(x.host)
        if isinstance(x, array_.Array) and x.size <= ir.Constant.MAX_SIZE and not x.committed:
            return self.builder.constant(x.to_host())
        if isinstance(x, Tracer) and x.owner.is_closed:
            raise leaked(x)
        if id(x) not in self.captures:
            self.captures[id(x)] = (ir.Var(x.type), x)
        return self.captures[id(x)][0]

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[value.Value],
        attrs: ir.Attrs,
        out_types: tuple[ir.ArrayType, ...],
    ) -> tuple[value.Value, ...]:
        outputs = self.builder.emit(
            op, [self.var(a) for a in args], attrs, where=user_line(), out_types=out_types
        )
        weak = out_weak(op, args, attrs, len(outputs))
        if self.manual is None:
            return tuple(StagedTracer(self, v, flag) for v, flag in zip(outputs, weak, strict=True))
        varying = self.manual.results(op, args, attrs, len(outputs))
        return tuple(
            StagedTracer(self, v, flag, varying=axes)
            for v, flag, axes in zip(outputs, weak, varying, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Staged:
    """A traced function: the program takes `captures` first, then the declared parameters."""

    program: ir.Program
    captures: tuple[value.Value, ...]
    weak: tuple[bool, ...]
    varying: tuple[Varying, ...] = ()

    @property
    def has_captured_tracers(self) -> bool:
        """Whether it closes over values of an enclosing transformation, so it must not be kept."""
        return any(isinstance(capture, Tracer) for capture in self.captures)


def stage(
    f: Callable[..., Sequence[object]],
    types: Sequence[ir.ArrayType],
    *,
    weak: Sequence[bool] | None = None,
    name: str = "main",
    transform: str = "tracing",
    varying: Sequence[Varying] | None = None,
    manual: Manual | None = None,
) -> Staged:
    """Trace `f`, a function of flat values that returns flat values, at the given types.

    Args:
        f: function to trace.
        types: types of its parameters.
        weak: weak flags of the parameters; all strong when absent.
        name: name of the program.
        transform: what traces it, for messages.
        varying: along which manual axes the parameters vary, see `varying_of`; where it is absent, nothing
            is asked of the operations inside.
        manual: what `shard_map` asks of the operations; what holds here already when absent.

    Raises:
        LeakedTracerError: a result belongs to a transformation that has finished.
    """
    asked = None if varying is None else manual or current().manual
    staging = Staging(current(), name, asked)
    staging.transform = transform
    flags = weak if weak is not None else (False,) * len(types)
    axes = varying if varying is not None else (EQUAL,) * len(types)
    params = [staging.parameter(*each) for each in zip(types, flags, axes, strict=True)]
    with running(staging):
        outputs = [as_value(result) for result in f(*params)]
        results = [staging.var(output) for output in outputs]
    staging.is_closed = True
    captured = list(staging.captures.values())
    program = staging.builder.build(
        [var for var, _ in captured] + [p.variable for p in params], results, name=name
    )
    if config.get("check") >= 2:
        check.check(program)
    staged = Staged(
        program,
        tuple(x for _, x in captured),
        tuple(output.weak for output in outputs),
        tuple(varying_axes(output) for output in outputs) if asked is not None else (),
    )
    if config.get("check_tracer_leaks"):
        params.clear()
        outputs.clear()
        leaks.check(staging)
    return staged


def varying_axes(x: value.Value) -> Varying:
    """Manual axes along which devices hold different values; none outside of `shard_map`."""
    return x.varying if isinstance(x, Tracer) else EQUAL


def varying_of(values: Sequence[value.Value]) -> tuple[Varying, ...] | None:
    """Along which manual axes operands vary, for the parameters of a body that is traced for them; None
    outside of `shard_map(check_vma=True)`. Part of the key of a body that is kept.
    """
    manual = _current.get().manual
    return None if manual is None else tuple([manual.varying(x) for x in values])


def evaluate(program: ir.Program, args: Sequence[value.Value]) -> tuple[value.Value, ...]:
    """Apply a program to values, equation by equation, under the current interpreter."""
    env: dict[ir.Var, value.Value] = dict(zip(program.params, args, strict=True))
    for var, constant in program.consts:
        env[var] = value.Literal(constant.array, weak=False)
    for equation in program.equations:
        with at_line(equation.where):
            results = bind_attrs(equation.op, [env[v] for v in equation.inputs], equation.attrs)
        env.update(zip(equation.outputs, results, strict=True))
    return tuple(env[v] for v in program.results)
