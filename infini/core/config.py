"""The knobs: one table, read from `INFINI_*` at import, changed for a block by `with infini.config(x=...)`
and for the process by `infini.config.update("x", ...)`.

A broken value in the environment raises at import. Knobs with `in_key=True` change results and are part
of every cache key. `docs/knobs.md` is made from the table by `document`.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infini.core import errors


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of values: how people are told about it, and how it is read from text."""

    values: str
    read: Callable[[str], Any]  # Any: knobs have different types


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting: its default, what kind of value it takes, what it does."""

    name: str
    default: Any  # Any: knobs have different types
    kind: Kind
    doc: str
    in_key: bool = False


def _read_flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected 0 or 1")


def _read_count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("expected a number of at least 0")
    return number


def _read_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("expected a number of at least 1")
    return number


def _read_ranks(text: str) -> str:
    if text != "all" and not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError("expected `all`, or numbers of processes separated by commas")
    return text


def _choice(*allowed: str) -> Kind:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return text

    return Kind(", ".join(f"`{name}`" for name in allowed), read)


_FLAG: Final = Kind("0 or 1", _read_flag)
_COUNT: Final = Kind("a number from 0", _read_count)
_NUMBER: Final = Kind("a number from 1", _read_number)
_INTEGER: Final = Kind("an integer", int)
_TEXT: Final = Kind("any text", str)
_RANKS: Final = Kind("`all`, or numbers separated by commas", _read_ranks)
_NAMES: Final = Kind(
    "names, separated by commas", lambda text: tuple(name for name in text.split(",") if name)
)

KNOBS: Final[dict[str, Knob]] = {
    knob.name: knob
    for knob in (
        Knob(
            "device",
            "",
            _TEXT,
            "Default device, such as `cpu`, `cuda:1` or `reference`; empty picks the best there is.",
        ),
        Knob(
            "check",
            0,
            _COUNT,
            "1 checks programs between passes, and arrays that all processes put on a mesh; 2 also re-checks "
            "every traced program.",
        ),
        Knob(
            "dump",
            (),
            _NAMES,
            "Stages to write to files: names of passes, `kernels`, `llvm`, `assembly`, `triton`, or `all`.",
        ),
        Knob("dump_dir", "infini-dump", _TEXT, "Folder for dumps, one folder per program in it."),
        Knob(
            "log",
            "warning",
            _choice("debug", "info", "warning", "error"),
            "Least severe event that is logged.",
        ),
        Knob(
            "log_ranks",
            "0",
            _RANKS,
            "Processes of a job that log events and say how a command goes on; warnings and errors are "
            "shown by all. Each line begins with the number of its process.",
        ),
        Knob("disable_jit", False, _FLAG, "Run jitted functions and control flow as plain Python."),
        Knob("explain", False, _FLAG, "Log why a jitted function was traced again."),
        Knob("check_tracer_leaks", False, _FLAG, "Raise when a traced value outlives its transformation."),
        Knob("nan", False, _FLAG, "Name the equation that made a NaN, and raise, when a result has one."),
        Knob("inf", False, _FLAG, "The same for infinities."),
        Knob("no_fuse", False, _FLAG, "One kernel per equation.", in_key=True),
        Knob("cache_mib", 2048, _COUNT, "Bound of what is kept on disk, in MiB; the oldest goes first."),
        Knob(
            "memory_budget",
            0,
            _COUNT,
            "Bytes of temporaries that a compiled program should need; to keep to them it computes again "
            "what is cheap. 0 means no bound. Never changes a result.",
            in_key=True,
        ),
        Knob("no_cache", False, _FLAG, "Do not read or write compiled objects on disk."),
        Knob(
            "cache_dir",
            "",
            _TEXT,
            "Folder of compiled objects and tokenised text; empty means the user's cache folder.",
        ),
        Knob("models_dir", "", _TEXT, "Folder of pulled models; empty means the user's data folder."),
        Knob(
            "num_threads",
            0,
            _COUNT,
            "Threads of the CPU pool; 0 means one per physical core. Never changes a result.",
        ),
        Knob("pool", "auto", _choice("auto", "native", "portable"), "CPU thread pool; `native` needs Linux."),
        Knob("cpu_devices", 1, _NUMBER, "Devices that one process simulates on the CPU, run in lockstep."),
        Knob(
            "collective_timeout_s",
            300,
            _COUNT,
            "Seconds that a collective waits for a process that lives and does not arrive, before the job "
            "ends with a report on all of them; 0 means for ever.",
        ),
        Knob(
            "host64",
            "narrow",
            _choice("narrow", "keep"),
            "What 64-bit host data become: the 32-bit default, or kept.",
        ),
        Knob(
            "tune",
            "on",
            _choice("off", "cached", "on", "all"),
            "Choices between a library and kernels: `on` measures once per shape and keeps the answer on "
            "disk, `cached` takes what was measured before and measures nothing, `off` takes the "
            "first candidate; `all` is `on`, and tunes kernels of `tile` when they are first called outside "
            "of jit.",
            in_key=True,
        ),
        Knob(
            "call_path",
            "native",
            _choice("native", "python"),
            "What repeats the calls of jitted functions on the CPU: machine code where it can, or Python.",
        ),
        Knob("seed", 0, _INTEGER, "Seed of commands that take none."),
    )
}


def _from_environment() -> dict[str, Any]:  # Any: knobs have different types
    values = {}
    for knob in KNOBS.values():
        text = os.environ.get(f"INFINI_{knob.name.upper()}")
        try:
            values[knob.name] = knob.default if text is None else knob.kind.read(text)
        except ValueError as error:
            raise errors.ValueMismatchError(
                f"the environment variable INFINI_{knob.name.upper()} has a wrong value",
                got=repr(text),
                expected=str(error),
                fix=knob.doc,
            ) from None
    unknown = sorted(
        key for key in os.environ if key.startswith("INFINI_") and key[len("INFINI_") :].lower() not in KNOBS
    )
    allowed_elsewhere = ("INFINI_LAUNCHER", "INFINI_REQUIRE_WEB", "INFINI_API_KEY")
    # Options of commands: INFINI_SERVE_PORT is --port of `infini serve`.
    if unknown := [
        key for key in unknown if key not in allowed_elsewhere and not key.startswith("INFINI_SERVE_")
    ]:
        raise errors.ValueMismatchError(
            f"unknown environment variable {unknown[0]}",
            expected="one of " + ", ".join(f"INFINI_{name.upper()}" for name in KNOBS),
            fix="correct or unset it",
        )
    return values


@dataclass(frozen=True, slots=True)
class Scope:
    """Values of all knobs, and of those that are part of cache keys."""

    values: Mapping[str, Any]  # Any: knobs have different types
    key: tuple[object, ...]
    inspects: bool  # whether the results of programs are looked at

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Scope:
        """The scope with these values."""
        key = tuple(values[knob.name] for knob in KNOBS.values() if knob.in_key)
        return cls(values, key, values["nan"] or values["inf"])


class _Process:
    """The values outside every block, for all threads."""

    def __init__(self) -> None:
        self.scope = Scope.of(_from_environment())


_process: Final = _Process()
_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("infini_config", default=None)


def current() -> Scope:
    """The values of this moment, in this thread or task."""
    return _scope.get() or _process.scope


def in_block() -> bool:
    """Whether knobs are set for a block, whose values end with it."""
    return _scope.get() is not None


def plain_state() -> list[tuple[object, str | None, object]]:
    """What holds while no block sets knobs and the knobs of the process stay: see `backend.CallPath`."""
    return [(_scope, None, None), (_process, _SCOPE_NAME, _process.scope)]


_SCOPE_NAME: Final = "scope"


def get(name: str) -> Any:  # Any: knobs have different types
    """The current value of a knob."""
    return current().values[name]


def cache_key() -> tuple[object, ...]:
    """Values of the knobs that change results, for cache keys."""
    return current().key


def _checked(changes: Mapping[str, Any]) -> dict[str, Any]:  # Any: knobs have different types
    """Changes with texts read, and counts looked at.

    Raises:
        ValueMismatchError: there is no such knob, or the value is not one of its values.
    """
    found = dict(changes)
    for name, value in changes.items():
        if name not in KNOBS:
            raise errors.ValueMismatchError(f"there is no knob named {name!r}", expected=", ".join(KNOBS))
        kind = KNOBS[name].kind
        if isinstance(value, str) or (kind in (_COUNT, _NUMBER) and isinstance(value, int)):
            try:
                found[name] = kind.read(value if isinstance(value, str) else str(int(value)))
            except ValueError as error:
                raise errors.ValueMismatchError(
                    f"the knob {name!r} has a wrong value",
                    got=repr(value),
                    expected=str(error).removeprefix("expected "),
                    fix=KNOBS[name].doc,
                ) from None
    return found


def _platform(names: str | None) -> str:
    """The first of JAX's names of platforms as one of ours."""
    first = (names or "").partition(",")[0]
    return "cuda" if first == "gpu" else first


