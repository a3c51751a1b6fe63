"""Random numbers by keys: JAX's API over its default generator, Threefry-2x32 with partitionable streams.

Equal keys give the bits that `jax.random` gives, on every backend, mesh and thread count. Raw uint32[2]
keys and typed keys work everywhere.
"""

from infini.random.distributions import (
    bernoulli as bernoulli,
    categorical as categorical,
    choice as choice,
    exponential as exponential,
    gumbel as gumbel,
    laplace as laplace,
    logistic as logistic,
    normal as normal,
    permutation as permutation,
    rademacher as rademacher,
    truncated_normal as truncated_normal,
)
from infini.random.keys import (
    KeyArray as KeyArray,
    PRNGKey as PRNGKey,
    clone as clone,
    fold_in as fold_in,
    key as key,
    key_data as key_data,
    key_impl as key_impl,
    split as split,
    wrap_key_data as wrap_key_data,
)
from infini.random.streams import bits as bits, randint as randint, uniform as uniform
