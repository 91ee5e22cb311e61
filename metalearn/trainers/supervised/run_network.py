"""A network as a function of its parameters and of the step, for runs that are differentiated.

Axes: B samples of a batch, C outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.core.module.copying import copy_module
from metalearn.errors import SettingError
from metalearn.models import Dropout
from metalearn.types import Params

__all__ = ["RunNetwork"]


class RunNetwork:
    """A network in training and in evaluation mode, which writes nothing.

    Args:
        module: copied; left as it is.

    Attributes:
        params: those that are trained, by name, as the module has them.

    Raises:
        SettingError: a norm with running statistics, which a run would have to write; no parameter
            that is trained.
    """

    def __init__(self, module: nn.Module) -> None:
        _check(module)
        self._training, params, self._buffers = functionalize(copy_module(module).train())
        self._evaluation, _, _ = functionalize(copy_module(module).eval())
        self._draws = _draws(module)
        self.params: Params = {name: value.clone() for name, value in params.items()}
        if not self.params:
            accepted = "a parameter to train is needed (requires_grad=True)"
            raise SettingError("model", type(module).__name__, accepted)

    def trained(self, params: Params, inputs: Tensor, step: Tensor) -> Tensor:
        """Outputs ``[B, C]`` in training mode, with the dropout masks of a step, a scalar."""
        masks = {name: step.to(self._buffers[name]) for name in self._draws}
        found: Tensor = self._training(params, {**self._buffers, **masks}, inputs)
        return found

    def evaluated(self, params: Params, inputs: Tensor) -> Tensor:
        """Outputs ``[B, C]`` in evaluation mode."""
        found: Tensor = self._evaluation(params, self._buffers, inputs)
        return found


def _check(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if getattr(layer, "running_mean", None) is not None:
            accepted = (
                "a norm without running statistics is needed where a run is differentiated, such "
                "as convert_norm(model, 'group') makes"
            )
            raise SettingError("model", f"{name}: {type(layer).__name__}", accepted)


def _draws(module: nn.Module) -> list[str]:
    """Buffers that say which masks of dropout a step has."""
    return [
        f"{name}.draw" if name else "draw"
        for name, layer in module.named_modules()
        if isinstance(layer, Dropout)
    ]
