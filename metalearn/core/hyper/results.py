"""What the gradient through a run gives, and how far it is on its way.

Axes: K steps, R outer losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Values
from metalearn.core.hyper.run import Run
from metalearn.core.tree import tree_map
from metalearn.types import Params

__all__ = ["HyperGradient", "HyperProgress", "RunEnd", "detached", "result_of"]


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
    diagnostics: dict[str, Tensor]
    """Walked back: ``walk_norms``, ‖∂L_out/∂θ_k‖ over the leaves that move, from the end of the
    run to where the way back ended, ``[K + 1]``, or ``[R, K + 1]``: where they grow and grow
    towards the start, gradients through the run explode. Implicit: ``residual`` is
    ‖(H + λ)·x − b‖ / ‖b‖, ``stationarity`` ‖∇L_in(θ_K)‖ / ‖∇L_in(θ_0)‖."""


@dataclass(frozen=True)
class HyperProgress:
    """How far a gradient through a run is: forward to θ_K, then back."""

    phase: Literal["forward", "back"]
    step: int
    """k, where it stands."""
    steps: int
    """K."""
    snapshot: Callable[[], dict[str, Any]]
    """A tree of tensors and numbers; given as ``resume``, the gradient goes on from here, and
    comes out as if it had never stopped. States in a mapping of one's own are not in it."""


class RunEnd(NamedTuple):
    """Where a run ended."""

    values: Values
    """Of all leaves."""
    state: Any
    loss: Tensor
    losses: Tensor
    """``[K]``, each before its step."""


def result_of(
    run: Run,
    grads: Values,
    optimizer_grads: Any,
    end: RunEnd,
    diagnostics: dict[str, Tensor],
) -> HyperGradient:
    """Gradients of all leaves, and the end of the run, as trees."""
    own, shaping = run.apart([g.detach() for g in grads])
    params, _ = run.apart([v.detach() for v in end.values])
    state = end.state
    if transforms_active():  # whose outputs have to be tensors
        state = tree_map(lambda x: x if isinstance(x, Tensor) else torch.tensor(x), state)
    return HyperGradient(
        shaping,
        own,
        tree_map(Tensor.detach, optimizer_grads),
        end.loss.detach(),
        params,
        tree_map(detached, state),
        end.losses.detach(),
        {name: value.detach() for name, value in diagnostics.items()},
    )


def detached(leaf: Any) -> Any:
    """A tensor without its graph; what is no tensor as it is."""
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
