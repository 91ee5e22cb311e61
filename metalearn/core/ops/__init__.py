"""Task-batched operations: layers with parameters of their own for every task.

Plain torch, on any device. Derivatives up to the second are exact, in reverse mode.
"""

from metalearn.core.ops.data_cache import caching_data
from metalearn.core.ops.decomposed_operations import (
    DecomposedOperations,
    decomposed_operations_in_loss,
)
from metalearn.core.ops.over_tasks import counting_operations, first_row, outside_transforms, unwrap
from metalearn.core.ops.sequence import runs_over_tasks
from metalearn.core.ops.substitution import task_operations, task_operations_active

__all__ = [
    "DecomposedOperations",
    "caching_data",
    "counting_operations",
    "decomposed_operations_in_loss",
    "first_row",
    "outside_transforms",
    "runs_over_tasks",
    "task_operations",
    "task_operations_active",
    "unwrap",
]
