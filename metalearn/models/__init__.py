"""Plain ``nn.Module`` networks, with a head sized from the task."""

from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP

__all__ = ["MLP", "Conv4"]
