"""Plain ``nn.Module`` networks, with a head sized from the task, and ensembles of any networks."""

from metalearn.models.batch_ensemble import BatchEnsemble, RankOne
from metalearn.models.context import WithContext
from metalearn.models.conv4 import Conv4
from metalearn.models.dropout import Dropout, convert_dropout, set_draw
from metalearn.models.ensemble import Ensemble, Stack
from metalearn.models.mc_dropout import MCDropout
from metalearn.models.mlp import MLP

__all__ = [
    "MLP",
    "BatchEnsemble",
    "Conv4",
    "Dropout",
    "Ensemble",
    "MCDropout",
    "Predictor",
    "RankOne",
    "Stack",
    "WithContext",
    "convert_dropout",
    "set_draw",
]

Predictor = Ensemble | MCDropout | BatchEnsemble
"""What predicts ``[M, B, C]`` from ``[B, ...]`` and has a length M."""
