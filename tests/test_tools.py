"""The tools count what they say they count."""

from __future__ import annotations

from pathlib import Path

from tools import measure


def test_measure_counts_functions_and_documentation(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "class Shape:\n"
        '    """Documented."""\n'
        "    def area(self) -> int:\n"
        "        def helper(x): return x\n"
        "        return helper(1)\n"
        "def bare(x):\n"
        "    return x\n"
    )
    file = measure.measure(path)
    assert [(f.name, f.num_lines) for f in file.functions] == [("area", 3), ("helper", 1), ("bare", 2)]
    assert [f.name for f in file.functions if not f.is_annotated] == ["helper", "bare"]
    assert [f.name for f in file.functions if f.is_public and not f.is_documented] == ["area", "bare"]
    assert [c.is_documented for c in file.classes] == [True]


def test_measure_counts_any_without_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text("from typing import Any\nx: Any = 1\ny: Any = 2  # Any: whatever the caller gave\n")
    assert measure.measure(path).num_bare_any == 1


def test_percentile_of_nothing_is_zero() -> None:
    assert measure.percentile([], 0.5) == 0
    assert measure.percentile([3, 1, 2], 0.5) == 2
