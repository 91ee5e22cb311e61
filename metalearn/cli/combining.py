"""Finished runs as one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from metalearn.cli.loading import load
from metalearn.errors import SettingError
from metalearn.percent import percent
from metalearn.signatures import checked
from metalearn.trainers import Trainer
from metalearn.trainers.meta.combined import CombinedMetaTrainers
from metalearn.trainers.supervised.combined import CombinedEnsembles, CombinedNetworks
from metalearn.trainers.supervised.sample_training import SampleTraining

__all__ = ["combine", "combined", "member_lines"]

Combined: TypeAlias = CombinedMetaTrainers | CombinedEnsembles | CombinedNetworks


@checked
def combine(
    runs: Sequence[str | Path | Trainer],
    *,
    which: Literal["best", "last"] = "best",
    trust: bool = False,
    device: str | torch.device | None = None,
) -> Combined:
    """Several finished runs as one ensemble, whose prediction is the mean of all their networks.

    Runs on tasks may be of any learners; their ``learner`` adapts and scores, ``reports()`` has the
    ensemble beside its members. Runs of ensembles, or of single networks
    (``trainer=per_sample``, ``private``), need the same data; the ``predictive()`` of the former
    and ``predict`` of the latter give ``[M, B, C]``. Nothing is trained, and no run is written to.

    Args:
        runs: at least two folders, or trainers.
        which: see `load`, as the rest.
        trust: see `load`.
        device: see `load`.

    Raises:
        SettingError, DataError: fewer runs, runs that cannot be read or do not go together.
    """
    trainers = [
        load(run, which=which, trust=trust, device=device) if isinstance(run, str | Path) else run
        for run in runs
    ]
    return combined(trainers)


def combined(trainers: Sequence[Trainer]) -> Combined:
    """Trainers of one kind as one.

    Raises:
        SettingError: see `combine`.
    """
    if len(trainers) < 2:
        raise SettingError("run", len(trainers), "at least two runs are needed to be combined")
    learners: list[Any] = [trainer for trainer in trainers if hasattr(trainer, "learner")]
    if len(learners) == len(trainers):
        return CombinedMetaTrainers(learners)
    several: list[Any] = [trainer for trainer in trainers if hasattr(trainer, "predictive")]
    if len(several) == len(trainers):
        return CombinedEnsembles(several)
    single: list[Any] = [trainer for trainer in trainers if _of_one_network(trainer)]
    if len(single) == len(trainers):
        return CombinedNetworks(single)
    other = next(t for t in trainers if t not in several) if several else trainers[-1]
    accepted = (
        "runs on tasks, or runs of ensembles, or runs of single networks on samples, are needed, "
        "not some of each or others"
    )
    raise SettingError("run", type(other).__name__, accepted)


def _of_one_network(trainer: Any) -> bool:
    return isinstance(getattr(trainer, "training", None), SampleTraining)


def member_lines(names: Sequence[str], members: Sequence[int], report: Any) -> list[str]:
    """Each network by its run, with the scores that it has alone.

    Args:
        names: of the runs.
        members: of each network, the number of its run.
        report: of the ensemble.
    """
    width = max(map(len, names))
    lines = []
    for number, scores in zip(members, report.member_headlines()):
        shown = ", ".join(_score(name.removeprefix("test/"), v) for name, v in scores.items())
        lines.append(f"  {names[number]:<{width}}  {shown}")
    return lines


def _score(name: str, value: float) -> str:
    return f"{name} {percent(value)}" if name.endswith("accuracy") else f"{name} {value:.4f}"
