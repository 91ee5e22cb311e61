"""What a warm run leaves for the next one: its network and the state of its optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core import InnerOptimizer
from metalearn.core.tree import flatten, unflatten
from metalearn.types import Params

__all__ = ["Carried"]


class Carried(nn.Module):
    """Parameters and state as buffers, so that they go into checkpoints with what is learnt.

    Args:
        params: of the first run.
        optimizer: whose state begins anew.
    """

    def __init__(self, params: Params, optimizer: InnerOptimizer) -> None:
        super().__init__()
        values, self._spec = flatten((params, optimizer.init(params)))
        self._count = len(values)
        for name, value in self._named(values).items():
            self.register_buffer(name, value)

    def stands(self) -> tuple[Params, Any]:
        """Parameters and the optimiser's state, as copies."""
        values = [self.get_buffer(f"leaf_{index}").clone() for index in range(self._count)]
        found: tuple[Params, Any] = unflatten(values, self._spec)
        return found

    def after(self, params: Params, state: Any) -> dict[str, Tensor]:
        """New values of the buffers, by their names in here, at the end of a run."""
        return self._named(flatten((params, state))[0])

    @staticmethod
    def _named(values: list[Any]) -> dict[str, Tensor]:
        return {
            f"leaf_{index}": value.clone() if isinstance(value, Tensor) else torch.tensor(value)
            for index, value in enumerate(values)
        }
