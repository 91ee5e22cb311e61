"""Trainers: import them into your own code, or run them from ``scripts/train.py``."""

from metalearn.trainers.hyper.distilled import DistilledExamples
from metalearn.trainers.hyper.example_weights import LearntExampleWeights
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup, RunValues
from metalearn.trainers.hyper.learning_rates import LearntSchedule
from metalearn.trainers.hyper.registry import HYPER_KINDS
from metalearn.trainers.hyper.reports import HyperTest
from metalearn.trainers.hyper.run_settings import RunSettings
from metalearn.trainers.hyper.trainer import HyperTrainer
from metalearn.trainers.hyper.weight_decay import LearntWeightDecay
from metalearn.trainers.loop.parameter_groups import ParameterGroups
from metalearn.trainers.loop.result import FitResult
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.meta.anil import ANIL
from metalearn.trainers.meta.baseline_pp import BaselinePlusPlus
from metalearn.trainers.meta.boil import BOIL
from metalearn.trainers.meta.cavia import CAVIA
from metalearn.trainers.meta.cnp import ConditionalNeuralProcess
from metalearn.trainers.meta.imaml import ImplicitMAML
from metalearn.trainers.meta.in_context import InContextLearner
from metalearn.trainers.meta.inductive import InductiveModule
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.mamlpp import MAMLPlusPlus
from metalearn.trainers.meta.members import MemberLearner
from metalearn.trainers.meta.meta_sgd import MetaSGD
from metalearn.trainers.meta.metaoptnet import MetaOptNet
from metalearn.trainers.meta.multi_step import MultiStepLearner
from metalearn.trainers.meta.private import PrivateMetaTrainer
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.protomaml import ProtoMAML
from metalearn.trainers.meta.protonet import ProtoNet
from metalearn.trainers.meta.r2d2 import R2D2
from metalearn.trainers.meta.registry import LEARNERS, register_learner
from metalearn.trainers.meta.reports import MemberReport, TestReport
from metalearn.trainers.meta.reptile import Reptile
from metalearn.trainers.meta.rfs import RFS
from metalearn.trainers.meta.sample_learner import SampleLearner
from metalearn.trainers.meta.scores import MemberScores, TaskScores, mean_interval
from metalearn.trainers.meta.settings import MAML
from metalearn.trainers.meta.trainer import MetaTrainer
from metalearn.trainers.meta.uncertainty import ConformalSets
from metalearn.trainers.supervised.ensemble import EnsembleTrainer
from metalearn.trainers.supervised.focal import FocalLoss
from metalearn.trainers.supervised.iterates import SnapshotTrainer, SWAGTrainer
from metalearn.trainers.supervised.one_network import BatchEnsembleTrainer, MCDropoutTrainer
from metalearn.trainers.supervised.per_sample import PerSampleTrainer
from metalearn.trainers.supervised.private import PrivateTrainer
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.trainers.trainer import Trainer

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "HYPER_KINDS",
    "LEARNERS",
    "MAML",
    "R2D2",
    "RFS",
    "BaselinePlusPlus",
    "BatchEnsembleTrainer",
    "ConditionalNeuralProcess",
    "ConformalSets",
    "DistilledExamples",
    "EnsembleTest",
    "EnsembleTrainer",
    "FitResult",
    "FocalLoss",
    "HyperModule",
    "HyperTest",
    "HyperTrainer",
    "ImplicitMAML",
    "InContextLearner",
    "InductiveModule",
    "Learner",
    "LearntExampleWeights",
    "LearntSchedule",
    "LearntWeightDecay",
    "LoopSettings",
    "MAMLPlusPlus",
    "MCDropoutTrainer",
    "MemberLearner",
    "MemberReport",
    "MemberScores",
    "MetaLearner",
    "MetaOptNet",
    "MetaSGD",
    "MetaTrainer",
    "MultiStepLearner",
    "ParameterGroups",
    "PerSampleTrainer",
    "PrivateMetaTrainer",
    "PrivateTrainer",
    "ProtoMAML",
    "ProtoNet",
    "RegressionTest",
    "Reptile",
    "RunSettings",
    "RunSetup",
    "RunValues",
    "SWAGTrainer",
    "SampleLearner",
    "SnapshotTrainer",
    "TaskScores",
    "TestReport",
    "Trainer",
    "mean_interval",
    "register_learner",
]
