"""Settings of trainings of ensembles on labelled data, checked.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from metalearn.core.memory import parse_bytes
from metalearn.data import ClassificationData
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.members.settings import PerMember, member_values
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.member_planner import MemberPlanner, PlannedEngine
from metalearn.trainers.supervised.model_evaluation import Monitor

__all__ = [
    "Shuffle",
    "check_beside_loss",
    "check_choices",
    "check_monitor",
    "checked_seeds",
    "made_planner",
    "own_settings",
]

_LARGEST_RATE = 1e36  # a step of ten times that is still a number of float32

Shuffle = Literal["member", "shared"]


def own_settings(
    count: int,
    lr: PerMember,
    weight_decay: PerMember,
    label_smoothing: PerMember,
    dropout: PerMember,
) -> dict[str, list[float] | None]:
    """Settings with a value for each member."""
    return {
        "lr": member_values("lr", lr, count, below=_LARGEST_RATE),
        "weight_decay": member_values("weight_decay", weight_decay, count),
        "label_smoothing": member_values("label_smoothing", label_smoothing, count, below=1),
        "dropout": member_values("dropout", dropout, count, below=1),
    }


def made_planner(
    engine: PlannedEngine,
    chunk_size: int | None,
    memory: str | int | None,
    settings: LoopSettings,
    device: torch.device,
) -> MemberPlanner:
    """What decides how gradients are taken, of settings that are checked here."""
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)
    if memory is not None:
        parse_bytes(memory)
    return MemberPlanner(
        engine=engine,
        chunk_size=chunk_size,
        memory=memory,
        deterministic=settings.deterministic,
        device=device,
    )


def checked_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """M seeds; 0..M−1 where none are given.

    Raises:
        SettingError: another number of seeds, or one out of range.
    """
    found = list(range(count)) if seeds is None else list(seeds)
    if len(found) != count:
        raise SettingError("seeds", found, f"{count} are needed, one for each member")
    for seed in found:
        check_whole("seeds", seed, 0, 2**63 - 1)
    return found


def check_choices(engine: str, shuffle: str, *, bootstrap: bool) -> None:
    """Refuse words that are not known, and one order of samples for all beside resamples.

    Raises:
        SettingError: names the setting.
    """
    for name, value, known in (("engine", engine, PlannedEngine), ("shuffle", shuffle, Shuffle)):
        if value not in get_args(known):
            raise SettingError(name, value, f"one of {', '.join(get_args(known))} is needed")
    if bootstrap and shuffle == "shared":
        raise SettingError("shuffle", shuffle, "member is needed beside bootstrap")


def check_beside_loss(
    loss: SupervisedLoss,
    data: SupervisedData,
    smoothing: Sequence[float] | None,
    ood: ClassificationData | None,
) -> None:
    """Refuse settings that only classes, or only cross-entropy, have a use for.

    Raises:
        SettingError: smoothing of labels beside another loss, ``ood`` beside real targets.
    """
    if loss.likelihood != "categorical" and any(smoothing or []):
        accepted = f"0 is needed beside loss={loss.name}: cross_entropy alone smooths labels"
        raise SettingError("label_smoothing", list(smoothing or []), accepted)
    if ood is not None and data.kind == "regression":
        accepted = "None is needed: uncertainties of classes alone are compared with a second set"
        raise SettingError("ood", type(ood).__name__, accepted)


def check_monitor(monitor: str, data: SupervisedData) -> None:
    """Refuse what decides nothing for these data.

    Raises:
        SettingError: an unknown word, or accuracy of real targets.
    """
    if monitor not in get_args(Monitor):
        raise SettingError("monitor", monitor, f"one of {', '.join(get_args(Monitor))} is needed")
    if monitor == "accuracy" and data.kind == "regression":
        raise SettingError("monitor", monitor, "loss is needed: real targets have no accuracy")
