"""`quantize`: a model whose linear layers keep their weights in few bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from infini.core import errors, tree
from infini.lax import quantized
from infini.lax.quantized import QuantizedArray, scheme as scheme_
from infini.lax.quantized.scheme import Scheme
from infini.nn.linear import Linear
from infini.nn.module import Module
from infini.transforms import staging

ModuleT = TypeVar("ModuleT", bound=Module)

_store = staging.jit(quantized.quantize, static_argnames="scheme")


def quantize(
    model: ModuleT, scheme: Scheme | str, *, where: Callable[[str, Linear], bool] | None = None
) -> ModuleT:
    """The model with the weights of its `Linear` layers stored in few bits. Biases stay, and so does every
    other module.

    Args:
        model: a module. Load a checkpoint before, with the arrays that the model had then.
        scheme: a scheme of `infini.quantization`, or the name of one: "int8", "int4", "Q8_0", "Q4_0" ...
        where: `where(name, layer)` says whether a layer takes part; all do when absent. Names are those of
            `named_modules`.

    Returns:
        The model. Layers that are quantized already stay as they are.

    Raises:
        ValueMismatchError: groups do not divide the rows of a weight, or no layer takes part.

    Example:
        >>> from infini import nn, random
        >>> first, second = random.split(random.key(0))
        >>> model = nn.Sequential(nn.Linear(64, 32, key=first), nn.ReLU(), nn.Linear(32, 8, key=second))
        >>> small = nn.quantize(model, "Q8_0", where=lambda name, layer: name != "2")
        >>> small[0].weight
        QuantizedArray(Q8_0, f32[32,64], 2176 bytes)
    """
    wanted = scheme_.scheme_of(scheme)
    names = {id(module): name for name, module in model.named_modules() if isinstance(module, Linear)}
    chosen = 0

    def stored(part: Any) -> Any:  # Any: a layer, or a leaf
        nonlocal chosen
        if not isinstance(part, Linear):
            return part
        name = names.get(id(part), "")
        if where is not None and not where(name, part):
            return part
        chosen += 1
        if isinstance(part.weight, QuantizedArray):
            return part
        _check_rows(name, part, wanted)
        return part.replace(weight=_store(part.weight, scheme=wanted))

    found: ModuleT = tree.map(stored, model, is_leaf=lambda part: isinstance(part, Linear))
    if not chosen:
        raise errors.ValueMismatchError(
            f"nn.quantize found no layer to quantize in {type(model).__name__}",
            got=f"{len(names)} Linear layers" + (", and `where` chose none of them" if names else ""),
            expected="at least one",
        )
    return found


def _check_rows(name: str, layer: Linear, scheme: Scheme) -> None:
    size = layer.weight.shape[-1]
    try:
        scheme.for_row(size)
    except errors.ValueMismatchError as error:
        raise errors.ValueMismatchError(
            f"nn.quantize: {name or 'the layer'} cannot be stored as {scheme}",
            got=f"a weight with rows of {size}",
            expected=error.expected,
            fix="leave the layer out with where=lambda name, layer: ..., or choose another group",
        ) from None
