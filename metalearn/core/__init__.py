"""The mathematics: pure functions over parameter trees."""

from metalearn.core.adapt import Adapted, adapt, eager_grad_and_value, inner_trajectory
from metalearn.core.inner import InnerOptimizer, adam, sgd
from metalearn.core.meta_gradient import MetaGradient, map_tasks, meta_gradient
from metalearn.core.module import convert_norm, functionalize

__all__ = [
    "Adapted",
    "InnerOptimizer",
    "MetaGradient",
    "adam",
    "adapt",
    "convert_norm",
    "eager_grad_and_value",
    "functionalize",
    "inner_trajectory",
    "map_tasks",
    "meta_gradient",
    "sgd",
]
