"""One ordinary pass over a batch in the place of a ``vmap`` over its samples.

A loss that is written for batches, called with a batch of N samples, does to each of them what it
would do to it alone, until it takes the mean. Where a trial (see `batch_trial`) has shown which
axes of which tensors are of samples, the loss is run once on the whole batch. Its operations run as
they are; those that would mix samples, such as the mean at the end, run under ``vmap`` alone, so
that the loss comes out as one number for each sample. That the operations are those of the trial is
watched at every one of them.
Axes: N samples, ``[*one]`` the axes that a tensor has where the batch is one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core.module.private_copy import attention_as_now
from metalearn.core.ops.decomposed_operations import decomposed_as_in_transforms
from metalearn.core.samples.layer_calls import LayerCalls
from metalearn.core.samples.layer_hooks import LayerHooks, Received, Shown, Views
from metalearn.core.samples.layer_io import Collected
from metalearn.core.samples.layer_rules import LayerCall, LayerRule, telling_samples
from metalearn.core.samples.layouts import Layout, spread
from metalearn.core.samples.operations_by_sample import (
    NotBySampleError,
    one_by_one_of,
    tensor_arguments,
    tensors_in,
)
from metalearn.core.tree import flatten

__all__ = ["BatchCalls", "Output", "Step", "WholeLoss", "collect_whole", "run_whole"]

WholeLoss = Callable[[list[Tensor], Any], Tensor]
"""Of leaves and of a batch."""


class Output(NamedTuple):
    """A tensor that an operation gave."""

    layout: Layout | None
    """None for what is the same for all samples."""
    one: tuple[int, ...]
    """Its shape where the batch is one sample."""

    def has_shape(self, tensor: Tensor, count: int) -> bool:
        """Whether a tensor is the same of another number of samples."""
        wanted = self.one if self.layout is None else self.layout.shape(self.one, count)
        return tuple(tensor.shape) == wanted


class Step(NamedTuple):
    """One operation of a loss and how a batch takes it."""

    function: Any
    constants: tuple[tuple[int, Any], ...]
    """Arguments that are no tensors, by place, which do not depend on the number of samples."""
    outputs: tuple[Output, ...]
    given: tuple[Layout | None, ...]
    """Layouts of the arguments that are tensors."""
    by_sample: bool = False
    """Whether it runs under ``vmap``."""
    inputs: tuple[Layout | None, ...] | None = None
    """Of a layer's call; None for what is not answered."""
    is_spread: bool = False
    """Whether a layer's output, the same for all samples, is given once for each."""


class BatchCalls(LayerCalls):
    """Runs the operations of a loss of a whole batch as a trial had them.

    Args:
        values: what the loss is given as parameters.
        hooks: of the layers' calls.
        origin: a scalar with a graph, so that a gradient comes where no input has one.
        steps: of the trial.
    """

    def __init__(
        self, values: Sequence[Tensor], hooks: LayerHooks, origin: Tensor, steps: Sequence[Step]
    ) -> None:
        super().__init__(values, None, 0)
        self.hooks, self.origin, self.steps = hooks, origin, list(steps)
        self.place = 0
        self._now: Any = None
        self._attention = attention_as_now()

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What an operation gives, run as in the trial."""
        step = self.steps[self.place] if self.place < len(self.steps) else None
        same = step is not None and step.function == function
        if same and step is not None and step.by_sample:
            found = one_by_one_of(function, args, kwargs, step.given, self.hooks.count)
        else:
            found = self.plainly(function, args, kwargs)
        tensors = tensors_in(found)
        if tensors:
            if not same or step is None or step.inputs is not None:
                raise NotBySampleError(str(function))
            self._pass(step, tensors, args, kwargs)
        return found

    def plainly(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What the operation gives by itself; no second derivative is taken of attention."""
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        with self._attention:
            return function(*args, **kwargs)

    def answered(self, rule: LayerRule, function: Any, args: Any, kwargs: Any) -> Any:
        """The answer to a layer's call, as in the trial."""
        step = self.steps[self.place] if self.place < len(self.steps) else None
        if step is None or step.function != function or step.inputs is None:
            return None
        self._now = step, args, kwargs
        given = [id(x) for x in tensor_arguments(args, kwargs)]
        with telling_samples({i for i, layout in zip(given, step.given) if layout is not None}):
            return super().answered(rule, function, args, kwargs)

    def offer(self, name: str, call: LayerCall, views: Views) -> Tensor | None:
        """The output of a layer's call, as in the trial."""
        step, args, kwargs = self._now
        told = self.hooks.told(call, views)
        if len(call.inputs) != len(step.inputs):
            raise NotBySampleError(name)
        output = self.hooks.run(call, told)
        layout = step.outputs[0].layout
        if step.is_spread:
            output = spread(output, self.hooks.count)[0]
        self._pass(step, [output], args, kwargs)
        return self.listened(name, call, told, output, layout, step.inputs)

    def listened(
        self,
        name: str,
        call: LayerCall,
        told: Views,
        output: Tensor,
        layout: Layout | None,
        inputs: Sequence[Layout | None],
    ) -> Tensor:
        """The output of a call as a tensor whose gradient tells of the parameters."""
        output, hooked = _rooted(output, self.origin, call)
        whole, shown = tuple(output.shape), partial(_shown, count=self.hooks.count)
        kept = [shown(x.detach(), place) for x, place in zip(call.inputs, inputs)]

        def by_sample(dz: Tensor) -> Shown:
            return shown(dz.view(whole), layout)

        self.hooks.listen(name, call, told, hooked, kept, by_sample)
        return output

    def _pass(self, step: Step, tensors: Sequence[Tensor], args: Any, kwargs: Any) -> None:
        """Go on to the next step, where this one was as in the trial."""
        self.place += 1
        count, given = self.hooks.count, (*args, *kwargs.values())
        same = len(tensors) == len(step.outputs)
        same = same and all(out.has_shape(x, count) for out, x in zip(step.outputs, tensors))
        if not same or not all(
            place < len(given) and type(given[place]) is type(value) and given[place] == value
            for place, value in step.constants
        ):
            raise NotBySampleError(str(step.function))


