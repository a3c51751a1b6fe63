"""Design 4a.11: a compiled program names the layouts it wants, arrays are repacked once, and shapes and
results do not know of it.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors, events
from infini.experimental.layout import Format, Layout, with_layout_constraint
from infini.sharding import Mesh, NamedSharding, P, SingleDeviceSharding

AUTO = Format(Layout.AUTO)
LAYOUTS = [Layout((1, 0)), Layout((0, 1), ((2, 3),)), Layout((1, 0), ((4, 2),)), Layout((0, 1), ((3,),))]


def here() -> SingleDeviceSharding:
    return SingleDeviceSharding(inf.devices()[0])


def host(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def phases(compiled: Any) -> list[str]:
    """Kinds of the native tasks of a program, in order."""
    steps = compiled.runtime_executable().block.steps
    return [task.name.partition("_")[0] for step in steps for task in getattr(step, "tasks", ())]


def wanted(f: Any, *arrays: Any) -> tuple[Any, list[Any]]:
    """A function compiled with the layouts it likes best, and the arguments in them."""
    shapes = [inf.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    compiled = inf.jit(f, in_shardings=AUTO).lower(*shapes).compile()
    moved = [inf.device_put(x, where) for x, where in zip(arrays, compiled.input_formats[0], strict=True)]
    return compiled, moved


# --- arrays in a layout ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_array_in_a_layout_is_the_same_array(layout: Layout):
    expected = host((5, 7))
    x = inf.device_put(inp.asarray(expected), Format(layout, here()))
    assert x.shape == (5, 7)
    assert x.format.layout == layout.update(tiling=layout.tiling or ())
    np.testing.assert_array_equal(np.asarray(x), expected)
    np.testing.assert_array_equal(np.asarray(x[2]), expected[2])
    np.testing.assert_array_equal(np.asarray(x + 1), expected + 1)
    np.testing.assert_array_equal(np.from_dlpack(x), expected)
    np.testing.assert_array_equal(np.asarray(copy.deepcopy(x)), expected)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(x))), expected)
    assert x.tolist() == expected.tolist()
    assert bytes(x) == expected.tobytes()
    assert repr(x) == repr(inp.asarray(expected))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_jitted_function_takes_any_layout(layout: Layout, backend_name: str):
    a, b = np.round(host((6, 5)) * 4), np.round(host((7, 5)) * 4)  # sums of these are exact in any order
    where = SingleDeviceSharding(inf.devices(backend_name)[0])
    f = inf.jit(lambda a, b: a @ b.T + a.sum())
    plain = [inf.device_put(x, where) for x in (a, b)]
    moved = [inf.device_put(x, Format(layout, where)) for x in (a, b)]
    expected = np.asarray(f(*plain))
    for first in (plain[0], moved[0]):
        for second in (plain[1], moved[1]):
            np.testing.assert_array_equal(np.asarray(f(first, second)), expected)
    assert f.num_traces == 1


def test_a_layout_is_memory_and_not_a_copy():
    x = inp.asarray(host((5, 7)))
    y = inf.device_put(x, Format(Layout((1, 0)), here()))
    assert np.asarray(y).strides == (4, 20)
    assert inf.device_put(y, y.format).unsafe_buffer_pointer() == y.unsafe_buffer_pointer()
    assert inf.device_put(y, here()).unsafe_buffer_pointer() == y.unsafe_buffer_pointer()
    assert (
        inf.device_put(x, Format(Layout((0, 1)), here())).unsafe_buffer_pointer() == x.unsafe_buffer_pointer()
    )
    padded = inf.device_put(x, Format(Layout((0, 1), ((4, 4),)), here()))
    assert padded.on_device_size_in_bytes() == 8 * 8 * 4
    assert padded.nbytes == x.nbytes


def test_repacking_frees_the_original_when_it_is_donated():
    x = inp.asarray(host((64, 64)))
    y = inf.device_put(x, Format(Layout((0, 1), ((16, 16),)), here()), donate=True)
    assert x.is_deleted()
    assert not y.is_deleted()


def test_a_donated_array_in_a_layout_is_deleted():
    x = inf.device_put(inp.asarray(host((64, 64))), Format(Layout((1, 0)), here()))
    found = inf.jit(lambda x: x.T * 2, donate_argnums=0)(x)
    np.testing.assert_array_equal(np.asarray(found), host((64, 64)).T * 2)
    assert x.is_deleted()
    with pytest.raises(errors.DeletedBufferError):
        x + 1


def test_arrays_that_a_function_closes_over_keep_their_layout():
    weight = host((100, 520))
    captured = inf.device_put(inp.asarray(weight), Format(Layout((0, 1), ((100, 32),)), here()))
    f, x = inf.jit(lambda x: x @ captured), inp.asarray(host((64, 100)))
    assert phases(f.lower(x).compile()) == ["gemm"]
    expected = inf.jit(lambda x, w: x @ w)(x, inp.asarray(weight))
    np.testing.assert_array_equal(np.asarray(f(x)), np.asarray(expected))


def test_transformations_take_arrays_in_layouts():
    w = inf.device_put(inp.asarray(host((5, 7))), Format(Layout((0, 1), ((4, 4),)), here()))
    x = inp.asarray(host((3, 5)))

    def loss(w: Any, x: Any) -> Any:
        return inp.tanh(x @ w).sum()

    plain = inp.asarray(host((5, 7)))
    np.testing.assert_allclose(inf.grad(loss)(w, x), inf.grad(loss)(plain, x), rtol=1e-6)
    mapped = inf.vmap(loss, in_axes=(None, 0))
    np.testing.assert_allclose(mapped(w, x), mapped(plain, x), rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_parts_of_an_array_on_a_mesh_have_the_layout(layout: Layout):
    with inf.config(cpu_devices=2):
        mesh = Mesh(np.array(inf.devices()[:2]), ("d",))
        x = host((8, 6))
        plain = inf.device_put(x, NamedSharding(mesh, P("d")))
        moved = inf.device_put(plain, Format(layout, plain.sharding))
        assert moved.format == Format(layout.update(tiling=layout.tiling or ()), plain.sharding)
        np.testing.assert_array_equal(np.asarray(moved), x)
        f = inf.jit(lambda x: (x * 2) @ inp.ones((6, 3)))
        np.testing.assert_array_equal(np.asarray(f(moved)), np.asarray(f(plain)))
        for shard in moved.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), x[shard.index])


# --- what a program wants -------------------------------------------------------------------------


WEIGHTS = {
    "matrix": (lambda x, w: x @ w, (256, 300), (300, 523), inp.float32, ((0, 1), ((300, 32),))),
    "few rows": (lambda x, w: x @ w, (8, 300), (300, 523), inp.float32, ((0, 1), ((300, 32),))),
    "transposed": (lambda x, w: x @ w.T, (128, 300), (523, 300), inp.float32, ((1, 0), ((300, 32),))),
    "with loops": (
        lambda x, w: inp.tanh(x @ w), (2, 64, 300), (300, 523), inp.float32, ((0, 1), ((300, 32),))
    ),
    "stacked": (
        lambda x, w: inp.einsum("ebk,ekn->ebn", x, w),
        (3, 200, 100), (3, 100, 520), inp.float32, ((0, 1, 2), ((100, 32),)),
    ),
    "bfloat16": (lambda x, w: x @ w, (200, 600), (600, 512), inp.bfloat16, ((0, 1), ((600, 32),))),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_products_wants_its_panels_and_is_not_packed_again(name: str):
    f, x_shape, w_shape, dtype, expected = WEIGHTS[name]
    x, w = inp.asarray(host(x_shape)).astype(dtype), inp.asarray(host(w_shape)).astype(dtype)
    plain = inf.jit(f).lower(x, w).compile()
    compiled, moved = wanted(f, x, w)
    layout = compiled.input_formats[0][1].layout
    lanes = expected[1][0][1]
    assert layout.major_to_minor == expected[0]
    assert layout.tiling[0][0] == expected[1][0][0]
    assert layout.tiling[0][1] in (lanes // 4, lanes // 2, lanes)  # by the processor's registers
    assert "pack" not in phases(compiled)
    saved = plain.memory_analysis()["temp bytes"] - compiled.memory_analysis()["temp bytes"]
    assert (saved > 0) == ("pack" in phases(plain))
    np.testing.assert_array_equal(np.asarray(compiled(*moved)), np.asarray(plain(x, w)))
    np.testing.assert_array_equal(np.asarray(inf.jit(f)(*moved)), np.asarray(plain(x, w)))


def layers(x: Any, w: Any) -> Any:
    return lax.scan(lambda h, w: (inp.tanh(h @ w), None), x, w)[0]


# So narrow that panels are packed before the product, not by its tasks on their way.
LOOPS = {
    "layers of a scan": (layers, (128, 192), (6, 192, 192)),
    "transposed layers": (
        lambda x, w: lax.scan(lambda h, w: (inp.tanh(h @ w.T), None), x, w)[0], (128, 192), (6, 192, 192)
    ),
    "a constant of a scan": (
        lambda x, w: lax.scan(lambda h, x: (inp.tanh(x + h @ w), h.sum()), x[0], x)[0],
        (5, 128, 192), (192, 192),
    ),
    "a loop that counts": (
        lambda x, w: lax.fori_loop(0, 3, lambda i, h: inp.tanh(h @ w), x), (128, 192), (192, 192)
    ),
    "a while loop": (
        lambda x, w: lax.while_loop(lambda h: h[0, 0] > 0, lambda h: h @ w - 100, x), (128, 192), (192, 192)
    ),
    "a branch": (
        lambda x, w: lax.cond(x[0, 0] > 0, lambda x, w: x @ w, lambda x, w: (x * 2) @ w, x, w),
        (128, 192), (192, 192),
    ),
    "a scan in a scan": (
        lambda x, w: lax.scan(lambda h, w: (layers(h, w), None), x, w)[0], (128, 192), (2, 3, 192, 192)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_weights_in_loops_keep_their_panels(name: str):
    f, x_shape, w_shape = LOOPS[name]
    x, w = inp.asarray(host(x_shape)), inp.asarray(host(w_shape) / 16)
    compiled, moved = wanted(f, x, w)
    assert compiled.input_formats[0][1].layout.tiling != ()
    plain = inf.jit(f).lower(x, w).compile()
    saved = plain.memory_analysis()["temp bytes"] - compiled.memory_analysis()["temp bytes"]
    assert saved == 192 * 192 * 4  # nothing is packed, and nothing is copied instead
    assert compiled.cost_analysis()["copied bytes"] == plain.cost_analysis()["copied bytes"]
    np.testing.assert_array_equal(np.asarray(compiled(*moved)), np.asarray(plain(x, w)))


def test_a_program_over_a_mesh_wants_panels_of_the_parts():
    def f(x: Any, w: Any, v: Any) -> Any:
        return inp.tanh(x @ w) @ v

    with inf.config(cpu_devices=2):
        mesh = Mesh(np.array(inf.devices()[:2]), ("d",))
        whole, by_columns, by_rows = (NamedSharding(mesh, p) for p in (P(), P(None, "d"), P("d", None)))
        arrays = [inp.asarray(host(s)) for s in ((128, 300), (300, 400), (400, 200))]
        places = (whole, Format(Layout.AUTO, by_columns), Format(Layout.AUTO, by_rows))
        asked = inf.jit(f, in_shardings=places, out_shardings=whole)
        plain = inf.jit(f, in_shardings=(whole, by_columns, by_rows), out_shardings=whole)
        shapes = [inf.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
        compiled = asked.lower(*shapes).compile()
        formats = compiled.input_formats[0]
        assert [item.layout.tile[:1] for item in formats] == [(), (300,), (200,)]
        assert [item.sharding.spec for item in formats] == [P(), P(None, "d"), P("d")]
        moved = [inf.device_put(x, item) for x, item in zip(arrays, formats, strict=True)]
        np.testing.assert_array_equal(np.asarray(compiled(*moved)), np.asarray(plain(*arrays)))
        bytes_packed = plain.lower(*shapes).compile().memory_analysis()["temp bytes"]
        assert compiled.memory_analysis()["temp bytes"] < bytes_packed


@pytest.mark.parametrize("rows", [1, 3, 8, 40, 200])
def test_panels_serve_products_of_any_number_of_rows(rows: int):
    _, (_, w) = wanted(lambda x, w: x @ w, inp.asarray(host((200, 300))), inp.asarray(host((300, 523))))
    x = inp.asarray(host((rows, 300)))
    compiled = inf.jit(lambda x, w: x @ w).lower(x, w).compile()
    assert phases(compiled) == ["gemm"]
    np.testing.assert_allclose(
        np.asarray(compiled(x, w)), host((rows, 300)) @ host((300, 523)), rtol=2e-4, atol=1e-4
    )


def test_a_parameter_that_is_only_read_transposed_wants_that_order():
    x, w = inp.asarray(host((30, 20))), inp.asarray(host((20, 30)))
    compiled, moved = wanted(lambda x, w: inp.tanh(x + w.T), x, w)
    assert [f.layout.major_to_minor for f in compiled.input_formats[0]] == [(0, 1), (1, 0)]
    np.testing.assert_array_equal(np.asarray(compiled(*moved)), np.asarray(inp.tanh(x + w.T)))


def test_a_weight_with_another_use_is_row_major():
    x, w = inp.asarray(host((128, 300))), inp.asarray(host((300, 523)))
    compiled, _ = wanted(lambda x, w: (x @ w, w.sum()), x, w)
    assert [f.layout for f in compiled.input_formats[0]] == [Layout((0, 1), ())] * 2


def test_layouts_are_asked_for_by_argument():
    x = inp.asarray(host((128, 300)))
    params = {"a": inp.asarray(host((300, 520))), "b": inp.asarray(host((520, 300)))}
    f = inf.jit(lambda p, x: inp.tanh(x @ p["a"]) @ p["b"], in_shardings=({"a": AUTO, "b": None}, None))
    formats, named = f.lower(params, x).compile().input_formats
    assert named == {}
    assert formats[0]["a"].layout.tiling != ()
    assert formats[0]["b"] == Format(Layout((0, 1), ()), here())


def test_results_are_row_major_unless_asked():
    x = inp.asarray(host((3, 4)))
    y = inf.device_put(x, Format(Layout((1, 0)), here()))
    compiled = inf.jit(lambda x: x * 2).lower(y).compile()
    assert compiled.output_formats == Format(Layout((0, 1), ()), here())
    assert compiled(y).format == compiled.output_formats
    asked = inf.jit(lambda x: x * 2, out_shardings=Format(Layout((1, 0)), here()))
    assert asked(x).format.layout.major_to_minor == (1, 0)
    assert asked.lower(x).compile()(x).format == asked.lower(x).compile().output_formats


# --- mistakes ---------------------------------------------------------------------------------------


def test_a_compiled_program_refuses_an_array_put_in_another_layout():
    x, w = inp.asarray(host((128, 300))), inp.asarray(host((300, 523)))
    compiled, _ = wanted(lambda x, w: x @ w, x, w)
    with pytest.raises(ValueError, match="device_put"):
        compiled(x, inf.device_put(w, here()))


def test_a_compiled_program_repacks_what_nobody_has_put_and_says_so():
    x, w = inp.asarray(host((128, 300))), inp.asarray(host((300, 523)))
    compiled, moved = wanted(lambda x, w: x @ w, x, w)
    with events.record() as found:
        np.testing.assert_array_equal(np.asarray(compiled(x, w)), np.asarray(compiled(*moved)))
    assert [event.code for event in found] == ["layout-moved"]


MISTAKES = {
    "no sharding": (lambda x: Format(Layout((1, 0))), "needs a sharding"),
    "no permutation": (lambda x: Layout((0, 0)), "every dimension"),
    "two tiles": (lambda x: Layout((0, 1), ((2, 2), (2, 1))), "at most one tile"),
    "sub-byte": (lambda x: Layout((0,), None, 4), "less than a byte"),
    "rank": (lambda x: inf.device_put(x, Format(Layout((0,)), x.sharding)), "rank"),
    "auto": (lambda x: inf.device_put(x, Format(Layout.AUTO, x.sharding)), "concrete"),
    "bare": (lambda x: inf.device_put(x, Layout((1, 0))), "Format"),
    "bare in jit": (lambda x: inf.jit(lambda x: x, in_shardings=Layout((1, 0))), "Format"),
    "donated": (lambda x: inf.jit(lambda x: x, in_shardings=AUTO, donate_argnums=0)(x), "donated"),
    "rank in jit": (
        lambda x: inf.jit(lambda x: x, in_shardings=Format(Layout((0,)), x.sharding))(x), "rank"
    ),
    "committed": (
        lambda x: inf.jit(lambda x: x, in_shardings=Format(Layout((1, 0)), x.sharding))(
            inf.device_put(x, x.sharding)
        ),
        "does not match",
    ),
    "constraint": (lambda x: inf.jit(lambda x: with_layout_constraint(x, Layout((0,))))(x), "rank"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said(name: str):
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        make(inp.asarray(host((3, 4))))


def test_a_constraint_lays_out_arrays_and_leaves_programs_alone():
    x = inp.asarray(host((3, 4)))
    assert with_layout_constraint(x, Layout((1, 0))).format.layout.major_to_minor == (1, 0)
    found = inf.jit(lambda x: with_layout_constraint(x, Layout((1, 0))) * 2)(x)
    np.testing.assert_array_equal(np.asarray(found), host((3, 4)) * 2)
