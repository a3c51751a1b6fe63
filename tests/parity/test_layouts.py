"""Layouts against JAX on the CPU, which has permutations of dimensions: formats, results and refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.experimental.layout as jax_layout
import jax.numpy as jnp
import numpy as np
import pytest

import infini as inf
import infini.experimental.layout as inf_layout
import infini.numpy as inp

BOTH = [(jax, jnp, jax_layout), (inf, inp, inf_layout)]
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def place(library: Any) -> Any:
    return library.sharding.SingleDeviceSharding(library.devices()[0])


def auto(library: Any, f: Any, lib: Any, **options: Any) -> Any:
    return library.jit(f, in_shardings=lib.Format(lib.Layout.AUTO), **options)


def moved(library: Any, numpy: Any, lib: Any) -> Any:
    return library.device_put(numpy.asarray(X), lib.Format(lib.Layout((1, 0)), place(library)))


def fixed(library: Any, lib: Any) -> Any:
    return library.jit(lambda x: x * 2, in_shardings=lib.Format(lib.Layout((1, 0)), place(library)))


# What a program shows, as text.
SHOWN = {
    "layout": lambda m, n, lib: lib.Layout((1, 0)),
    "tiled layout": lambda m, n, lib: lib.Layout((0, 1), ((8, 128),)),
    "updated layout": lambda m, n, lib: lib.Layout((0, 1)).update(major_to_minor=(1, 0)),
    "equal": lambda m, n, lib: (
        lib.Layout((0, 1)) == lib.Layout([0, 1]), lib.Layout((0, 1)) == lib.Layout((0, 1), ())
    ),
    "auto": lambda m, n, lib: lib.Format(lib.Layout.AUTO),
    "empty": lambda m, n, lib: lib.Format(),
    "array": lambda m, n, lib: n.asarray(X).format.layout,
    "moved": lambda m, n, lib: moved(m, n, lib).format.layout,
    "strides": lambda m, n, lib: np.asarray(moved(m, n, lib)).strides,
    "contents": lambda m, n, lib: np.asarray(moved(m, n, lib)).tolist(),
    "result": lambda m, n, lib: m.jit(lambda x: x + 1)(moved(m, n, lib)).format.layout,
    "eager result": lambda m, n, lib: (moved(m, n, lib) + 1).format.layout,
    "put again": lambda m, n, lib: m.device_put(moved(m, n, lib), place(m)).format.layout,
    "without layout": lambda m, n, lib: m.device_put(n.asarray(X), lib.Format()).format.layout,
    "in a tree": lambda m, n, lib: m.device_put(
        {"a": X, "b": X}, {"a": lib.Format(lib.Layout((1, 0)), place(m)), "b": place(m)}
    )["a"].format.layout,
    "wanted by the argument": lambda m, n, lib: (
        m.jit(lambda x: x * 2).lower(moved(m, n, lib)).compile().input_formats[0][0].layout
    ),
    "wanted by its description": lambda m, n, lib: (
        m.jit(lambda x: x * 2)
        .lower(m.ShapeDtypeStruct((3, 4), n.float32, sharding=lib.Format(lib.Layout((1, 0)), place(m))))
        .compile().input_formats[0][0].layout
    ),
    "structure": lambda m, n, lib: m.tree.map(
        lambda f: f.layout.major_to_minor,
        m.jit(lambda d, *, k: d["a"] + k).lower({"a": X}, k=X).compile().input_formats,
    ),
    "asked result": lambda m, n, lib: m.jit(
        lambda x: x * 2, out_shardings=lib.Format(lib.Layout((1, 0)), place(m))
    )(X).format.layout,
    "asked and not placed": lambda m, n, lib: np.asarray(fixed(m, lib)(n.asarray(X))).tolist(),
    "compiled and not placed": lambda m, n, lib: np.asarray(
        fixed(m, lib).lower(X).compile()(n.asarray(X))
    ).tolist(),
    "auto called": lambda m, n, lib: np.asarray(auto(m, lambda x: x + 1, lib)(n.asarray(X))).tolist(),
}  # fmt: skip

# What a program refuses, with the kind of the error.
REFUSED = {
    "no sharding": lambda m, n, lib: lib.Format(lib.Layout((1, 0))),
    "no layout": lambda m, n, lib: lib.Format("x"),
    "wrong sharding": lambda m, n, lib: lib.Format(None, "x"),
    "put with another rank": lambda m, n, lib: m.device_put(X, lib.Format(lib.Layout((0,)), place(m))),
    "put by auto": lambda m, n, lib: m.device_put(n.asarray(X), lib.Format(lib.Layout.AUTO, place(m))),
    "put in a bare layout": lambda m, n, lib: m.device_put(X, lib.Layout((1, 0))),
    "jit with a bare layout": lambda m, n, lib: m.jit(lambda x: x, in_shardings=lib.Layout((0, 1)))(X),
    "jit with another rank": lambda m, n, lib: m.jit(
        lambda x: x, in_shardings=lib.Format(lib.Layout((0,)), place(m))
    )(X),
    "auto of a placed argument": lambda m, n, lib: auto(m, lambda x: x * 2, lib)(moved(m, n, lib)),
    "auto of a placed row-major argument": lambda m, n, lib: auto(m, lambda x: x * 2, lib)(
        m.device_put(X, place(m))
    ),
    "auto lowered at a placed argument": lambda m, n, lib: (
        auto(m, lambda x: x * 2, lib).lower(moved(m, n, lib))
    ),
    "auto of a donated argument": lambda m, n, lib: auto(m, lambda x: x + 1, lib, donate_argnums=0)(
        n.asarray(X)
    ),
    "placed otherwise": lambda m, n, lib: fixed(m, lib)(m.device_put(X, place(m))),
    "compiled for row-major": lambda m, n, lib: m.jit(lambda x: x * 2).lower(X).compile()(moved(m, n, lib)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_layouts_are_shown_as_in_jax(name: str):
    expected, found = (repr(SHOWN[name](*library)) for library in BOTH)
    assert found == expected


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_are_refused_as_in_jax(name: str):
    kinds = []
    for library in BOTH:
        with pytest.raises((ValueError, TypeError)) as error:
            REFUSED[name](*library)
        kinds.append(isinstance(error.value, ValueError))
    assert kinds[0] == kinds[1]
