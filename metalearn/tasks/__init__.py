"""Few-shot task distributions, addressed by (seed, split, index)."""

from metalearn.tasks.by_split import outputs_by_split
from metalearn.tasks.episodes import FewShotTasks
from metalearn.tasks.mixture import MixtureTasks
from metalearn.tasks.mixture_sources import mixture_tasks
from metalearn.tasks.own_arrays import array_tasks
from metalearn.tasks.published_sets import (
    cifar_fs_tasks,
    cub_tasks,
    fc100_tasks,
    mini_imagenet_tasks,
    tiered_imagenet_tasks,
)
from metalearn.tasks.saved_episodes import Episode, read_episodes
from metalearn.tasks.sinusoid import SinusoidTasks
from metalearn.tasks.sources import folder_tasks, glyph_tasks, omniglot_tasks, text_tasks

__all__ = [
    "Episode",
    "FewShotTasks",
    "MixtureTasks",
    "SinusoidTasks",
    "array_tasks",
    "cifar_fs_tasks",
    "cub_tasks",
    "fc100_tasks",
    "folder_tasks",
    "glyph_tasks",
    "mini_imagenet_tasks",
    "mixture_tasks",
    "omniglot_tasks",
    "outputs_by_split",
    "read_episodes",
    "text_tasks",
    "tiered_imagenet_tasks",
]
