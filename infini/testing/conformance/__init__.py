"""Does a device do what infini asks of it? Run by whoever brings one:

    python -m infini.testing.conformance --backend NAME

Memory, streams, events, collectives, the text of kernels and whole programs are checked one by one against
NumPy. A check that cannot run here says why; the exit status is 1 when one failed.
"""

from infini.testing.conformance.checks import (
    Check as Check,
    Outcome as Outcome,
    Subject as Subject,
    run as run,
)
from infini.testing.conformance.suite import all_checks as all_checks