# JAX's flags that mean something here: the knob, and what a value of the flag becomes.
_JAX_FLAGS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {  # Any: flags have different types
    "jax_check_tracer_leaks": ("check_tracer_leaks", bool),
    "jax_compilation_cache_dir": ("cache_dir", lambda folder: folder or ""),
    "jax_debug_infs": ("inf", bool),
    "jax_debug_nans": ("nan", bool),
    "jax_disable_jit": ("disable_jit", bool),
    "jax_enable_checks": ("check", int),
    "jax_enable_compilation_cache": ("no_cache", lambda is_on: not is_on),
    "jax_explain_cache_misses": ("explain", bool),
    "jax_logging_level": ("log", str.lower),
    "jax_num_cpu_devices": ("cpu_devices", lambda count: 1 if count == -1 else int(count)),  # -1: not set
    "jax_platform_name": ("device", _platform),
    "jax_platforms": ("device", _platform),
}


class Configuration:
    """All knobs: called, it changes some within a block; `update` changes one for the whole process.

    Reading an attribute gives the value of the knob of that name, as in `infini.config.num_threads`.
    """

    @contextlib.contextmanager
    def __call__(self, **changes: Any) -> Iterator[None]:  # Any: knobs have different types
        """Change knobs within a block, in this thread or task only.

        Args:
            **changes: knob names and values; see `infini.core.config.KNOBS`.

        Raises:
            ValueMismatchError: there is no such knob, or the value is not one of its values.

        Example:
            >>> import infini
            >>> with infini.config(no_fuse=True):
            ...     pass
        """
        token = _scope.set(Scope.of({**current().values, **_checked(changes)}))
        try:
            yield
        finally:
            _scope.reset(token)

    def update(self, name: str, value: Any) -> None:  # Any: knobs have different types
        """Change a knob for the whole process, as `jax.config.update`.

        Args:
            name: knob, or a flag of JAX that means something here, such as `jax_debug_nans`.
            value: its value; blocks that set the knob keep theirs until they end.

        Raises:
            ValueMismatchError: there is no such knob or flag, or the value is not one of its values.
        """
        if name == "jax_enable_x64" and value:
            raise errors.ValueMismatchError(
                "infini has no 64-bit mode: 64-bit dtypes need no flag",
                got="jax_enable_x64",
                fix='pass dtype="float64" where arrays are made; with config.update("host64", "keep") arrays '
                "from NumPy keep 64 bits",
            )
        if name in _JAX_FLAGS:
            name, convert = _JAX_FLAGS[name]
            value = convert(value)
        elif name.startswith("jax_") and name != "jax_enable_x64":
            raise errors.ValueMismatchError(
                f"JAX's flag {name!r} means nothing here", expected=", ".join(sorted(_JAX_FLAGS))
            )
        if name == "jax_enable_x64":
            return
        change = _checked({name: value})
        _process.scope = Scope.of({**_process.scope.values, **change})
        inner = _scope.get()
        if inner is not None:
            _scope.set(Scope.of({**inner.values, **change}))

    def __getattr__(self, name: str) -> Any:  # Any: knobs have different types
        if name in KNOBS:
            return get(name)
        raise AttributeError(f"there is no knob named {name!r}")


