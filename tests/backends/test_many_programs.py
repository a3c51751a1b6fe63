"""Programs are mapped memory, of which the system gives a process only so much."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.backends.cpu import objects
from infini.core import errors


def test_too_many_programs_is_an_error_and_not_the_end(monkeypatch: Any) -> None:
    kept = []
    with infini.config(no_cache=True):
        gc.collect()
        monkeypatch.setattr(objects, "MAX_LIBRARIES", len(objects._ENGINES) + 6)
        with pytest.raises(errors.LoweringError, match="too many compiled programs"):
            for i in range(40):
                kept.append(infini.jit(lambda x, i=i: inp.sin(x) + inp.cumsum(x) * (i + 0.123)))
                kept[-1](np.ones(5, np.float32))
        monkeypatch.undo()
    np.testing.assert_allclose(infini.jit(lambda x: x * 3)(np.ones(2)), [3, 3])
