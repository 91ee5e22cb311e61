"""Plain ``nn.Module`` networks, with a head sized from the task, and ensembles of any networks."""

from metalearn.models.batch_ensemble import BatchEnsemble, RankOne
from metalearn.models.context import WithContext
from metalearn.models.conv4 import Conv4
from metalearn.models.dropout import DropBlock, Dropout, convert_dropout, set_draw
from metalearn.models.ensemble import Ensemble, Stack
from metalearn.models.heads import with_head, without_head
from metalearn.models.in_context import InContextTransformer
from metalearn.models.lora import LowRank, with_lora
from metalearn.models.mc_dropout import MCDropout
from metalearn.models.mlp import MLP
from metalearn.models.neural_process import NeuralProcess
from metalearn.models.recurrent import Recurrent
from metalearn.models.resnet12 import ResNet12
from metalearn.models.tokens import AveragedEmbeddings, TextTransformer
from metalearn.models.torchvision_models import torchvision_model
from metalearn.models.vit import ViT
from metalearn.models.weight_files import SavedWeights, read_weights
from metalearn.models.weights import load_weights

__all__ = [
    "MLP",
    "AveragedEmbeddings",
    "BatchEnsemble",
    "Conv4",
    "DropBlock",
    "Dropout",
    "Ensemble",
    "InContextTransformer",
    "LowRank",
    "MCDropout",
    "NeuralProcess",
    "Predictor",
    "RankOne",
    "Recurrent",
    "ResNet12",
    "SavedWeights",
    "Stack",
    "TextTransformer",
    "ViT",
    "WithContext",
    "convert_dropout",
    "load_weights",
    "read_weights",
    "set_draw",
    "torchvision_model",
    "with_head",
    "with_lora",
    "without_head",
]

Predictor = Ensemble | MCDropout | BatchEnsemble
"""What predicts ``[M, B, C]`` from ``[B, ...]`` and has a length M."""
