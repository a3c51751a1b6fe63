"""The example kernels on tensors of PyTorch, beside its own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infini import testing
from infini.core import dtypes
from tests.tile.example_kernels import CASES, Case

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def _rotary(x: Any, sin: Any, cos: Any) -> Any:
    turned = torch.cat([-x[..., x.shape[3] // 2 :], x[..., : x.shape[3] // 2]], 3)
    sin, cos = (torch.cat([t, t], 1)[:, None] for t in (sin, cos))
    return x * cos + turned * sin


PEERS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "silu": functional.silu,
    "swiglu": lambda a, b: a * functional.silu(b),
    "softmax": lambda x: torch.softmax(x, 1),
    "rms_norm": lambda x, eps: functional.rms_norm(x, x.shape[1:], eps=eps.item()),
    "fused_rms_norm": lambda x, w, eps: functional.rms_norm(x, x.shape[1:], w, eps.item()),
    "mm": torch.mm,
    "addmm": lambda c, a, b, beta, alpha: torch.addmm(c, a, b, beta=beta.item(), alpha=alpha.item()),
    "bmm": torch.bmm,
    "conv2d": functional.conv2d,
    "max_pool2d": lambda x: functional.max_pool2d(x, 3, ceil_mode=True),
    "rotary_position_embedding": _rotary,
    "scaled_dot_product_attention": functional.scaled_dot_product_attention,
}


def tensor(x: np.ndarray) -> Any:
    """The array as a tensor, which shares its memory."""
    if x.dtype == dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensors_of_torch(case: Case, dtype: np.dtype, rng: Any) -> None:
    tensors = [tensor(x) for x in case.operands(rng, dtype)]
    wanted = PEERS[case.name](*tensors, **case.static)
    found = torch.from_dlpack(case.kernel(*tensors, **case.static))
    assert found.dtype == wanted.dtype
    bound = 2 * testing.tolerance(dtype, case.kind)  # both sides round
    np.testing.assert_allclose(found.float().numpy(), wanted.float().numpy(), rtol=bound, atol=bound)


def test_strided_tensors_of_torch() -> None:
    (case,) = [case for case in CASES if case.name == "mm"]
    a, b = torch.randn(50, 37).T, torch.randn(50, 42)[:, ::2]
    testing.assert_close(torch.from_dlpack(case.kernel(a, b)).numpy(), (a @ b).numpy(), "contraction")
