"""MC-dropout: one network whose dropout masks make it many.

Axes: M draws of masks, B samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core.ensemble.stacking import MemberEngine, map_members
from metalearn.core.module.functionalize import check_layers
from metalearn.core.module.pure_call import PureCall
from metalearn.errors import SettingError, check_whole
from metalearn.models.dropout import Dropout, convert_dropout
from metalearn.signatures import checked

__all__ = ["MCDropout"]

_FIRST = 2**31  # training counts its steps from 0: predictions use masks of their own


class MCDropout(nn.Module):
    """The predictions of one network under M draws of its dropout masks, ``[M, B, ...]``.

    Parameters are shared by all draws; the ``draw`` buffers of the `Dropout` layers are stacked.
    Dropout is active and every other layer in evaluation mode, whatever ``train()`` and ``eval()``
    say. A mask belongs to (layer, draw, place in the batch): the same call gives the same
    predictions.

    Args:
        network: with dropout layers, torch's or `Dropout`; copied.
        draws: M.
        seed: of the masks of torch's layers; a `Dropout` has its own key.

    Raises:
        SettingError: a network without dropout, or fewer than one draw.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.
    """

    @checked
    def __init__(self, network: nn.Module, draws: int = 10, *, seed: int = 0) -> None:
        super().__init__()
        check_whole("draws", draws, 1)
        self.network, self.draws = convert_dropout(network, seed=seed), draws
        self._dropouts = [
            name for name, layer in self.network.named_modules() if isinstance(layer, Dropout)
        ]
        if not self._dropouts:
            found = type(network).__name__
            raise SettingError("network", found, "one with dropout layers is needed")
        self.train(False)
        check_layers(self.network)
        self._call = PureCall(self.network, check_layers)

    def __len__(self) -> int:
        """M."""
        return self.draws

    def forward(self, *args: Any, engine: MemberEngine = "batched", **kwargs: Any) -> Any:
        """Outputs ``[M, ...]``, one row for each draw.

        Args:
            args: inputs ``[B, ...]``.
            engine: see `metalearn.core.ensemble.stacking.MemberEngine`.
            kwargs: of the network.
        """
        device = self.network.get_buffer(f"{self._dropouts[0]}.draw").device
        numbers = torch.arange(_FIRST, _FIRST + self.draws, device=device)

        def one(drawn: dict[str, Tensor]) -> Any:
            return self._call(drawn, {}, *args, **kwargs)

        return map_members(one, {f"{name}.draw": numbers for name in self._dropouts}, engine=engine)

    def train(self, mode: bool = True) -> MCDropout:
        """Keep dropout active and the rest in evaluation mode; ``mode`` changes nothing."""
        super().train(False)
        for name in self._dropouts:
            self.network.get_submodule(name).train(True)
        return self
