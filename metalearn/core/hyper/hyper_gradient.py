"""The gradient of an outer loss after a training run with respect to what shaped the run.

Axes: K steps, R outer losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Values
from metalearn.core.hyper.run import Loss, Run, run_of
from metalearn.core.loss_checks import UnreachedError, check_reached, outside_inference_mode
from metalearn.core.memory import parse_bytes
from metalearn.core.meta.backward_walk import BackwardWalk
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import flatten, leaves, tree_map, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, Params

__all__ = ["HyperGradient", "HyperMethod", "hyper_gradient"]

HyperMethod = Literal["auto", "reverse", "mixed", "truncated", "first_order"]
"""``reverse`` differentiates through the unrolled run: exact; memory grows with K graphs of a step.
``mixed`` keeps some states and recomputes one step at a time on the way back: exact; memory grows
with √K. ``truncated`` goes back over the last steps alone. ``first_order`` takes the gradient of
the parameters at θ_K, and that of ``hyper`` in the outer loss alone; what the optimiser learns has
the gradient through its steps, inner gradients being constants. ``auto`` is ``mixed``."""


class HyperGradient(NamedTuple):
    """What `hyper_gradient` gives, detached; of R outer losses gradients have R in front."""

    hyper_grads: Any
    """A tree like ``hyper``."""
    grads: Params
    """Of the initial parameters; truncated, of those where the way back ended."""
    optimizer_grads: Any
    """A tree like ``optimizer.learnt``."""
    loss: Tensor
    """The outer loss at θ_K, a scalar or ``[R]``."""
    params: Params
    """θ_K."""
    state: Any
    """Of the optimiser after K steps, to go on from."""
    inner_losses: Tensor
    """``[K]``, each before its step."""


@outside_inference_mode
@checked
def hyper_gradient(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Params,
    hyper: Any,
    inner_batches: Any,
    outer_batch: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int | None = None,
    method: HyperMethod = "auto",
    frozen: str | Sequence[str] | None = None,
    memory: str | int | None = None,
    truncation: int | None = None,
    state: Any = None,
) -> HyperGradient:
    """D L_out(θ_K, h) / dh and / dθ_0, where θ_{k+1} = θ_k + U(∇_θ L_in(θ_k, h, batch_k)).

    Args:
        inner_loss: ``inner_loss(params, hyper, batch)``, a scalar.
        outer_loss: ``outer_loss(params, hyper, batch)``, a scalar, or a vector of R losses, whose
            gradients are carried back together.
        params: θ_0, any tree of floating-point tensors.
        hyper: h, any tree of floating-point tensors (weights of examples, of a regulariser, labels,
            inputs); ``()`` where the optimiser alone learns.
        inner_batches: K batches, a sequence, or a function from the number of a step, from 0 on, to
            its batch, with ``steps``; the way back asks for each again.
        outer_batch: of the outer loss.
        optimizer: for example ``sgd(0.1, momentum=0.9)`` or ``adam(1e-3)``; hyperparameters that
            are tensors, also ``[K]`` step sizes, have gradients in ``optimizer_grads``.
        steps: K, where batches are a function.
        method: see `HyperMethod`.
        frozen: patterns over names of parameters that stay as they are.
        memory: what the states that ``mixed`` keeps may take, ``"1GB"``; None keeps about √(2K),
            with which no step is taken forward more than twice. Where all K fit, none is.
        truncation: how many steps ``truncated`` goes back over, 1 to K.
        state: of the optimiser, of an earlier run whose ``params`` these are; None starts anew.

    Raises:
        SettingError: arguments that do not fit; an outer loss in which neither parameters nor
            ``hyper`` have a part, an inner loss without a parameter, K = 0, a function that does
            not give the same batch when it is asked again.

    Sources: Maclaurin, Duvenaud and Adams, "Gradient-based Hyperparameter Optimization through
    Reversible Learning", ICML 2015; Franceschi, Donini, Frasconi and Pontil, "Forward and Reverse
    Gradient-Based Hyperparameter Optimization", ICML 2017; Shaban, Cheng, Hatch and Boots,
    "Truncated Back-propagation for Bilevel Optimization", AISTATS 2019.
    """
    if method not in get_args(HyperMethod):
        raise SettingError("method", method, f"one of {', '.join(get_args(HyperMethod))} is needed")
    run = run_of(
        inner_loss, outer_loss, params, hyper, inner_batches, outer_batch,
        optimizer=optimizer, steps=steps, frozen=frozen, state=state,
    )  # fmt: skip
    _check_choices(method, run.steps, memory, truncation)
    if method == "reverse":
        return _unrolled(run)
    return _walked_back(run, method, memory, truncation)


def _walked_back(
    run: Run, method: str, memory: str | int | None, truncation: int | None
) -> HyperGradient:
    """By the walk back from θ_K."""
    states = 1 if method == "first_order" else _states_kept(run, memory)
    way = BackwardWalk(run.loop, run.batches, run.steps, states)
    learns = bool(leaves(run.loop.optimizer.learnt))
    (values, state), losses = way.forward(run.start, run.state)
    loss, cotangent = _outer_gradient(run, values)
    way.many = bool(loss.dim())
    way.begin(cotangent, state)
    if method == "first_order":
        way.constant_slopes = True
        grads = cotangent
        if learns:
            way.states = _states_kept(run, memory)
            while way.position:
                way.back()
    else:
        end = run.steps - truncation if truncation is not None else 0
        while way.position > end:
            way.back()
        grads = way.cotangent
    return _result(run, grads, way.learnt_grads(), loss, values, state, losses)


def _unrolled(run: Run) -> HyperGradient:
    """Through the graph of all steps at once."""
    learnt, spec = flatten(run.loop.optimizer.learnt)
    kept: dict[str, Any] = {}

    def objective(inputs: Values) -> Tensor:
        values = inputs[: len(run.start)]
        loop = run.loop.with_learnt(unflatten(inputs[len(run.start) :], spec))
        state, losses = run.state, []
        for k in range(run.steps):
            values, state, loss = loop.step(values, state, loop.batch(run.batches, k))
            losses.append(loss)
        kept["end"] = tree_map(_detached, (values, state, losses))
        return run.outer(values)

    inputs = [*run.start, *learnt]
    outer, pull = run.loop.backend.value_and_pull(lambda x: [objective(x)], inputs)
    loss = outer[0]
    if loss.dim():
        pull = run.loop.backend.pull_many(lambda x: [objective(x)], inputs)
        grads = pull([torch.eye(len(loss), dtype=loss.dtype, device=loss.device)])
    else:
        grads = pull([torch.ones_like(loss)])
    values, state, losses = kept["end"]
    count = len(run.start)
    optimizer_grads = unflatten(grads[count:], spec)
    return _result(run, grads[:count], optimizer_grads, loss, values, state, losses)


def _outer_gradient(run: Run, values: Values) -> tuple[Tensor, Values]:
    """The outer loss at the end, and its gradient of all leaves, ``[R, ...]`` of R."""

    def outer(values: Values) -> Values:
        return [_reached(run.outer(values))]

    backend = run.loop.backend
    (loss,), pull = backend.value_and_pull(outer, values)
    if not loss.dim():
        return loss, pull([torch.ones_like(loss)])
    pull = backend.pull_many(outer, values)
    return loss, pull([torch.eye(len(loss), dtype=loss.dtype, device=loss.device)])


def _reached(value: Tensor) -> Tensor:
    """The outer loss, refused where no leaf has a part in it."""
    if transforms_active():
        return value
    try:
        return check_reached(value, "outer_loss")
    except UnreachedError as error:
        accepted = "a loss is needed that is computed from the parameters, or from hyper"
        raise SettingError("outer_loss", "nothing of them in it", accepted) from error


def _result(
    run: Run,
    grads: Values,
    optimizer_grads: Any,
    loss: Tensor,
    values: Values,
    state: Any,
    losses: Sequence[Tensor],
) -> HyperGradient:
    own, shaping = run.apart([g.detach() for g in grads])
    params, _ = run.apart([v.detach() for v in values])
    if transforms_active():  # whose outputs have to be tensors
        state = tree_map(lambda x: x if isinstance(x, Tensor) else torch.tensor(x), state)
    return HyperGradient(
        shaping,
        own,
        tree_map(Tensor.detach, optimizer_grads),
        loss.detach(),
        params,
        tree_map(_detached, state),
        torch.stack([x.detach() for x in losses]),
    )


def _states_kept(run: Run, memory: str | int | None) -> int:
    """How many states are kept at once."""
    least = math.ceil(math.sqrt(2 * run.steps))
    if memory is None:
        return least
    moving = run.loop.adapting(run.start)
    tensors = [v for v in leaves(run.state) if isinstance(v, Tensor)]
    size = sum(v.numel() * v.element_size() for v in [*moving, *tensors])
    fits = parse_bytes(memory) // max(size, 1)
    if not fits:
        accepted = f"at least {size} bytes, those of one state, are needed"
        raise SettingError("memory", memory, accepted)
    return min(run.steps, fits)


def _check_choices(
    method: str, steps: int, memory: str | int | None, truncation: int | None
) -> None:
    """Refuse settings that a method has no use for."""
    if method == "truncated":
        if truncation is None:
            raise SettingError("truncation", None, f"a number of steps, 1 to {steps}, is needed")
        check_whole("truncation", truncation, 1, steps)
    elif truncation is not None:
        raise SettingError("truncation", truncation, "method='truncated' is needed for it")
    if memory is not None:
        parse_bytes(memory)
        if method == "reverse":
            accepted = "None is needed with method='reverse', which keeps the graph of all steps"
            raise SettingError("memory", memory, accepted)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
