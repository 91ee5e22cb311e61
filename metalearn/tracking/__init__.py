"""What a run shows and leaves behind: numbers, TensorBoard, figures, the progress bar, provenance.

Axes: T tasks, N samples of a task, K inner steps, C classes.
"""

from metalearn.tracking.attribution_figures import ShownExample, examples_figure, target_figure
from metalearn.tracking.backends import RunFacts, TrackerBackend
from metalearn.tracking.backends.tensorboard_events import event_folder
from metalearn.tracking.comparison_figure import ComparedNumber, comparison_figure
from metalearn.tracking.diagnostic_figures import (
    matrix_figure,
    quantile_bands_figure,
    spectrum_figure,
)
from metalearn.tracking.ensemble_figures import (
    ensemble_size_figure,
    reliability_figure,
    sweep_figure,
    uncertainty_figure,
)
from metalearn.tracking.figures import adaptation_figure, regression_figure, task_figure
from metalearn.tracking.gradient_figures import layers_figure, noise_scale_figure
from metalearn.tracking.progress import Progress
from metalearn.tracking.provenance import code_versions, device_name, provenance, write_json
from metalearn.tracking.run_figures import (
    example_weights_figure,
    pictures_figure,
    schedule_figure,
)
from metalearn.tracking.run_tracker import RunTracker
from metalearn.tracking.score_figures import (
    foretold_figure,
    run_smoothness_figure,
    self_scores_figure,
)
from metalearn.tracking.table_figure import table_figure
from metalearn.tracking.tracker import NullTracker, Tracker, TrackerChoice

__all__ = [
    "ComparedNumber",
    "NullTracker",
    "Progress",
    "RunFacts",
    "RunTracker",
    "ShownExample",
    "Tracker",
    "TrackerBackend",
    "TrackerChoice",
    "adaptation_figure",
    "code_versions",
    "comparison_figure",
    "device_name",
    "ensemble_size_figure",
    "event_folder",
    "example_weights_figure",
    "examples_figure",
    "foretold_figure",
    "layers_figure",
    "matrix_figure",
    "noise_scale_figure",
    "pictures_figure",
    "provenance",
    "quantile_bands_figure",
    "regression_figure",
    "reliability_figure",
    "run_smoothness_figure",
    "schedule_figure",
    "self_scores_figure",
    "spectrum_figure",
    "sweep_figure",
    "table_figure",
    "target_figure",
    "task_figure",
    "uncertainty_figure",
    "write_json",
]
