"""Custom derivative rules, with the names of `jax.custom_derivatives`."""

from infini.lax.linear_call import linear_call as linear_call
from infini.transforms.custom import custom_jvp as custom_jvp, custom_vjp as custom_vjp
from infini.transforms.custom_arguments import (
    CustomVJPPrimal as CustomVJPPrimal,
    SymbolicZero as SymbolicZero,
)
from infini.transforms.custom_gradients import custom_gradient as custom_gradient
from infini.transforms.hosting import closure_convert as closure_convert
