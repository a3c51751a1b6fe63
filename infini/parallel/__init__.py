"""Several devices and processes: joining a job, and placements for common ways to split a model.

    mpirun -n 2 python train.py        # train.py calls infini.parallel.initialize() first

A program is written for global arrays; see `infini.sharding` for meshes and `infini.shard` for annotated
functions.
"""

from infini.parallel import recipes as recipes
from infini.parallel.explain import explain_sharding as explain_sharding
from infini.parallel.processes import (
    initialize as initialize,
    process_count as process_count,
    process_index as process_index,
)
