"""The mathematics: pure functions over parameter trees."""

from metalearn.core.autodiff.backend import Eager
from metalearn.core.autodiff.derivatives import (
    ggn_vp,
    hessian,
    hvp,
    jacobian,
    jacobian_mode,
    jvp,
    vjp,
)
from metalearn.core.bayes.consolidation import consolidated_loss, consolidation_penalty
from metalearn.core.bayes.laplace import (
    Laplace,
    laplace_posterior,
    laplace_predictive,
    laplace_probabilities,
    last_layer,
)
from metalearn.core.curvature.fisher import (
    effective_rank,
    fisher_blocks,
    fisher_diagonal,
    fisher_matrix,
    fisher_trace,
    fisher_vp,
)
from metalearn.core.curvature.kfac import KroneckerBlock, KroneckerFisher, fisher_kfac
from metalearn.core.curvature.lanczos import (
    Lanczos,
    SpectralDensity,
    TopEigenvalues,
    TraceEstimate,
    lanczos,
    spectral_density,
    top_eigenvalues,
    trace_estimate,
)
from metalearn.core.curvature.operators import fisher_operator, ggn_operator, hessian_operator
from metalearn.core.curvature.solve import NaturalGradient, natural_gradient, natural_gradient_step
from metalearn.core.ensemble.stacking import (
    MemberGradients,
    map_members,
    member_gradients,
    stack,
    unstack,
)
from metalearn.core.meta.adapt import Adapted, adapt, inner_trajectory
from metalearn.core.meta.engines import Engine
from metalearn.core.meta.inner_optimizers import InnerOptimizer, adam, sgd
from metalearn.core.meta.members import member_meta_gradient
from metalearn.core.meta.meta_gradient import MetaGradient, Method, along_adaptation, meta_gradient
from metalearn.core.meta.methods import Implicit
from metalearn.core.meta.plan import Plan, plan_meta_gradient
from metalearn.core.meta.task_gradients import task_meta_gradients
from metalearn.core.module.functionalize import convert_norm, functionalize
from metalearn.core.samples.checks import check_per_sample, per_sample_module
from metalearn.core.samples.gradients import per_sample_gradients
from metalearn.core.samples.noise_scale import NoiseScale, gradient_noise_scale, noise_average
from metalearn.core.samples.norms import (
    ClippedGradient,
    clipped_gradient,
    ghost_parameters,
    per_sample_norms,
)
from metalearn.core.samples.reductions import (
    Reduction,
    gradient_mean,
    gradient_norms,
    gradient_sketches,
    gradient_variance,
    norm_quantiles,
    reduce_per_sample,
)

__all__ = [
    "Adapted",
    "ClippedGradient",
    "Eager",
    "Engine",
    "Implicit",
    "InnerOptimizer",
    "KroneckerBlock",
    "KroneckerFisher",
    "Lanczos",
    "Laplace",
    "MemberGradients",
    "MetaGradient",
    "Method",
    "NaturalGradient",
    "NoiseScale",
    "Plan",
    "Reduction",
    "SpectralDensity",
    "TopEigenvalues",
    "TraceEstimate",
    "adam",
    "adapt",
    "along_adaptation",
    "check_per_sample",
    "clipped_gradient",
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
    "ghost_parameters",
    "gradient_mean",
    "gradient_noise_scale",
    "gradient_norms",
    "gradient_sketches",
    "gradient_variance",
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
    "map_members",
    "member_gradients",
    "member_meta_gradient",
    "meta_gradient",
    "natural_gradient",
    "natural_gradient_step",
    "noise_average",
    "norm_quantiles",
    "per_sample_gradients",
    "per_sample_module",
    "per_sample_norms",
    "plan_meta_gradient",
    "reduce_per_sample",
    "sgd",
    "spectral_density",
    "stack",
    "task_meta_gradients",
    "top_eigenvalues",
    "trace_estimate",
    "unstack",
    "vjp",
]
