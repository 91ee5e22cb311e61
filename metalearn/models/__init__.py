"""Plain ``nn.Module`` networks, with a head sized from the task, and ensembles of any networks."""

from metalearn.models.conv4 import Conv4
from metalearn.models.dropout import Dropout, convert_dropout, set_draw
from metalearn.models.ensemble import Ensemble, Stack
from metalearn.models.mlp import MLP

__all__ = ["MLP", "Conv4", "Dropout", "Ensemble", "Stack", "convert_dropout", "set_draw"]
