"""Ways to split a training step over a mesh, as data: one `Recipe` each, and `product` for several at once.

    recipe = recipes.product(recipes.tensor("tp"), recipes.zero3("dp"))
    specs = recipe.params(params, mesh)

A recipe says which dimensions of which arrays an axis splits: weights, what the optimizer keeps for them,
batches, and values that the model has given a name. It holds no arrays and no devices; the partitioner finds
the collectives.
"""

from infini.parallel.recipes.context import (
    Form as Form,
    context as context,
)
from infini.parallel.recipes.models import (
    COLUMNS as COLUMNS,
    ROWS as ROWS,
    experts as experts,
    sequence as sequence,
    tensor as tensor,
)
from infini.parallel.recipes.placing import (
    Recipe as Recipe,
    Rule as Rule,
    product as product,
)
from infini.parallel.recipes.replicas import (
    data as data,
    zero1 as zero1,
    zero2 as zero2,
    zero3 as zero3,
)
