"""A learner in one state, as an ordinary module.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from metalearn.core.tree import flatten, unflatten

__all__ = ["StateModule"]


class StateModule(nn.Module):
    """``module(inputs)`` gives outputs ``[N, ...]`` as a learner predicts them in a state.

    It holds copies of the tensors of the state, in the order of the tree: ``state_0``, ….
    Floating-point ones are parameters, others buffers.

    Args:
        predict: ``predict(state, inputs)``.
        state: a tree of tensors, and of what stays as it is.
    """

    def __init__(self, predict: Callable[[Any, Tensor], Tensor], state: Any) -> None:
        super().__init__()
        self._predict = predict
        self._leaves, self._spec = flatten(state)
        for place, leaf in enumerate(self._leaves):
            if not isinstance(leaf, Tensor):
                continue
            self._leaves[place], name, value = None, f"state_{place}", leaf.detach().clone()
            if value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``[N, ...]`` of inputs ``[N, ...]``."""
        values = [getattr(self, f"state_{i}", leaf) for i, leaf in enumerate(self._leaves)]
        return self._predict(unflatten(values, self._spec), inputs)
