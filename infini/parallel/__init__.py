"""Several devices and processes: joining a job, and placements for common ways to split a model.

    mpirun -n 2 python train.py        # train.py calls infini.parallel.initialize() first

A program is written for global arrays; see `infini.sharding` for meshes and `infini.shard` for annotated
functions.
"""

from infini.parallel import checkpoints as checkpoints
from infini.parallel.explain import explain_sharding as explain_sharding
from infini.parallel.processes import (
    initialize as initialize,
    process_count as process_count,
    process_index as process_index,
)
from infini.parallel.recipes import (
    data_parallel as data_parallel,
    fully_sharded as fully_sharded,
    specs_by_name as specs_by_name,
    tensor_parallel as tensor_parallel,
)
