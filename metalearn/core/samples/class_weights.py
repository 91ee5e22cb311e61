"""Class weights that a mean over one sample takes away again."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.errors import SettingError

__all__ = ["KeptClassWeights"]


class KeptClassWeights(TorchFunctionMode):
    """Refuses a weighted mean over a single label, inside the loss of one sample.

    ``cross_entropy`` and ``nll_loss`` divide a mean by the sum of the weights of its labels: over
    one label w·ℓ/w, the loss without a weight, whose gradients would be those of another loss than
    that of the batch. Several labels of a sample have a weighted mean of their own, and
    probabilities as targets are divided by their number.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _LOSSES and _cancels(*args, **kwargs):
            raise SettingError(
                "loss_fn",
                f"{function.__name__}(weight=…)",
                "reduction='sum' is needed for single samples: the mean over one label divides by "
                "its class weight, which leaves nothing of it",
            )
        return function(*args, **kwargs)


_LOSSES = (F.cross_entropy, F.nll_loss)


def _cancels(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *rest: Any,
    reduction: str = "mean",
    **others: Any,
) -> bool:
    reduction = rest[3] if len(rest) > 3 else reduction
    one = not target.is_floating_point() and target.numel() == 1
    return weight is not None and one and reduction == "mean"
