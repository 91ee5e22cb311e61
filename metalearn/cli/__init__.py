"""From a configuration to objects to a run: the one room that knows Hydra and OmegaConf."""

from metalearn.cli.benchmarking import benchmark
from metalearn.cli.commands import evaluate, load_learner, run, train

__all__ = ["benchmark", "evaluate", "load_learner", "run", "train"]
