"""The mathematics: pure functions over parameter trees."""

from metalearn.core.adapt import Adapted, adapt, inner_trajectory
from metalearn.core.calculus import Eager
from metalearn.core.derivatives import ggn_vp, hessian, hvp, jacobian, jacobian_mode, jvp, vjp
from metalearn.core.engines import Engine
from metalearn.core.ghost_norms import (
    ClippedGradient,
    clipped_gradient,
    ghost_parameters,
    per_sample_norms,
)
from metalearn.core.inner import InnerOptimizer, adam, sgd
from metalearn.core.meta_gradient import MetaGradient, Method, along_adaptation, meta_gradient
from metalearn.core.methods import Implicit
from metalearn.core.module import convert_norm, functionalize
from metalearn.core.noise_scale import NoiseScale, gradient_noise_scale, noise_average
from metalearn.core.per_sample import per_sample_gradients
from metalearn.core.plan import Plan, plan_meta_gradient
from metalearn.core.sample_checks import check_per_sample, per_sample_module
from metalearn.core.streaming import (
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
    "MetaGradient",
    "Method",
    "NoiseScale",
    "Plan",
    "Reduction",
    "adam",
    "adapt",
    "along_adaptation",
    "check_per_sample",
    "clipped_gradient",
    "convert_norm",
    "functionalize",
    "ggn_vp",
    "ghost_parameters",
    "gradient_mean",
    "gradient_noise_scale",
    "gradient_norms",
    "gradient_sketches",
    "gradient_variance",
    "hessian",
    "hvp",
    "inner_trajectory",
    "jacobian",
    "jacobian_mode",
    "jvp",
    "meta_gradient",
    "noise_average",
    "norm_quantiles",
    "per_sample_gradients",
    "per_sample_module",
    "per_sample_norms",
    "plan_meta_gradient",
    "reduce_per_sample",
    "sgd",
    "vjp",
]
