"""From a configuration to objects to a run: the one room that knows Hydra and OmegaConf."""

from metalearn.cli.benchmarking import benchmark
from metalearn.cli.commands import run, train
from metalearn.cli.diagnosing import diagnose
from metalearn.cli.evaluation import evaluate
from metalearn.cli.loading import load_ensemble, load_learner, load_module
from metalearn.cli.tour import take_tour

__all__ = [
    "benchmark",
    "diagnose",
    "evaluate",
    "load_ensemble",
    "load_learner",
    "load_module",
    "run",
    "take_tour",
    "train",
]
