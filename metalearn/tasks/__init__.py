"""Few-shot task distributions, addressed by (seed, split, index)."""

from metalearn.tasks.by_split import outputs_by_split
from metalearn.tasks.episodes import FewShotTasks
from metalearn.tasks.sinusoid import SinusoidTasks
from metalearn.tasks.sources import folder_tasks, glyph_tasks, omniglot_tasks

__all__ = [
    "FewShotTasks",
    "SinusoidTasks",
    "folder_tasks",
    "glyph_tasks",
    "omniglot_tasks",
    "outputs_by_split",
]