def collect_whole(
    loss: WholeLoss,
    params: Sequence[Tensor],
    batch: Any,
    steps: Sequence[Step],
    received: Received = lambda index, gradients: gradients,
) -> Collected:
    """As `layer_io.collect` of the mean loss of a batch.

    Args:
        loss: of leaves like ``params`` and of a batch.
        params: the leaves.
        batch: a tree of tensors with a leading sample axis.
        steps: what the trial found.
        received: see `Received`.

    Raises:
        NotBySampleError: the loss does otherwise than in the trial.
    """

    def calls(values: Sequence[Tensor], hooks: LayerHooks, origin: Tensor) -> BatchCalls:
        return BatchCalls(values, hooks, origin, steps)

    found, mode = run_whole(loss, params, batch, calls, received)
    if mode.place != len(steps):
        raise NotBySampleError("it ended early")
    return found


def run_whole(
    loss: WholeLoss,
    params: Sequence[Tensor],
    batch: Any,
    calls: Callable[[Sequence[Tensor], LayerHooks, Tensor], Any],
    received: Received = lambda index, gradients: gradients,
) -> tuple[Collected, Any]:
    """What the calls of a loss of a whole batch told, met in a mode, and the mode."""
    count = len(flatten(batch)[0][0])
    constants = [p.detach() if p.requires_grad else p for p in params]
    values: list[Tensor] = [nn.Parameter(p) for p in params]
    origin = params[0].new_zeros(()).requires_grad_()
    hooks = LayerHooks(constants, count, lambda index, call: True, received)
    mode = calls(values, hooks, origin)
    with torch.enable_grad(), decomposed_as_in_transforms(), mode:
        losses = loss(values, batch)
    if not isinstance(losses, Tensor) or losses.shape != (count,) or not losses.requires_grad:
        raise NotBySampleError("no loss for each sample")
    ones = torch.ones_like(losses)
    grads = torch.autograd.grad(losses, [origin, *values], ones, allow_unused=True)
    if any(grad is not None for grad in grads[1:]):
        raise NotBySampleError("a parameter is used in another way")
    counts = [len(parts) for parts in hooks.parts]
    return Collected(losses.detach(), hooks.parts, counts, [False] * len(counts), params), mode


def _shown(tensor: Tensor, layout: Layout | None, count: int) -> Shown:
    if layout is None:
        return lambda: tensor.expand(count, *tensor.shape)
    return lambda: layout.by_sample(tensor, count)


def _whole_base(output: Tensor, call: LayerCall) -> Tensor | None:
    """What an output is another shape of; it keeps a hook when the output is written into."""
    base = output._base
    if base is None or any(x is base or x._base is base for x in call.inputs):
        return None
    same = base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if same else None


def _rooted(output: Tensor, origin: Tensor, call: LayerCall) -> tuple[Tensor, Tensor]:
    """The output as a tensor through which a gradient goes, and what a hook stays at."""
    base = _whole_base(output, call)
    if output.requires_grad:
        return output, output if base is None else base
    if base is not None:
        base = _Root.apply(base, origin)  # type: ignore[no-untyped-call]
        return base.view(output.shape), base
    is_view = output._is_view()  # such as of what is spread over samples
    rooted = output + origin if is_view else _Root.apply(output, origin)  # type: ignore[no-untyped-call]
    return rooted, rooted


class _Root(torch.autograd.Function):
    """The same tensor, with a graph down to the origin, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, origin: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None
