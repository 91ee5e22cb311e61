"""Settings of an ensemble on labelled data as keywords, so that editors and mypy know them.

The names and hints are those of `EnsembleTraining`; `EnsembleTrainer` describes them. A test holds
one against the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from metalearn.data import ClassificationData
from metalearn.ranks import Ranks
from metalearn.tracking import TrackerChoice
from metalearn.trainers.loop.options import LoopOptions
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.members.settings import PerMember
from metalearn.trainers.supervised.ensemble_settings import Shuffle
from metalearn.trainers.supervised.losses import LossSetting
from metalearn.trainers.supervised.member_planner import PlannedEngine
from metalearn.trainers.supervised.member_weights import MemberWeights
from metalearn.trainers.supervised.metrics import Metrics
from metalearn.trainers.supervised.model_evaluation import Monitor

__all__ = ["EnsembleOptions"]


class EnsembleOptions(LoopOptions, total=False):
    """What `EnsembleTrainer` and the trainers of ensembles of one network hand on."""

    seeds: Sequence[int] | None
    steps: int
    batch_size: int
    shuffle: Shuffle
    bootstrap: bool
    max_shift: int
    flip: bool
    rotate: float
    lr: PerMember
    weight_decay: PerMember
    label_smoothing: PerMember
    dropout: PerMember
    member_weights: MemberWeights
    loss: LossSetting
    metrics: Metrics | None
    monitor: Monitor
    engine: PlannedEngine
    chunk_size: int | None
    memory: str | int | None
    member_curves: bool
    ood: ClassificationData | None
    optimizer: OptimizerFactory | None
    tracker: TrackerChoice | None
    folder: str | Path | None
    device: torch.device | str
    ranks: Ranks | None
