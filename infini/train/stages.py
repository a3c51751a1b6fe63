"""How the model of `gpt` is cut into stages of a pipeline: each has as many blocks as the others, the first
has the embedding, too, the last the norm and the logits.

The parameters of a stage have the names that they have in the whole model, but for the numbers of blocks,
which begin at 0 in each; so recipes place them as they place those of the model. A table that reads and
writes is in both stages.

With experts, what the loss that balances them is made of goes along with the activations: it is taken over
all blocks, of one microbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import infini.numpy as inp
from infini import Array, tree
from infini.core import errors
from infini.train import experts, gpt
from infini.train.step import PLAIN, Computation, in_dtype

# Activations between stages, and the sums over blocks so far of what routers said: shares and probabilities.
Activations: TypeAlias = tuple[Array, tuple[Array, ...]]
Stage: TypeAlias = Callable[[gpt.Params, Any], Activations]  # Any: tokens for the first stage
_FIRST: Final = ("embed_tokens",)
_LAST: Final = ("norm", "lm_head")


@dataclass(frozen=True, slots=True)
class Stages:
    """A model in stages; `cut` makes it.

    Args:
        config: its sizes.
        count: number of stages, a divisor of the number of blocks.
    """

    config: gpt.Config
    count: int

    @property
    def blocks_per_stage(self) -> int:
        """How many blocks each stage has."""
        return self.config.num_layers // self.count

    @property
    def shared(self) -> tuple[tuple[str, ...], ...]:
        """Parameters that are one, as `parallel.pipeline` takes them."""
        if not self.config.tie_embeddings or self.count == 1:
            return ()
        return (("0/embed_tokens", f"{self.count - 1}/embed_tokens"),)

    def functions(self, computation: Computation = PLAIN) -> list[Stage]:
        """The stages: from tokens (B, T) to the logits, and what the routers said.

        Args:
            computation: dtype, and memory against time; the number of parts is the pipeline's.
        """
        return [self._function(number, computation) for number in range(self.count)]

    def loss(self, found: Activations, targets: Array) -> Array:
        """As `gpt.loss`.

        Args:
            found: what the last stage gives.
            targets: the tokens after each, of shape (B, T).
        """
        logits, said = found
        loss = inp.mean(gpt.cross_entropy(logits, targets))
        if not said:
            return loss
        shares, probabilities = (total / self.config.num_layers for total in said)
        return loss + self.config.balance_weight * experts.imbalance(shares, probabilities)

    def split(self, whole: Any) -> list[Any]:  # Any: pytrees
        """The part of each stage of a pytree with trees of parameters in it, such as the state of an
        optimizer. What is beside these trees is in every part.

        Args:
            whole: the pytree; leaves may be anything.
        """

        def part(number: int) -> Any:  # Any: a pytree
            return tree.map(
                lambda node: self._params_of(number, node) if _is_params(node) else node,
                whole,
                is_leaf=_is_params,
            )

        return [part(number) for number in range(self.count)]

    def join(self, parts: Sequence[Any]) -> Any:  # Any: pytrees
        """The pytree of which `split` gives these parts. Of what several have, that of the first is taken.

        Args:
            parts: one per stage.
        """
        return tree.map(
            lambda *nodes: _joined(nodes) if _is_params(nodes[0]) else nodes[0], *parts, is_leaf=_is_params
        )

    def _params_of(self, number: int, params: gpt.Params) -> gpt.Params:
        first, size = number * self.blocks_per_stage, self.blocks_per_stage
        is_last = number == self.count - 1
        reads_table = number == 0 or (is_last and self.config.tie_embeddings)
        names = [*(_FIRST if reads_table else ()), *(_LAST if is_last else ())]
        outer = {name: params[name] for name in names if name in params}
        return outer | {"layers": params["layers"][first : first + size]}

    def _function(self, number: int, computation: Computation) -> Stage:
        config, first = self.config, number * self.blocks_per_stage
        is_last = number == self.count - 1

        def stage(params: gpt.Params, given: Any) -> Activations:  # Any: tokens, or activations
            params = in_dtype(computation.dtype, params)
            x, said = (gpt.embedded(params, given), ()) if number == 0 else given
            x, routings = gpt.blocks(
                params["layers"], x, config, first=first, is_checkpointed=computation.is_checkpointed
            )
            if routings:
                own = (_sum([r.shares for r in routings]), _sum([r.probabilities for r in routings]))
                said = tuple(_sum(pair) for pair in zip(said, own, strict=True)) if said else own
            return (gpt.logits(params, x, config) if is_last else x), said

        return stage


def cut(config: gpt.Config, count: int) -> Stages:
    """A model in stages.

    Args:
        config: sizes of the model.
        count: number of stages.

    Raises:
        ValueMismatchError: they do not divide the blocks.

    Example:
        >>> from infini.train import gpt, stages
        >>> config = gpt.Config(num_layers=4)
        >>> parts = stages.cut(config, 2).split({"embed_tokens": 0, "layers": [1, 2, 3, 4], "norm": 5})
        >>> parts
        [{'embed_tokens': 0, 'layers': [1, 2]}, {'norm': 5, 'layers': [3, 4]}]
    """
    check(config.num_layers, count)
    return Stages(config, count)


def check(num_layers: int, count: int) -> None:
    """Refuse a number of stages that does not fit a model.

    Args:
        num_layers: blocks of the model.
        count: number of stages.

    Raises:
        ValueMismatchError: they do not divide the blocks.
    """
    if count < 1 or num_layers % count:
        raise errors.ValueMismatchError(
            "the stages of the pipeline do not divide the blocks of the model",
            got=f"{num_layers} blocks for {count} stages",
            expected="as many blocks in each stage",
            fix="change model.num_layers, mesh.pp or mesh.virtual_stages",
        )


def _sum(arrays: Sequence[Array]) -> Array:
    return inp.sum(inp.stack(arrays), axis=0)


def _is_params(node: Any) -> bool:  # Any: what a tree holds
    return isinstance(node, dict) and "layers" in node


def _joined(parts: Sequence[gpt.Params]) -> gpt.Params:
    outer: gpt.Params = {}
    for part in reversed(parts):
        outer |= {name: leaf for name, leaf in part.items() if name != "layers"}
    return outer | {"layers": [layer for part in parts for layer in part["layers"]]}
