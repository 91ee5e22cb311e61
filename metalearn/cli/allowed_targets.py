"""What a run's configuration may build, and what one from someone else's disk is held to.

Whatever stands behind ``_target_`` is imported and called, with arguments from the same file. What
a user types is theirs to call; what a file says must be in the table, or be trusted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from metalearn.errors import DataError

__all__ = ["TARGETS", "check_targets"]

_PICTURES = (
    "metalearn.data.digits_data",
    "metalearn.data.folder_data",
    "metalearn.data.glyphs_data",
    "metalearn.data.omniglot_data",
    "metalearn.data.torchvision_data",
)

TARGETS: Mapping[str, tuple[str, ...]] = {
    "task": (
        "metalearn.tasks.SinusoidTasks",
        "metalearn.tasks.cifar_fs_tasks",
        "metalearn.tasks.cub_tasks",
        "metalearn.tasks.fc100_tasks",
        "metalearn.tasks.folder_tasks",
        "metalearn.tasks.glyph_tasks",
        "metalearn.tasks.mini_imagenet_tasks",
        "metalearn.tasks.mixture_tasks",
        "metalearn.tasks.omniglot_tasks",
        "metalearn.tasks.text_tasks",
        "metalearn.tasks.tiered_imagenet_tasks",
    ),
    "data": (*_PICTURES, "metalearn.data.waves_data"),
    "ood": _PICTURES,
    "model": (
        "metalearn.models.AveragedEmbeddings",
        "metalearn.models.Conv4",
        "metalearn.models.MLP",
        "metalearn.models.Recurrent",
        "metalearn.models.ResNet12",
        "metalearn.models.TextTransformer",
        "metalearn.models.ViT",
        "metalearn.models.torchvision_model",
    ),
    "learner": (
        "metalearn.trainers.ANIL",
        "metalearn.trainers.BOIL",
        "metalearn.trainers.BaselinePlusPlus",
        "metalearn.trainers.CAVIA",
        "metalearn.trainers.ConditionalNeuralProcess",
        "metalearn.trainers.ImplicitMAML",
        "metalearn.trainers.InContextLearner",
        "metalearn.trainers.MAMLPlusPlus",
        "metalearn.trainers.MetaLearner",
        "metalearn.trainers.MetaOptNet",
        "metalearn.trainers.MetaSGD",
        "metalearn.trainers.MultiStepLearner",
        "metalearn.trainers.ProtoMAML",
        "metalearn.trainers.ProtoNet",
        "metalearn.trainers.R2D2",
        "metalearn.trainers.RFS",
        "metalearn.trainers.Reptile",
    ),
    "maml": ("metalearn.trainers.MAML",),
    "hyper": (
        "metalearn.trainers.DistilledExamples",
        "metalearn.trainers.LearntExampleWeights",
        "metalearn.trainers.LearntSchedule",
        "metalearn.trainers.LearntWeightDecay",
    ),
    "optimizer": (  # elementwise, so that they take the parameters of stacked members
        "torch.optim.ASGD",
        "torch.optim.Adadelta",
        "torch.optim.Adagrad",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.Adamax",
        "torch.optim.NAdam",
        "torch.optim.RAdam",
        "torch.optim.RMSprop",
        "torch.optim.Rprop",
        "torch.optim.SGD",
    ),
    "trainer": (
        "metalearn.trainers.BatchEnsembleTrainer",
        "metalearn.trainers.EnsembleTrainer",
        "metalearn.trainers.HyperTrainer",
        "metalearn.trainers.MCDropoutTrainer",
        "metalearn.trainers.MetaTrainer",
        "metalearn.trainers.PerSampleTrainer",
        "metalearn.trainers.PrivateMetaTrainer",
        "metalearn.trainers.PrivateTrainer",
        "metalearn.trainers.SWAGTrainer",
        "metalearn.trainers.SnapshotTrainer",
    ),
}
"""Group to what may stand as its ``_target_`` in a file; a name that was once here stays here."""

_PARTIAL = ("optimizer._partial_", "learner._partial_", "hyper._partial_")
_LONGEST = 100  # characters of a file that a sentence repeats
_HELP = "trust=true (in Python trust=True) builds it all the same: only for files that you trust"


def check_targets(values: Mapping[str, Any], path: Path, *, typed: Collection[str] = ()) -> None:
    """Refuse a configuration that would build, or look up, anything but what is in the table.

    Looked at is every entry at any depth: a ``_target_`` outside of its place or not in `TARGETS`,
    Hydra's other keywords (``_args_``, ``_convert_``, …; ``_partial_`` where we have it is ours),
    and interpolations, which a run's file, written resolved, has none of. Nothing is imported.

    Args:
        values: the configuration as plain containers, with every scalar as it is spelt.
        path: its file, for messages.
        typed: dotted names of settings that do not count, since the user gives them anew.

    Raises:
        DataError: names the file, the entry and what stands there.
    """
    for name, key, value in _entries(values):
        if name in typed:
            continue
        if key == "_target_":
            if value not in TARGETS.get(name.removesuffix("._target_"), ()):
                reason = "this is nothing that a run of metalearn builds there"
                raise DataError(f"{path}: {_short(name)}={_short(repr(value))}: {reason}; {_HELP}")
        elif _is_keyword(key) and name not in _PARTIAL:
            reason = "a run's configuration has no such keyword"
            raise DataError(f"{path}: {_short(name)}: {reason}; {_HELP}")
        elif isinstance(value, str) and "${" in value:
            reason = "a run's configuration is written without interpolations"
            raise DataError(f"{path}: {_short(name)}={_short(repr(value))}: {reason}; {_HELP}")
    for group in TARGETS:
        if isinstance(values.get(group), Mapping) and "_target_" not in values[group]:
            raise DataError(f"{path}: {group} has no _target_, so nothing says what it builds")


def _entries(values: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, own key and value of all that stands in nested mappings and lists."""
    if isinstance(values, Mapping):
        pairs = list(values.items())
    elif isinstance(values, list | tuple):
        pairs = list(enumerate(values))
    else:
        return
    for key, value in pairs:
        name = f"{prefix}.{key}" if prefix else str(key)
        yield name, key, value
        yield from _entries(value, name)


def _is_keyword(key: Any) -> bool:
    """Whether a key is one of Hydra's, or could be taken for one."""
    return isinstance(key, str) and key.strip().startswith("_") and key.strip().endswith("_")


def _short(text: str) -> str:
    """A text from the file as one short piece of a sentence."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
