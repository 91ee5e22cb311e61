"""What a gradient through a run will cost, before it starts: one step is tried.

Axes: K steps, R outer losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metalearn.core.hyper.hyper_gradient import HyperMethod, check_choices
from metalearn.core.hyper.run import Loss, Run, run_of
from metalearn.core.hyper.unrolled import outer_gradient
from metalearn.core.hyper.walked import state_bytes, states_kept
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.memory import describe_bytes, peak_memory, synchronize
from metalearn.core.meta.backward_walk import BackwardWalk
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.kept_states import forward_steps
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, Params

__all__ = ["HyperPlan", "plan_hyper_gradient"]


@dataclass(frozen=True)
class HyperPlan:
    """What `hyper_gradient` by ``mixed`` or ``truncated`` takes."""

    steps: int
    """K."""
    states: int
    """How many are kept at once."""
    state_bytes: int
    """Of one: what moves, and the state of the optimiser."""
    forward_steps: int
    """Taken in all, those of the run among them."""
    back_steps: int
    step_bytes: int
    """Peak of one step back, beside the states."""
    seconds: float
    """Predicted, from one step forward and one back."""
    training_seconds: float
    """Of the K steps of the run alone."""

    def __str__(self) -> str:
        """One line for a log."""
        size = describe_bytes(self.states * self.state_bytes)
        states = f"{self.states} of {self.steps} states kept ({size})"
        again, each = self.forward_steps - self.steps, describe_bytes(self.step_bytes)
        way = f"{again} steps taken again, {self.back_steps} back ({each} at once)"
        ratio = self.seconds / max(self.training_seconds, 1e-9)
        return f"{states}, {way}; about {self.seconds:.3g} s, {ratio:.2g} times the run alone"


@outside_inference_mode
@checked
def plan_hyper_gradient(
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
) -> HyperPlan:
    """Time and memory of `hyper_gradient` with the same arguments.

    One step is taken forward and back, twice each: the second is timed.

    Raises:
        SettingError: a method that does not walk back over the run, and what `hyper_gradient`
            refuses.
    """
    run = run_of(
        inner_loss, outer_loss, params, hyper, inner_batches, outer_batch,
        optimizer=optimizer, steps=steps, frozen=frozen, state=state,
    )  # fmt: skip
    check_choices(method, run.steps, memory, truncation)
    if method not in ("auto", "mixed", "truncated"):
        raise SettingError("method", method, "one of auto, mixed, truncated is needed")
    states, back = states_kept(run, memory), truncation or run.steps
    forward = forward_steps(run.steps, states, back)
    ahead, behind, peak = _tried(run)
    return HyperPlan(
        run.steps, states, state_bytes(run), forward, back, peak,
        forward * ahead + back * behind, run.steps * ahead,
    )  # fmt: skip


def _tried(run: Run) -> tuple[float, float, int]:
    """Seconds of a step forward and of one back, and the peak bytes of the latter."""
    loss, grads = outer_gradient(run, run.start)

    def walk() -> BackwardWalk:
        way = BackwardWalk(run.loop, run.batches, 1, many=bool(loss.dim()))
        _, state = way.forward(run.start, run.state)
        way.begin(grads, state)
        return way

    way = walk()
    peak = peak_memory(way.back, loss.device)
    ahead = _seconds(walk, loss.device)
    way = walk()
    return ahead, _seconds(way.back, loss.device), peak


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start
