"""Names for values that checkpoints save, as in `jax.ad_checkpoint`."""

from infini import checkpoint_policies as checkpoint_policies
from infini.lax.checkpoint_policies import checkpoint_name as checkpoint_name
from infini.transforms.checkpointing import checkpoint as checkpoint, remat as remat
from infini.transforms.residuals import (
    print_saved_residuals as print_saved_residuals,
    saved_residuals as saved_residuals,
)
