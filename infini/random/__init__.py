"""Random numbers by keys: JAX's API over its default generator, Threefry-2x32 with partitionable streams.

Equal keys give the bits that `jax.random` gives, on every backend, mesh and thread count. Raw uint32[2]
keys and typed keys work everywhere.
"""

from infini.random.continuous import (
    cauchy as cauchy,
    exponential as exponential,
    gumbel as gumbel,
    laplace as laplace,
    logistic as logistic,
    pareto as pareto,
    rayleigh as rayleigh,
    triangular as triangular,
    weibull_min as weibull_min,
)
from infini.random.counts import binomial as binomial, multinomial as multinomial, poisson as poisson
from infini.random.discrete import (
    bernoulli as bernoulli,
    categorical as categorical,
    choice as choice,
    geometric as geometric,
    permutation as permutation,
    rademacher as rademacher,
)
from infini.random.gamma import (
    ball as ball,
    beta as beta,
    chisquare as chisquare,
    dirichlet as dirichlet,
    f as f,
    gamma as gamma,
    generalized_normal as generalized_normal,
    loggamma as loggamma,
    t as t,
)
from infini.random.key_array import KeyArray as KeyArray, KeyDType as KeyDType
from infini.random.keys import (
    PRNGKey as PRNGKey,
    clone as clone,
    fold_in as fold_in,
    key as key,
    key_data as key_data,
    key_dtype as key_dtype,
    key_impl as key_impl,
    split as split,
    wrap_key_data as wrap_key_data,
)
from infini.random.matrices import multivariate_normal as multivariate_normal, orthogonal as orthogonal
from infini.random.normal import (
    double_sided_maxwell as double_sided_maxwell,
    lognormal as lognormal,
    maxwell as maxwell,
    normal as normal,
    truncated_normal as truncated_normal,
    wald as wald,
)
from infini.random.streams import bits as bits, randint as randint, uniform as uniform
