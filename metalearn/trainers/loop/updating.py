"""The end of a step: what changes, changes together.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from metalearn.trainers.loop.step import Proposal, like_layout
from metalearn.trainers.loop.validation import Validated

__all__ = ["make_update"]


def make_update(
    loop: Validated,
    grads: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    factor: float,
    proposal: Proposal | None,
) -> None:
    """Change the module, and count the step: together or not at all.

    Args:
        loop: whose step it is.
        grads: clipped, by name.
        buffers: new values of buffers, by name.
        factor: the schedule's.
        proposal: the update, where it has been computed; None lets the optimiser step.
    """
    own = dict(loop.module.named_buffers()) if buffers else {}
    for name, parameter in loop.parameters.items():
        grad = grads.get(name)  # none of a stack that is not trained any more
        if grad is not None and proposal is None:
            grad = like_layout(grad, parameter)
        parameter.grad = grad
    loop.set_rates(loop.step, factor)
    with loop.stop.whole():
        if proposal is None:
            loop.update(loop.population.stepped, factor)
        else:
            proposal.make()
        for name, value in buffers.items():
            own[name].copy_(value)
        for callback in loop.callbacks:
            callback.after_update(loop)
        loop.step += 1
        loop.checkpoints.unsaved = True
