"""A network that gives features of one picture at a time, and does not train.

Axes: N pictures, D features.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.core.module.copying import copy_module
from metalearn.errors import SettingError
from metalearn.models.heads import last_head, without_head
from metalearn.signatures import checked

__all__ = ["frozen_body"]


@checked
def frozen_body(module: nn.Module) -> nn.Module:
    """A copy of a network without its last layer, in evaluation mode, of which nothing trains.

    A network that ends in another layer than a linear one, or in none, is taken whole.

    Args:
        module: left as it is.

    Raises:
        SettingError: batch norms that take statistics of the batch at hand, with which a picture
            has no features of its own.
    """
    body = copy_module(module) if last_head(module) is None else without_head(module)
    for name, layer in body.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            accepted = (
                f"{name} takes statistics of the batch, so that no picture has features of its "
                "own; norm=group or layer converts it"
            )
            raise SettingError("frozen_features", True, accepted)
    return body.requires_grad_(False).eval()
