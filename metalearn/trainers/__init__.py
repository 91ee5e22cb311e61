"""Trainers: import them into your own code, or run them from ``scripts/train.py``."""

from metalearn.trainers.base import FitResult, Trainer
from metalearn.trainers.ensemble import EnsembleTrainer
from metalearn.trainers.inductive import InductiveModule
from metalearn.trainers.iterates import SnapshotTrainer, SWAGTrainer
from metalearn.trainers.learner import MetaLearner
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.maml import MAML
from metalearn.trainers.member_learner import MemberLearner
from metalearn.trainers.meta import MetaTrainer
from metalearn.trainers.one_network import BatchEnsembleTrainer, MCDropoutTrainer
from metalearn.trainers.sample_reports import EnsembleTest
from metalearn.trainers.supervised.per_sample import PerSampleTrainer
from metalearn.trainers.task_reports import MemberReport, TestReport
from metalearn.trainers.task_scores import MemberScores, TaskScores, mean_interval

__all__ = [
    "MAML",
    "BatchEnsembleTrainer",
    "EnsembleTest",
    "EnsembleTrainer",
    "FitResult",
    "InductiveModule",
    "LoopSettings",
    "MCDropoutTrainer",
    "MemberLearner",
    "MemberReport",
    "MemberScores",
    "MetaLearner",
    "MetaTrainer",
    "PerSampleTrainer",
    "SWAGTrainer",
    "SnapshotTrainer",
    "TaskScores",
    "TestReport",
    "Trainer",
    "mean_interval",
]
