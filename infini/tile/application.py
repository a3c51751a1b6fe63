"""An application traced at concrete tiles: the body of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.value import Value
from infini.tile import lowering, presence, scattering, symbols, within
from infini.tile.arrangement import Tensor
from infini.tile.binding import Binding
from infini.tile.lowering import Lowered
from infini.tile.scattered import Scatter
from infini.tile.scattering import Scattered
from infini.tile.symbols import Size


@dataclass(frozen=True, slots=True)
class Application:
    """What a program of a kernel does with its tiles.

    Args:
        name: of the kernel.
        function: the user's, from tiles to the tiles of the results.
        binding: how it is called.
        results: arranged tensors of the results.
        operands: arranged tensors of the operands.
    """

    name: str
    function: Callable[..., Any]  # Any: tiles
    binding: Binding
    results: tuple[Tensor, ...]
    operands: tuple[Tensor, ...]

    def results_at(self, sizes: Mapping[Size, int]) -> list[ir.Shape]:
        """Shapes of the results."""
        return [tuple(symbols.number(n, sizes) for n in t.source.shape) for t in self.results]

    def traced(
        self,
        types: Sequence[ArrayType],
        arrays: Sequence[ir.Shape],
        lowered: Lowered,
        static: Mapping[str, Any],  # Any: hashable constants
    ) -> tuple[Program, tuple[Scatter | None, ...]]:
        """The body, and how results are scattered; results take shapes and dtypes of their tensors.

        Args:
            types: of the operands.
            arrays: shapes of the results.
            lowered: the accesses.
            static: keyword arguments.

        Raises:
            TypeMismatchError: the function returns other tiles than the results have, or uses an array from
                outside.
        """
        num_loads = len(types)
        loads = lowered.accesses[:num_loads]
        tile_types = [ArrayType(a.tile, t.dtype) for a, t in zip(loads, types, strict=True)]
        id_types = [ArrayType((), dtypes.int32)] * len(lowered.grid)
        shapes = [*(t.shape for t in types), *arrays]
        scatters: list[Scatter | None] = []
        places: list[int] = []  # which results of the body are numbers of rows

        def run(*args: Value) -> list[Value]:
            seen = [_reshaped(x, shape) for x, shape in zip(args[:num_loads], lowered.tiles, strict=False)]
            stored: list[Value] = []
            with within.running(seen, shapes, lowered, args[num_loads:]):
                found = self._returned(self.binding.run(self.function, seen, static))
                for number, (result, shape) in enumerate(zip(found, arrays, strict=True)):
                    if isinstance(result, Scattered):
                        places.append(len(stored))
                        scatter, *pair = self._scattered(number, result, shape, lowered)
                        scatters.append(scatter)
                        stored += pair
                    else:
                        scatters.append(None)
                        stored.append(self._stored(number, result, shape, lowered))
            return stored

        staged = trace.stage(run, [*tile_types, *id_types], name=self.name)
        if staged.captures:
            raise errors.TypeMismatchError(
                f"the application of {self.name} uses an array from outside",
                got=", ".join(str(c.type) for c in staged.captures),
                fix="pass it as an operand of the kernel",
            )
        body = presence.only_there(staged.program, loads, shapes[:num_loads], lowered.grid, places)
        for var, tensor in zip(body.params, self.operands, strict=False):
            name = str(tensor.source.name)
            var.hint = name if name.isidentifier() else var.hint
        return body, tuple(scatters)

    def _returned(self, found: Any) -> list[Value | Scattered]:  # Any: what the function returned
        count = len(self.results)
        if found is None:
            raise errors.TypeMismatchError(
                f"the application of {self.name} returns nothing",
                expected=f"{count} tiles" if count > 1 else "a tile",
                fix="return the tiles of the results; they are no parameters that can be assigned to",
            )
        items = found if isinstance(found, (tuple, list)) else (found,)
        results = [r if isinstance(r, Scattered) else trace.as_value(r) for r in items]
        if len(results) != count:
            raise errors.TypeMismatchError(
                f"the application of {self.name} returns {len(results)} tiles", expected=str(count)
            )
        return results

    def _scattered(
        self, number: int, found: Scattered, shape: ir.Shape, lowered: Lowered
    ) -> tuple[Scatter, Value, Value]:
        position, tensor = len(self.operands) + number, self.results[number]
        label = tensor.label(position)
        if position not in lowered.shared:
            raise errors.TypeMismatchError(
                f"{label} is written at run-time places, and its tile is a part of the array",
                got=f"tiles of {lowered.tiles[position]} of an array of {shape}",
                expected="every program having the whole array",
                fix="arrange it by tile((-1, ...)) and expand, or as a level of all rows",
            )
        return scattering.resolve(found, shape, tensor.source.dtype, label)

    def _stored(self, number: int, tile: Value, array: ir.Shape, lowered: Lowered) -> Value:
        position, tensor = len(self.operands) + number, self.results[number]
        lowering.check_alone(lowered, position, array, tensor.label(position))
        if tile.shape != lowered.tiles[position]:
            raise errors.TypeMismatchError(
                f"the application of {self.name} returns a tile of another shape than the result's",
                got=str(tile.type),
                expected=str(lowered.tiles[position]),
                fix="give it that shape with broadcast_to or reshape, or squeeze the result's arrangement",
            )
        dtype = tensor.source.dtype
        if dtype is not None and dtype != tile.dtype:
            tile = trace.bind1(primitive.by_name("convert_element_type"), tile, new_dtype=dtype)
        return _reshaped(tile, lowered.accesses[position].tile)


def _reshaped(x: Value, shape: ir.Shape) -> Value:
    return x if x.shape == shape else trace.bind1(primitive.by_name("reshape"), x, shape=shape, ndim=x.ndim)
