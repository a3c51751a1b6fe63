"""Several devices and processes: joining a job, placements for common ways to split a model, and pipelines.

    mpirun -n 2 python train.py        # train.py calls infini.parallel.initialize() first

A program is written for global arrays; see `infini.sharding` for meshes and `infini.shard` for annotated
functions.
"""

from infini.parallel import checkpoints as checkpoints, recipes as recipes, schedules as schedules
from infini.parallel.explain import explain_sharding as explain_sharding
from infini.parallel.layout import (
    coordinates_of as coordinates_of,
    group_of as group_of,
    groups_of as groups_of,
    rank_of as rank_of,
)
from infini.parallel.pipelines import Pipeline as Pipeline, pipeline as pipeline
from infini.parallel.processes import (
    initialize as initialize,
    process_count as process_count,
    process_index as process_index,
)
