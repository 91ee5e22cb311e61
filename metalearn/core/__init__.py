"""The mathematics: pure functions over parameter trees."""

from metalearn.core.adapt import Adapted, adapt, inner_trajectory
from metalearn.core.calculus import Eager
from metalearn.core.consolidation import consolidated_loss, consolidation_penalty
from metalearn.core.derivatives import ggn_vp, hessian, hvp, jacobian, jacobian_mode, jvp, vjp
from metalearn.core.engines import Engine
from metalearn.core.fisher import (
    effective_rank,
    fisher_blocks,
    fisher_diagonal,
    fisher_matrix,
    fisher_trace,
    fisher_vp,
)
from metalearn.core.inner import InnerOptimizer, adam, sgd
from metalearn.core.kfac import KroneckerBlock, KroneckerFisher, fisher_kfac
from metalearn.core.laplace import (
    Laplace,
    laplace_posterior,
    laplace_predictive,
    laplace_probabilities,
    last_layer,
)
from metalearn.core.meta_gradient import MetaGradient, Method, along_adaptation, meta_gradient
from metalearn.core.methods import Implicit
from metalearn.core.module import convert_norm, functionalize
from metalearn.core.natural_gradient import NaturalGradient, natural_gradient, natural_gradient_step
from metalearn.core.operators import fisher_operator, ggn_operator, hessian_operator
from metalearn.core.plan import Plan, plan_meta_gradient
from metalearn.core.spectrum import (
    Lanczos,
    SpectralDensity,
    TopEigenvalues,
    TraceEstimate,
    lanczos,
    spectral_density,
    top_eigenvalues,
    trace_estimate,
)

__all__ = [
    "Adapted",
    "Eager",
    "Engine",
    "Implicit",
    "InnerOptimizer",
    "KroneckerBlock",
    "KroneckerFisher",
    "Lanczos",
    "Laplace",
    "MetaGradient",
    "Method",
    "NaturalGradient",
    "Plan",
    "SpectralDensity",
    "TopEigenvalues",
    "TraceEstimate",
    "adam",
    "adapt",
    "along_adaptation",
    "consolidated_loss",
    "consolidation_penalty",
    "convert_norm",
    "effective_rank",
    "fisher_blocks",
    "fisher_diagonal",
    "fisher_kfac",
    "fisher_matrix",
    "fisher_operator",
    "fisher_trace",
    "fisher_vp",
    "functionalize",
    "ggn_operator",
    "ggn_vp",
    "hessian",
    "hessian_operator",
    "hvp",
    "inner_trajectory",
    "jacobian",
    "jacobian_mode",
    "jvp",
    "lanczos",
    "laplace_posterior",
    "laplace_predictive",
    "laplace_probabilities",
    "last_layer",
    "meta_gradient",
    "natural_gradient",
    "natural_gradient_step",
    "plan_meta_gradient",
    "sgd",
    "spectral_density",
    "top_eigenvalues",
    "trace_estimate",
    "vjp",
]
