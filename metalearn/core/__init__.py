"""The mathematics: pure functions over parameter trees."""

from metalearn.core.adapt import Adapted, adapt, inner_trajectory
from metalearn.core.calculus import Eager
from metalearn.core.derivatives import ggn_vp, hessian, hvp, jacobian, jacobian_mode, jvp, vjp
from metalearn.core.engines import Engine
from metalearn.core.inner import InnerOptimizer, adam, sgd
from metalearn.core.meta_gradient import MetaGradient, Method, along_adaptation, meta_gradient
from metalearn.core.methods import Implicit
from metalearn.core.module import convert_norm, functionalize
from metalearn.core.plan import Plan, plan_meta_gradient

__all__ = [
    "Adapted",
    "Eager",
    "Engine",
    "Implicit",
    "InnerOptimizer",
    "MetaGradient",
    "Method",
    "Plan",
    "adam",
    "adapt",
    "along_adaptation",
    "convert_norm",
    "functionalize",
    "ggn_vp",
    "hessian",
    "hvp",
    "inner_trajectory",
    "jacobian",
    "jacobian_mode",
    "jvp",
    "meta_gradient",
    "plan_meta_gradient",
    "sgd",
    "vjp",
]
