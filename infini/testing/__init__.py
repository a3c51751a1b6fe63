"""What tests of infini and of programs written with it need: tolerances, finite differences, counts, random
programs.

`infini.testing.programs` needs hypothesis and is imported by itself.
"""

from infini.testing.collectives import (
    Count as Count,
    CountingComm as CountingComm,
    count_collectives as count_collectives,
    predicted as predicted,
)
from infini.testing.counting import assert_max_traces as assert_max_traces
from infini.testing.gradients import check_grads as check_grads
from infini.testing.tolerances import assert_close as assert_close, tolerance as tolerance
