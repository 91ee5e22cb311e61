"""What a run shows and leaves behind: numbers, TensorBoard, figures, the progress bar, provenance.

Axes: T tasks, N samples of a task, K inner steps, C classes.
"""

from metalearn.tracking.figures import adaptation_figure, regression_figure, task_figure
from metalearn.tracking.progress import Progress
from metalearn.tracking.provenance import provenance, write_json
from metalearn.tracking.tracker import NullTracker, RunTracker, Tracker

__all__ = [
    "NullTracker",
    "Progress",
    "RunTracker",
    "Tracker",
    "adaptation_figure",
    "provenance",
    "regression_figure",
    "task_figure",
    "write_json",
]
