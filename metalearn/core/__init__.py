"""The mathematics: pure functions over parameter trees, room by room."""

# Functions of modules
from metalearn.core.module.functionalize import functionalize
from metalearn.core.module.norms import convert_norm

# Functions that are compiled
from metalearn.core.compilation import CompiledFunction, compiled

# Derivatives of functions of trees
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

# Tasks: adaptation and the gradient through it
from metalearn.core.meta.adam import adam, adamw
from metalearn.core.meta.adapt import Adapted, adapt, inner_trajectory
from metalearn.core.meta.adaptation import Adaptation
from metalearn.core.meta.engines import Engine
from metalearn.core.meta.every_task import task_meta_gradients
from metalearn.core.meta.inner_gradients import with_gradients
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.members import member_meta_gradient, member_task_gradient
from metalearn.core.meta.meta_gradient import Method, meta_gradient
from metalearn.core.meta.adapted_task import Implicit
from metalearn.core.meta.plan import Plan, plan_meta_gradient, plan_task_gradient
from metalearn.core.meta.sgd import sgd
from metalearn.core.meta.task_gradient import task_gradient
from metalearn.core.meta.task_mean import MetaGradient
from metalearn.core.meta.visits import along_adaptation

# Runs: the gradient through a whole training
from metalearn.core.hyper.direction_check import DirectionCheck, check_hyper_gradient
from metalearn.core.hyper.hyper_gradient import HyperMethod, hyper_gradient
from metalearn.core.hyper.implicit import ImplicitSolver
from metalearn.core.hyper.plan import HyperPlan, plan_hyper_gradient
from metalearn.core.hyper.results import HyperGradient, HyperProgress

# Members: stacked networks and their gradients
from metalearn.core.ensemble.stacking import (
    MemberGradients,
    map_members,
    member_gradients,
    stack,
    unstack,
)

# Samples: a gradient for each, clipped or reduced
from metalearn.core.samples.checks import check_per_sample, per_sample_module
from metalearn.core.samples.clipping import ClippedGradient, clipped_gradient
from metalearn.core.samples.clipping_bias import ClippingBias, clipping_bias
from metalearn.core.samples.gradients import per_sample_gradients
from metalearn.core.samples.layer_rules import LayerCall, register_layer_rule
from metalearn.core.samples.noise_scale import NoiseScale, gradient_noise_scale, noise_average
from metalearn.core.samples.norms import ghost_parameters, per_sample_norms
from metalearn.core.samples.outer_products import IndexedRows, OuterProducts
from metalearn.core.samples.reductions import (
    Reduction,
    gradient_mean,
    gradient_norms,
    gradient_sketches,
    gradient_variance,
    norm_quantiles,
    reduce_per_sample,
)
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients

# Curvature: Fisher, Gauss–Newton and Hessian
from metalearn.core.curvature.fisher import (
    effective_rank,
    fisher_blocks,
    fisher_diagonal,
    fisher_matrix,
    fisher_trace,
    fisher_vp,
)
from metalearn.core.curvature.kfac import KroneckerBlock, KroneckerFisher, fisher_kfac
from metalearn.core.curvature.lanczos import Lanczos, TopEigenvalues, lanczos, top_eigenvalues
from metalearn.core.curvature.trace import TraceEstimate, trace_estimate
from metalearn.core.curvature.spectral_density import SpectralDensity, spectral_density
from metalearn.core.curvature.likelihood import Likelihood
from metalearn.core.curvature.operators import fisher_operator, ggn_operator, hessian_operator
from metalearn.core.curvature.solve import NaturalGradient, natural_gradient, natural_gradient_step

# Posteriors over parameters, and penalties made of them
from metalearn.core.bayes.consolidation import consolidated_loss, consolidation_penalty
from metalearn.core.bayes.laplace import (
    Laplace,
    laplace_posterior,
    laplace_predictive,
    laplace_probabilities,
    last_layer,
)

__all__ = [
    # Functions of modules
    "convert_norm",
    "functionalize",
    # Functions that are compiled
    "CompiledFunction",
    "compiled",
    # Derivatives of functions of trees
    "Eager",
    "ggn_vp",
    "hessian",
    "hvp",
    "jacobian",
    "jacobian_mode",
    "jvp",
    "vjp",
    # Tasks: adaptation and the gradient through it
    "Adaptation",
    "Adapted",
    "Engine",
    "Implicit",
    "InnerOptimizer",
    "MetaGradient",
    "Method",
    "Plan",
    "adam",
    "adamw",
    "adapt",
    "along_adaptation",
    "inner_trajectory",
    "member_meta_gradient",
    "member_task_gradient",
    "meta_gradient",
    "plan_meta_gradient",
    "plan_task_gradient",
    "sgd",
    "task_gradient",
    "task_meta_gradients",
    # Runs: the gradient through a whole training
    "DirectionCheck",
    "HyperGradient",
    "HyperMethod",
    "HyperPlan",
    "HyperProgress",
    "ImplicitSolver",
    "check_hyper_gradient",
    "hyper_gradient",
    "plan_hyper_gradient",
    # Members: stacked networks and their gradients
    "MemberGradients",
    "map_members",
    "member_gradients",
    "stack",
    "unstack",
    # Samples: a gradient for each, clipped or reduced
    "ClippedGradient",
    "ClippingBias",
    "FormedGradients",
    "IndexedRows",
    "LayerCall",
    "NoiseScale",
    "OuterProducts",
    "Reduction",
    "SampleGradients",
    "check_per_sample",
    "clipped_gradient",
    "clipping_bias",
    "ghost_parameters",
    "gradient_mean",
    "gradient_noise_scale",
    "gradient_norms",
    "gradient_sketches",
    "gradient_variance",
    "noise_average",
    "norm_quantiles",
    "per_sample_gradients",
    "per_sample_module",
    "per_sample_norms",
    "reduce_per_sample",
    "register_layer_rule",
    # Curvature: Fisher, Gauss–Newton and Hessian
    "KroneckerBlock",
    "KroneckerFisher",
    "Lanczos",
    "Likelihood",
    "NaturalGradient",
    "SpectralDensity",
    "TopEigenvalues",
    "TraceEstimate",
    "effective_rank",
    "fisher_blocks",
    "fisher_diagonal",
    "fisher_kfac",
    "fisher_matrix",
    "fisher_operator",
    "fisher_trace",
    "fisher_vp",
    "ggn_operator",
    "hessian_operator",
    "lanczos",
    "natural_gradient",
    "natural_gradient_step",
    "spectral_density",
    "top_eigenvalues",
    "trace_estimate",
    # Posteriors over parameters, and penalties made of them
    "Laplace",
    "consolidated_loss",
    "consolidation_penalty",
    "laplace_posterior",
    "laplace_predictive",
    "laplace_probabilities",
    "last_layer",
    "with_gradients",
]
