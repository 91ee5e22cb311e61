"""The focal loss of classes: what is right already counts less.

Axes: C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.signatures import known_fields

__all__ = ["FocalLoss"]


@known_fields
@dataclass(frozen=True)
class FocalLoss:
    """−(1 − p)^γ · log p of each sample, p the probability of its class; no mean is taken.

    As ``loss=`` of trainers it is known as ``"focal"`` with γ = 2. With γ = 0 it is the
    cross-entropy. log(1 − p) is computed from the other classes' logits, so that gradients are
    finite where p rounds to 1. A weight α of each class is a weight of its examples
    (``member_weights``).

    Attributes:
        gamma: γ, at least 0.

    Raises:
        SettingError: a γ below 0.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, least=0)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses ``[...]`` of logits ``[..., C]`` and classes ``[...]``."""
        logs = outputs.log_softmax(-1)
        own = targets.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=outputs.device)
        log_p = torch.where(own, logs, 0.0).sum(-1)
        if not self.gamma:
            return -log_p
        log_rest = logs.masked_fill(own, -math.inf).logsumexp(-1)
        return -(self.gamma * log_rest).exp() * log_p
