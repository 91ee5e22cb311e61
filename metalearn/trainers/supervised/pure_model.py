"""One module as a pure function of its parameters, in training and in evaluation.

Axes: N samples, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.core.checks import module_takes
from metalearn.core.tree import check_tensors
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.types import Params

__all__ = ["PureModel"]


class PureModel:
    """A module that is trained through a pure function of its parameters.

    Args:
        module: in the mode it is trained in, which may be another for each layer.
        vectorize: whether the function is meant for vmap.
        device: where the module is.
        stop: ends predictions that a signal breaks off.

    Attributes:
        params: those that are trained, which share storage with the module.
        buffers: everything else.
    """

    def __init__(
        self, module: nn.Module, *, vectorize: bool, device: torch.device, stop: StopSignal
    ) -> None:
        self.module, self.device, self._stop = module, device, stop
        self.apply, self.params, self.buffers = functionalize(module, vectorize=vectorize)
        self._modes = [(layer, layer.training) for layer in module.modules()]

    def outputs(self, params: Params, inputs: Tensor) -> Tensor:
        """``[N, C]`` at given parameters, in the mode the module is in."""
        found: Tensor = self.apply(params, self.buffers, inputs)
        return found

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs ``[1, N, C]`` in evaluation mode."""
        self._stop.check()
        check_tensors(inputs, "inputs")
        self.module.eval()
        with module_takes("inputs", inputs):
            outputs = self.outputs(self.params, inputs.to(self.device))
        self.train()
        return outputs[None]

    def train(self) -> None:
        """Put every layer in the mode it is trained in."""
        for layer, training in self._modes:
            layer.training = training

    def alone(self) -> dict[str, Tensor]:
        """Parameters as those of one model of several, ``[1, ...]``."""
        return {name: value[None] for name, value in self.params.items()}
