"""Training steps of image models in PyTorch: what its users would write, with channels last in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any  # Any: PyTorch's modules and tensors, which have no types here


def train_step(torch: Any, loss: Callable[..., Any], optimizer: Callable[[list[Any]], Any]) -> Any:
    """What makes a step of a loss of (parameters, images, labels), given images with their channels last.

    Args:
        torch: the module.
        loss: of tensors in PyTorch's order.
        optimizer: of a list of parameters.
    """

    def made(wrap: Any, params: Any, images: Any, labels: Any) -> Any:
        leaves: list[Any] = []

        def parameter(x: Any) -> Any:
            if x.ndim == 4:
                x = x.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            leaves.append(x.clone().requires_grad_())
            return leaves[-1]

        def convert(tree: Any) -> Any:
            if isinstance(tree, dict):
                return {name: convert(part) for name, part in tree.items()}
            return [convert(part) for part in tree] if isinstance(tree, list) else parameter(tree)

        own = convert(params)
        compiled, chosen = wrap(loss), optimizer(leaves)
        images = images.permute(0, 3, 1, 2)

        def step() -> Any:
            chosen.zero_grad()
            value = compiled(own, images, labels)
            value.backward()
            chosen.step()
            return value.detach()

        return step

    return made
