"""Special functions that need loops: incomplete gamma and beta functions, zeta and polygamma."""

from infini.lax.incomplete.beta import (
    betainc as betainc,
    betainc_p as betainc_p,
)
from infini.lax.incomplete.gamma import (
    igamma as igamma,
    igamma_grad_a as igamma_grad_a,
    igamma_grad_a_p as igamma_grad_a_p,
    igamma_p as igamma_p,
    igammac as igammac,
    igammac_p as igammac_p,
    random_gamma_grad as random_gamma_grad,
    random_gamma_grad_p as random_gamma_grad_p,
)
from infini.lax.incomplete.zeta import (
    polygamma as polygamma,
    polygamma_p as polygamma_p,
    zeta as zeta,
    zeta_p as zeta_p,
)
