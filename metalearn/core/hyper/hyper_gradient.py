"""The gradient of an outer loss after a training run with respect to what shaped the run.

Axes: K steps, R outer losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal, get_args

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.products import check_mode
from metalearn.core.hyper.implicit import ImplicitSolver, implicit_gradient
from metalearn.core.hyper.results import HyperGradient, HyperProgress
from metalearn.core.hyper.run import Loss, Run, run_of
from metalearn.core.hyper.unrolled import unrolled
from metalearn.core.hyper.walked import WalkedRun, states_kept
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.memory import parse_bytes
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import leaves
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, Params

__all__ = ["HyperMethod", "check_choices", "hyper_gradient"]

HyperMethod = Literal["auto", "reverse", "mixed", "truncated", "implicit", "first_order"]
"""``reverse`` differentiates through the unrolled run: exact; memory grows with K graphs of a step.
``mixed`` keeps some states and recomputes one step at a time on the way back: exact; memory grows
with √K, beside what is linear in K: a loss and R norms of each step, given rates and batches.
``truncated`` goes back over the last steps alone. ``implicit`` takes θ_K for a minimum of the inner
loss, whatever led there. ``first_order`` takes the gradient of the parameters at θ_K, and that of
``hyper`` in the outer loss alone; what the optimiser learns has the gradient through its steps,
inner gradients being constants. ``auto`` is ``mixed``."""

_WALKED = ("mixed", "truncated", "first_order")


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
    implicit: ImplicitSolver | None = None,
    state: Any = None,
    kept: MutableMapping[int, Any] | None = None,
    progress: Callable[[HyperProgress], Any] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> HyperGradient:
    """D L_out(θ_K, h) / dh and / dθ_0, where θ_{k+1} = θ_k + U(∇_θ L_in(θ_k, h, batch_k)).

    Args:
        inner_loss: ``inner_loss(params, hyper, batch)``, a scalar.
        outer_loss: ``outer_loss(params, hyper, batch)``, a scalar, or R losses carried together.
        params: θ_0, any tree of floating-point tensors.
        hyper: h, such a tree too; ``()`` where the optimiser alone learns.
        inner_batches: K batches, or a function from a step's number, from 0 on, to its batch.
        outer_batch: of the outer loss.
        optimizer: such as ``adam(1e-3)``; what is a tensor, also ``[K]`` step sizes, is learnt.
        steps: K, where batches are a function.
        method: see `HyperMethod`.
        frozen: patterns over names of parameters that stay as they are.
        memory: of the states that are kept, ``"1GB"``; None keeps √(2K): no step is taken thrice.
        truncation: how many steps ``truncated`` goes back over, 1 to K.
        implicit: how ``implicit`` solves its system; None is ``ImplicitSolver()``.
        state: of the optimiser, of an earlier run whose ``params`` these are; None starts anew.
        kept: an empty mapping that keeps states by k, on a disk for example; None is memory.
        progress: called after every step forward to θ_K and every step back.
        resume: ``progress.snapshot()``; other arguments, and ``kept``, as they were then.

    Raises:
        SettingError: arguments that do not fit; a loss without a part of what it is of; a function
            that gives another batch when it is asked again; another gradient's snapshot.

    Source: Maclaurin et al., "Gradient-based Hyperparameter Optimization through Reversible
    Learning", ICML 2015.
    """
    run = run_of(
        inner_loss, outer_loss, params, hyper, inner_batches, outer_batch,
        optimizer=optimizer, steps=steps, frozen=frozen, state=state,
    )  # fmt: skip
    check_choices(method, run.steps, memory, truncation)
    _check_for(method, implicit, {"kept": kept, "progress": progress, "resume": resume})
    if method == "reverse":
        return unrolled(run)
    if method == "implicit":
        return implicit_gradient(run, implicit or ImplicitSolver())
    way = _way_back(run, method, memory, truncation, kept=kept, progress=progress)
    return way.gradient(resume)


def _way_back(
    run: Run, method: str, memory: str | int | None, truncation: int | None, **how: Any
) -> WalkedRun:
    """As far as the method goes back."""
    if method == "first_order":
        learns = bool(leaves(run.loop.optimizer.learnt))
        states, end = (states_kept(run, memory), 0) if learns else (1, run.steps)
        return WalkedRun(run, states, end, first_order=True, **how)
    end = run.steps - truncation if truncation is not None else 0
    return WalkedRun(run, states_kept(run, memory), end, **how)


def check_choices(
    method: str, steps: int, memory: str | int | None, truncation: int | None
) -> None:
    """Refuse settings that a method has no use for."""
    check_mode("method", method, get_args(HyperMethod))
    if method == "truncated":
        if truncation is None:
            raise SettingError("truncation", None, f"a number of steps, 1 to {steps}, is needed")
        check_whole("truncation", truncation, 1, steps)
    elif truncation is not None:
        raise SettingError("truncation", truncation, "method='truncated' is needed for it")
    if memory is not None:
        parse_bytes(memory)
        if method in ("reverse", "implicit"):
            accepted = f"None is needed with method={method!r}, which keeps no states of the run"
            raise SettingError("memory", memory, accepted)


def _check_for(method: str, implicit: ImplicitSolver | None, walk_only: Mapping[str, Any]) -> None:
    """Refuse what belongs to other methods, or keeps nothing."""
    kept = walk_only["kept"]
    if kept is not None and not isinstance(kept, MutableMapping):
        raise SettingError("kept", type(kept).__name__, "an empty mutable mapping is needed")
    if implicit is not None and method != "implicit":
        raise SettingError("implicit", "a solver", "method='implicit' is needed for it")
    for name, value in walk_only.items():
        if value is None:
            continue
        if method not in (*_WALKED, "auto"):
            accepted = f"None is needed with method={method!r}, which does not walk back"
            raise SettingError(name, type(value).__name__, accepted)
        if transforms_active():
            accepted = "None is needed inside a transform of torch.func"
            raise SettingError(name, type(value).__name__, accepted)
