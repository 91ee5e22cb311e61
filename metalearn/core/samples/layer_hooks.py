"""Calls with parameters run so that inputs and gradients of outputs are told.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from metalearn.core.precision import without_autocast
from metalearn.core.samples.layer_calls import ParameterView
from metalearn.core.samples.layer_rules import LayerCall
from metalearn.core.samples.sample_gradients import SampleGradients
from metalearn.errors import SettingError

__all__ = ["LayerHooks", "Received", "Shown", "Views", "Wanted"]

Wanted = Callable[[int, LayerCall], bool]
"""Whether a call is to tell of a parameter, by its number."""
Received = Callable[[int, SampleGradients], SampleGradients]
"""What is kept of a parameter's gradients, by its number, in the place of inputs and gradients."""
Shown = Callable[[], Tensor]
Views = Sequence[ParameterView | None]


@dataclass
class LayerHooks:
    """What calls told of the parameters, by a hook on the gradient of each call's output."""

    params: Sequence[Tensor]
    count: int
    """N."""
    wanted: Wanted
    received: Received
    parts: list[list[SampleGradients]] = field(init=False)
    """By parameter, one for each call."""

    def __post_init__(self) -> None:
        self.parts = [[] for _ in self.params]

    def told(self, call: LayerCall, views: Views) -> Views:
        """Of which of its parameters a call is to tell."""
        return [v if v is not None and self.wanted(v.number, call) else None for v in views]

    def run(self, call: LayerCall, told: Views) -> Tensor:
        """The output of a call, to whose told parameters no gradient goes."""
        parameters = [
            given if view is None else view.of(self.params[view.number])
            for given, view in zip(call.parameters, told)
        ]
        return call.run(*parameters)

    def listen(
        self,
        name: str,
        call: LayerCall,
        told: Views,
        output: Tensor,
        inputs: Sequence[Shown],
        by_sample: Callable[[Tensor], Shown],
        outside: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Have the gradient of an output tell.

        Args:
            name: of the operation.
            call: see `LayerCall`.
            told: as `told` gave it.
            output: a tensor with a graph.
            inputs: for each of the call's, gives ``[N, *x]``.
            by_sample: of the output's gradient, gives ``[N, *z]``.
            outside: where these and the rules are run.
        """
        given = [(x, x._version, show) for x, show in zip(call.inputs, inputs)]

        def hook(dz: Tensor) -> None:
            shown = [by_sample(dz)]
            while given:
                x, version, show = given.pop(0)
                _refuse_written(name, x, version)
                shown.append(show)
            with outside():
                self._take(name, call, told, [show() for show in shown])

        output.register_hook(hook)  # type: ignore[no-untyped-call]

    def _take(self, name: str, call: LayerCall, told: Views, tensors: Sequence[Tensor]) -> None:
        dz, *inputs = tensors
        # as autocast gave them to the layer
        inputs = [x.to(dz.dtype) if x.is_floating_point() else x for x in inputs]
        with without_autocast(dz):
            for view, gradients_of in zip(told, call.gradients):
                if view is not None:
                    found = gradients_of(dz, *inputs)
                    _check_gradients(name, found, view.of(self.params[view.number]), self.count)
                    part = self.received(view.number, view.widened(found))
                    self.parts[view.number].append(part)


def _check_gradients(name: str, found: Any, parameter: Tensor, count: int) -> None:
    setting = f"layer rule of {name}"
    if not isinstance(found, SampleGradients):
        raise SettingError(setting, type(found).__name__, "SampleGradients of a kind are needed")
    got, wanted = (found.count, *found.shape), (count, *parameter.shape)
    if got != wanted:
        raise SettingError(setting, got, f"gradients {wanted} of a parameter are needed")


def _refuse_written(name: str, x: Tensor, version: int) -> None:
    if x._version != version:
        raise RuntimeError(
            f"the input of {name} was modified by an inplace operation after the call, which needs "
            "it for the gradients of single samples"
        )
