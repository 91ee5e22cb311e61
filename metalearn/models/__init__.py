"""Plain ``nn.Module`` networks, with a head sized from the task, and ensembles of any networks."""

from metalearn.models.batch_ensemble import BatchEnsemble, RankOne
from metalearn.models.context import WithContext
from metalearn.models.conv4 import Conv4
from metalearn.models.dropout import Dropout, convert_dropout, set_draw
from metalearn.models.ensemble import Ensemble, Stack
from metalearn.models.in_context import InContextTransformer
from metalearn.models.mc_dropout import MCDropout
from metalearn.models.mlp import MLP
from metalearn.models.neural_process import NeuralProcess

__all__ = [
    "MLP",
    "BatchEnsemble",
    "Conv4",
    "Dropout",
    "Ensemble",
    "InContextTransformer",
    "MCDropout",
    "NeuralProcess",
    "Predictor",
    "RankOne",
    "Stack",
    "WithContext",
    "convert_dropout",
    "set_draw",
]

Predictor = Ensemble | MCDropout | BatchEnsemble
"""What predicts ``[M, B, C]`` from ``[B, ...]`` and has a length M."""
