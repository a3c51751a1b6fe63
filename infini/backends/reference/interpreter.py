"""Evaluation of programs on NumPy arrays. It lives in core, which looks for the origin of a NaN with it."""

from infini.core.interpret import (
    Apply as Apply,
    Evaluate as Evaluate,
    apply as apply,
    decomposition as decomposition,
    evaluate as evaluate,
    evaluator as evaluator,
    has_route as has_route,
    typed as typed,
)
