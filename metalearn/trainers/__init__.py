"""Trainers: import them into your own code, or run them from ``scripts/train.py``."""

from metalearn.trainers.base import FitResult, Trainer
from metalearn.trainers.ensemble import EnsembleTest, EnsembleTrainer
from metalearn.trainers.learner import MetaLearner, TaskScores, mean_interval
from metalearn.trainers.loop_settings import LoopSettings
from metalearn.trainers.maml import MAML
from metalearn.trainers.meta import MetaTrainer, TestReport

__all__ = [
    "MAML",
    "EnsembleTest",
    "EnsembleTrainer",
    "FitResult",
    "LoopSettings",
    "MetaLearner",
    "MetaTrainer",
    "TaskScores",
    "TestReport",
    "Trainer",
    "mean_interval",
]
