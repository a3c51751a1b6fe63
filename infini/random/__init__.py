"""Random numbers by keys: JAX's API over its default generator, Threefry-2x32 with partitionable streams.

Equal keys give the bits that `jax.random` gives, on every backend, mesh and thread count. Raw uint32[2] keys and typed keys
work everywhere.
"""

from infini.random.streams import bits as bits
from infini.random.streams import randint as randint
from infini.random.streams import uniform as uniform
from infini.random.distributions import bernoulli as bernoulli
from infini.random.distributions import categorical as categorical
from infini.random.distributions import choice as choice
from infini.random.distributions import exponential as exponential
from infini.random.distributions import gumbel as gumbel
from infini.random.distributions import laplace as laplace
from infini.random.distributions import logistic as logistic
from infini.random.distributions import normal as normal
from infini.random.distributions import permutation as permutation
from infini.random.distributions import rademacher as rademacher
from infini.random.distributions import truncated_normal as truncated_normal
from infini.random.keys import KeyArray as KeyArray
from infini.random.keys import PRNGKey as PRNGKey
from infini.random.keys import clone as clone
from infini.random.keys import fold_in as fold_in
from infini.random.keys import key as key
from infini.random.keys import key_data as key_data
from infini.random.keys import key_impl as key_impl
from infini.random.keys import split as split
from infini.random.keys import wrap_key_data as wrap_key_data