config: Final = Configuration()


def debug_nans(is_on: bool = True) -> contextlib.AbstractContextManager[None]:
    """Within a block, name the equation that made a NaN, and raise; as `jax.debug_nans`."""
    return config(nan=is_on)


def debug_infs(is_on: bool = True) -> contextlib.AbstractContextManager[None]:
    """Within a block, name the equation that made an infinity, and raise; as `jax.debug_infs`."""
    return config(inf=is_on)


def check_tracer_leaks(is_on: bool = True) -> contextlib.AbstractContextManager[None]:
    """Within a block, raise when a traced value outlives its transformation; as `jax.check_tracer_leaks`."""
    return config(check_tracer_leaks=is_on)


def document() -> str:
    """The page `docs/knobs.md`: every knob with its variable, values, default and meaning."""
    rows = "\n".join(
        f"| `{k.name}` | `INFINI_{k.name.upper()}` | {k.kind.values} | {_default_text(k)} | {k.doc} |"
        for k in KNOBS.values()
    )
    keyed = ", ".join(f"`{knob.name}`" for knob in KNOBS.values() if knob.in_key)
    flags = "\n".join(f"| `{flag}` | `{name}` |" for flag, (name, _) in sorted(_JAX_FLAGS.items()))
    return _PAGE.format(rows=rows, keyed=keyed, flags=flags)


def _default_text(knob: Knob) -> str:
    if knob.default is False or knob.default == "" or knob.default == ():
        return "off" if knob.default is False else "empty"
    return f"`{knob.default}`"


_PAGE: Final = """# Knobs

Every setting of infini. This page is made from the table in `infini/core/config.py`; a test keeps it in step
(`pytest tests/core/test_config.py --update-golden` writes it).

A knob is set for a process by its environment variable, for a block by `with infini.config(name=value):`,
and for the rest of the process by `infini.config.update("name", value)`. `infini.config.name` reads it. An
unknown name or a wrong value is an error that says what is allowed; in the environment it is raised when
infini is imported.

| knob | variable | values | default | what it does |
|---|---|---|---|---|
{rows}

Knobs that change results are part of the key of every compiled program: {keyed}.

## JAX's flags

`infini.config.update` takes these flags of `jax.config.update` as well:

| flag | knob |
|---|---|
{flags}

`infini.debug_nans()`, `infini.debug_infs()` and `infini.check_tracer_leaks()` are JAX's blocks.
"""
