"""Task-batched operations: layers with parameters of their own for every task.

Plain torch, on any device. Derivatives up to the second are exact, in reverse mode.
"""

from metalearn.core.ops.calling import Calling, refuse_hooks
from metalearn.core.ops.over_tasks import counting, first_row, outside_transforms, unwrap
from metalearn.core.ops.plain_operations import (
    PlainOperations,
    plain_operations_inside,
)
from metalearn.core.ops.remembered import remembering
from metalearn.core.ops.sequence import runs_over_tasks
from metalearn.core.ops.substitution import substituting, task_operations

__all__ = [
    "Calling",
    "PlainOperations",
    "counting",
    "first_row",
    "outside_transforms",
    "plain_operations_inside",
    "refuse_hooks",
    "remembering",
    "runs_over_tasks",
    "substituting",
    "task_operations",
    "unwrap",
]
