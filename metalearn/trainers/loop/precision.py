"""By how much gradients of networks computed in a narrow type differ, said when training begins.

Axes: M members, or 1.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from metalearn.models import set_draw
from metalearn.trainers.loop.gradient import batch_gradient
from metalearn.trainers.loop.protocols import Callback, Training
from metalearn.trainers.members.rows import Rows

__all__ = ["GradientError", "relative_errors"]

log = logging.getLogger(__name__)


class GradientError(Callback):
    """Compares the first gradient of a training in a narrow type with that in the weights' own.

    Args:
        dtype: in which networks are computed.
        rows: the networks, each compared by itself.
    """

    def __init__(self, dtype: torch.dtype, rows: Rows) -> None:
        self.dtype, self._rows = dtype, rows

    def begin(self, loop: Training) -> None:
        """Say the error to the log; buffers stay as they are."""
        if loop.finished:
            return
        index = loop.step * loop.settings.accumulate
        kept = {name: buffer.clone() for name, buffer in loop.module.named_buffers()}
        set_draw(loop.module, index)
        batch = loop.objective.batch(index)
        try:
            wide, narrow = (
                batch_gradient(loop, batch, loop.step, dtype).grads for dtype in (None, self.dtype)
            )
        finally:
            for name, buffer in loop.module.named_buffers():
                buffer.copy_(kept[name])
        errors = relative_errors(self._rows, narrow, wide)
        log.info(
            "precision %s: the gradient of batch %d differs from that in %s by %s of its norm",
            str(self.dtype).removeprefix("torch."),
            index,
            str(next(iter(loop.params.values())).dtype).removeprefix("torch."),
            _percent(errors),
        )


def relative_errors(
    rows: Rows, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> Tensor:
    """``[M]``: ‖g − g₀‖ / ‖g₀‖ of each network, all parameters together; NaN where g₀ is 0."""
    apart = {name: grad - wanted[name] for name, grad in found.items()}
    gap, size = (rows.norms(grads).detach().cpu().double() for grads in (apart, wanted))
    return gap / size


def _percent(errors: Tensor) -> str:
    """``0.42 %``, and of several networks the median and the largest."""
    known = errors[errors.isfinite()]
    if not len(known):
        return "an unknown part"
    if len(errors) == 1:
        return f"{float(known):.2%}"
    return f"{float(known.median()):.2%} (median of members; at most {float(known.max()):.2%})"
