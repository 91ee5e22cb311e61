"""What the layers of a loss are given and send back, sample by sample, met at the call.

No module has to be known: whatever the loss calls ``F.linear``, ``F.conv2d`` or ``F.embedding``
with a parameter as its weight is answered, everything else runs as it is. The loss runs inside
``vmap(grad(...))`` over samples; the layer's input and the gradient of its output leave both by a
hook, as tensors that show their sample axis, so that the weight's gradients need not be taken by
torch.
Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.core._functorch import (
    current_level,
    get_unwrapped,
    maybe_get_bdim,
    maybe_get_level,
    temporarily_pop_interpreter_stack,
)
from metalearn.core.loss_checks import refuse_unreached
from metalearn.core.ops.decomposed_norms import decomposed_norms
from metalearn.core.ops.decomposed_operations import decomposed_operation
from metalearn.core.ops.lean_gradient import is_differentiated, lean_gradient
from metalearn.core.ops.windows import window_of
from metalearn.core.samples.layer_io import Convolution, Embedding, Layer, Linear
from metalearn.core.tree import flatten

__all__ = ["Call", "LayerCalls", "Measure", "SampleLayers"]

Call = tuple[Layer, Tensor, Tensor, Tensor | None]
"""Layer, input, weight, bias."""
Measure = Callable[[Layer, Tensor, Tensor], Tensor]
"""What is wanted of a layer, its inputs ``[N, ...]`` and output gradients ``[N, ...]``."""


@dataclass
class SampleLayers:
    """Takes gradients sample by sample; layer calls are answered, and tell what they received."""

    weights: Sequence[Tensor]
    """The parameters."""
    answers: Callable[[int, Layer], bool]
    """Whether to answer a call, by the number of its weight and its kind."""
    measure: Measure
    """Taken in the backward pass, once for each answered call."""
    measure_bias: Callable[[Layer, Tensor], Tensor] | None = None
    """The same for the bias of an answered call, of output gradients alone; None leaves it out."""
    measured: dict[int, list[Tensor]] = field(default_factory=dict)
    """What was measured, by the number of the weight."""
    reached: set[int] = field(default_factory=set)
    """Parameters to which a gradient came in another way than by an answered call."""

    def gradients(self, loss: Callable[[list[Tensor], Any], Tensor], batch: Any) -> list[Tensor]:
        """Gradients ``[N, ...]`` of ``loss(params, sample)`` without those of answered calls.

        Parameters that are not among ``reached`` have gradients of zero, which take no memory.

        Raises:
            SettingError: no parameter has a part in the loss.
        """
        count = len(flatten(batch)[0][0])
        values = [*self.weights, self.weights[0].new_zeros(())]
        keep = is_differentiated([*self.weights, *flatten(batch)[0]])

        def of_one(sample: Any) -> list[Tensor]:
            def inside(values: list[Tensor]) -> Tensor:
                level = current_level()
                answer = partial(self._answer, values[-1], level, count)
                with decomposed_norms(keep), LayerCalls(values[:-1], answer, level):
                    return loss(values[:-1], sample)

            found = lean_gradient(inside, values, keep_graph=keep)[:-1]
            self.reached |= {i for i, gradient in enumerate(found) if gradient is not None}
            zeros = (value.new_zeros(()).expand(value.shape) for value in self.weights)
            return [zero if g is None else g for g, zero in zip(found, zeros)]

        grads: list[Tensor] = torch.func.vmap(of_one)(batch)
        if not (self.reached or self.measured):
            refuse_unreached()
        return grads

    def _answer(
        self, origin: Tensor, level: int, count: int, index: int, bias_index: int | None, call: Call
    ) -> Any:
        """The output of a call, with a hook on its gradient; None to let the call run."""
        layer, x, _, bias = call
        if not self.answers(index, layer):
            return None
        if bias_index is not None and (
            self.measure_bias is None or not self.answers(bias_index, layer)
        ):
            bias_index = None
        bias = bias if bias_index is None else self.weights[bias_index]
        output = layer.forward(x, self.weights[index], bias)
        if not output.requires_grad:
            output = output + origin  # so that a gradient comes
        inputs = [(x, x._version, _unwrapped(x, level))]

        def hook(dz: Tensor) -> None:
            x, version, received = inputs.pop()
            if x._version != version:
                raise RuntimeError(
                    f"the input of {type(layer).__name__} was modified by an inplace operation "
                    "after the call, which needs it for the gradients of single samples"
                )
            pair = (received, _unwrapped(dz, level))
            with temporarily_pop_interpreter_stack(), temporarily_pop_interpreter_stack():
                x, dz = (_with_axis(*operand, count) for operand in pair)
                if x.is_floating_point() and x.dtype != dz.dtype:
                    x = x.to(dz.dtype)  # as autocast gave it to the layer
                with _without_autocast(dz):
                    self.measured.setdefault(index, []).append(self.measure(layer, x, dz))
                    if bias_index is not None and self.measure_bias is not None:
                        value = self.measure_bias(layer, dz)
                        self.measured.setdefault(bias_index, []).append(value)

        output.register_hook(hook)  # type: ignore[no-untyped-call]
        return output


def _unwrapped(tensor: Tensor, level: int) -> tuple[Tensor, int | None]:
    """A tensor from inside ``vmap(grad)``, ``level`` that of grad, and where its sample axis is."""
    if maybe_get_level(tensor) == level:
        tensor = get_unwrapped(tensor)
    if maybe_get_level(tensor) != level - 1:
        return tensor, None
    return get_unwrapped(tensor), maybe_get_bdim(tensor)


def _with_axis(tensor: Tensor, axis: int | None, count: int) -> Tensor:
    """The tensor with its sample axis in front."""
    return tensor.expand(count, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    kind = like.device.type
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if enabled else nullcontext()


class LayerCalls(TorchFunctionMode):
    """Offers layer calls whose weight is one of ``values`` to ``answer``.

    Args:
        values: the tensors themselves that the layers will be called with.
        answer: is given the number of the weight, that of the bias, or None, and the call; gives
            the output, or None to let the call run.
        level: of transforms of torch.func, at which calls are offered.
    """

    def __init__(
        self, values: Sequence[Tensor], answer: Callable[[int, int | None, Call], Any], level: int
    ) -> None:
        super().__init__()
        self._index = {id(value): i for i, value in enumerate(values)}
        self._answer, self._level = answer, level

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = decomposed_operation(function, args, kwargs, within=self)
        if plain is not None:
            return plain
        read = _READERS.get(function)
        # a transform inside of the loss has tensors of its own, which torch knows how to treat;
        # under no_grad no gradient will come
        ours = current_level() == self._level and torch.is_grad_enabled()
        call = read(*args, **kwargs) if read and ours else None
        index = self._index.get(id(call[2])) if call else None
        bias_index = self._index.get(id(call[3])) if call else None
        answer = self._answer(index, bias_index, call) if call and index is not None else None
        return function(*args, **kwargs) if answer is None else answer


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    plain = weight.dim() == 2 and (bias is None or bias.shape == weight.shape[:1])
    return (Linear(), input, weight, bias) if plain else None


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call | None:
    if groups != 1 or input.dim() != 4 or weight.dim() != 4:
        return None
    window = window_of(weight.shape[-2:], stride, padding, dilation)
    fits = input.shape[1] == weight.shape[1] and min(window.positions(*input.shape[2:])) >= 1
    if not fits or (padding == "same" and window.stride != (1, 1)):
        return None  # torch says what is wrong
    if any(before != after for before, after in window.padding):
        down, across = window.padding
        input, window = F.pad(input, (*across, *down)), window._replace(padding=((0, 0), (0, 0)))
    return Convolution(window), input, weight, bias


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Call | None:
    if max_norm is not None or scale_grad_by_freq or sparse:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return Embedding(padding_idx), input, weight, None


_READERS: dict[Any, Callable[..., Call | None]] = {
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.conv2d: _conv2d,
    F.embedding: _embedding,
}
