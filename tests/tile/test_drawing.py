"""`tile.draw`: what a picture holds, its files, and what cannot be drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from infini import lax, tile
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from infini.tile import Tensor, lanes, maps, scene, simulation
from tests.tile import kernels

F32 = dtypes.float32


def of(*shape: int) -> ArrayType:
    return ArrayType(shape, F32)


SMALL = kernels.matmul.configure(BM=16, BN=16, BK=16)
TYPES = [of(20, 40), of(40, 33)]


def texts(drawing: tile.Drawing) -> list[str]:
    return [item.text for item in drawing.scene.items if isinstance(item, scene.Text)]


def fills(drawing: tile.Drawing) -> list[str]:
    return [item.fill for item in drawing.scene.items if isinstance(item, scene.Rectangle)]


def test_a_drawing_names_levels_sizes_and_masked_elements() -> None:
    found = texts(tile.draw(SMALL, TYPES, program=(1, 2), step=2))
    assert found[0] == "matmul: program (1, 2) of a grid of (2, 3)"
    assert "BK = 16, BM = 16, BN = 16" in found
    assert {"array (20, 40)", "grid (2, 3)", "walked 3", "tile (16, 16)"} <= set(found)
    masked = 16 * 48 - 4 * 40
    assert any(f"{masked} of the program's 768 elements lie outside and are read as 0" in t for t in found)
    assert any("of the program's 256 elements lie outside and are not stored" in t for t in found)


def test_a_tile_shows_where_its_elements_lie() -> None:
    found = texts(tile.draw(SMALL, TYPES, program=(1, 0), step=1))
    assert "16,16" in found and "19,16" not in found and "17,31" in found


def test_the_file_is_svg(tmp_path: Path) -> None:
    drawing = tile.draw(SMALL, TYPES, tmp_path / "pictures" / "matmul.svg")
    text = (tmp_path / "pictures" / "matmul.svg").read_text()
    assert text == drawing.svg == drawing._repr_svg_()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["matmul.svg"]


def test_nothing_is_painted_outside_the_picture() -> None:
    drawing = tile.draw(SMALL, TYPES, program=(1, 2), step=2)
    for item in drawing.scene.items:
        if isinstance(item, scene.Rectangle):
            assert item.x >= 0 and item.x + item.width <= drawing.scene.width
            assert item.y >= 0 and item.y + item.height <= drawing.scene.height


@pytest.mark.parametrize("columns", [100, 10_000_000], ids=str)
def test_a_picture_does_not_grow_with_the_array(columns: int) -> None:
    drawing = tile.draw(kernels.add_gelu, [of(columns)] * 2)
    assert len(drawing.svg) < 60_000 and drawing.scene.width < 1400


def test_many_steps_are_elided_around_the_chosen_one() -> None:
    assert lanes.shown(8, 3) == [*range(8)]
    assert lanes.shown(100, 0) == [0, 1, 2, None, 98, 99]
    assert lanes.shown(100, 50) == [0, None, 49, 50, 51, None, 99]
    assert lanes.shown(100, 99) == [0, None, 98, 99]


def test_planes_of_an_array_that_are_left_out_are_counted() -> None:
    x = Tensor(3)
    total = tile.kernel(
        lambda x, y: (x.tile((-1, 4, 4)).squeeze(0), y.tile((4, 4))),
        tensors=(x, Tensor(shape=x.shape[1:])),
    )(lambda t: lax.reduce_sum(t, (0,)))
    drawing = tile.draw(total, [of(7, 8, 8)])
    assert "and 4 more planes" in texts(drawing)


# --- maps ------------------------------------------------------------------------------------


def plane(kernel: Any, types: list[ArrayType], program: tuple[int, ...], **options: Any) -> maps.ArrayMap:
    placement = simulation.placements(kernel, types)[0]
    options = {"bins": (100, 100), "most": 3, **options}
    return maps.array_maps(placement, program, 0, **options)[0][0]


def test_a_map_separates_steps_and_what_lies_outside() -> None:
    found = plane(SMALL, TYPES, (1, 0))
    assert set(found.inside) == {
        maps.Box(16, 20, 0, 16, 0), maps.Box(16, 20, 16, 32, 1), maps.Box(16, 20, 32, 40, 2)
    }  # fmt: skip
    # 12 rows below the array, and 8 columns beside what the last step reads.
    assert sum((b.bottom - b.top) * (b.right - b.left) for b in found.outside) == 16 * 48 - 4 * 40
    assert found.bounds == maps.Box(0, 32, 0, 48) and not found.hidden


def test_a_scaled_map_covers_the_same_part() -> None:
    found = plane(kernels.softmax, [of(1000, 640)], (500,), bins=(50, 64))
    (row,) = found.inside
    assert (row.left, row.right) == (0, 640) and row.top <= 500 < row.bottom


def test_tiles_far_outside_are_cut_off() -> None:
    found = plane(kernels.add_gelu.configure(BLOCK=1024), [of(10)] * 2, (0,))
    assert found.hidden and found.bounds.right == 20


def test_outlines_of_overlapping_tiles_are_left_out() -> None:
    x = Tensor(1)
    windows = tile.kernel(
        lambda x, y: (x.tile((4,), strides=(1,)), y), tensors=(x, Tensor(shape=(x.shape[0] - 3,)))
    )
    assert plane(windows(lambda w: lax.reduce_sum(w, (0,))), [of(9)], (0,)).outlines == ()
    assert len(plane(kernels.softmax, [of(9, 4)], (0,)).outlines) == 9


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("program", [(2, 0), (0,), (-1, 0), 0], ids=str)
def test_a_program_that_does_not_exist_is_refused(program: Any) -> None:
    with pytest.raises(errors.IndexOutOfRangeError, match=r"no such program[^$]*from \(0, 0\) to \(1, 2\)"):
        tile.draw(SMALL, TYPES, program=program)


def test_a_step_that_does_not_exist_is_refused() -> None:
    with pytest.raises(errors.IndexOutOfRangeError, match="no such step"):
        tile.draw(SMALL, TYPES, step=3)
    with pytest.raises(errors.IndexOutOfRangeError, match="no such step"):
        tile.draw(kernels.softmax, [of(3, 4)], step=0)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="nothing to draw"):
        tile.draw(kernels.softmax, [of(0, 4)])


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="SVG or PNG"):
        tile.draw(kernels.softmax, [of(3, 4)], tmp_path / "softmax.pdf")


# --- PNG -----------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds all programs there are; matplotlib is not installed."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(scene, "_has_matplotlib", lambda: False)
    return folder


def install(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_a_png_without_a_program_says_what_to_install(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedError, match="matplotlib"):
        tile.draw(kernels.softmax, [of(3, 4)], tmp_path / "softmax.png")
    assert not (tmp_path / "softmax.png").exists()


def test_a_png_is_made_by_the_first_program_that_works(programs: Path, tmp_path: Path) -> None:
    install(programs, "rsvg-convert", "echo no fonts >&2; exit 1")
    install(programs, "resvg", 'read line < "$3"; echo "$line" > "$4"')
    tile.draw(kernels.softmax, [of(3, 4)], tmp_path / "softmax.png")
    assert (tmp_path / "softmax.png").read_text().startswith("<svg")


def test_programs_that_fail_are_named_with_their_reasons(programs: Path, tmp_path: Path) -> None:
    install(programs, "inkscape", "echo no fonts >&2; exit 1")
    with pytest.raises(errors.UnsupportedError, match="inkscape: no fonts"):
        tile.draw(kernels.softmax, [of(3, 4)], tmp_path / "softmax.png")


def test_matplotlib_draws_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    tile.draw(SMALL, TYPES, tmp_path / "matmul.png", program=(1, 2))
    assert (tmp_path / "matmul.png").read_bytes().startswith(b"\x89PNG")
