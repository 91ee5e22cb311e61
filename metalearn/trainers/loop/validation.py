"""A validation of a training: scored, recorded, and held against the best so far."""

from __future__ import annotations

import logging
from typing import Protocol

import torch

from metalearn.percent import decimals, is_accuracy, percent
from metalearn.tracking import NullTracker, layers_figure
from metalearn.trainers.loop.checkpointing import Checkpoints
from metalearn.trainers.loop.layers import by_layer
from metalearn.trainers.loop.protocols import Evaluation, Training
from metalearn.trainers.loop.unvalidated import Unvalidated

__all__ = ["Validated", "validate"]

log = logging.getLogger(__name__)


class Validated(Training, Protocol):
    """A training that also has checkpoints."""

    checkpoints: Checkpoints


def validate(loop: Validated) -> None:
    """Score what is trained, or the average of it, and keep what is better than before.

    Raises:
        NonFiniteError: parameters that are not finite.
        Stopped: a signal broke it off; it has left no trace.
    """
    loop.meet()
    loop.check_parameters()
    with loop.averaged():
        found = loop.evaluator(loop.step)
        with loop.stop.whole():
            _record(loop, found)
            better = loop.population.record_validation(found.scores, loop.step)
            loop.validation_due, loop.checkpoints.unsaved = False, True
            if better:
                loop.save("best")
    _tell(loop, found)


def _record(loop: Validated, found: Evaluation) -> None:
    """Leave numbers, figures and histograms with the tracker, and tell those who look on."""
    if not isinstance(loop.tracker, NullTracker):
        found.draw(loop.tracker, loop.step)
    loop.tracker.scalars(loop.step, found.numbers)
    if not isinstance(loop.tracker, NullTracker):
        _show_layers(loop)
    for callback in loop.callbacks:
        callback.after_validation(loop, found)


def _show_layers(loop: Validated) -> None:
    """Leave the weights of each layer, and the norm of the gradient that its last step took."""
    loop.tracker.histograms(loop.step, "weights", by_layer(loop.module, loop.parameters))
    grads = {n: p.grad for n, p in loop.parameters.items() if p.grad is not None}
    norms = {name: grad.norm() for name, grad in by_layer(loop.module, grads).items()}
    if norms:
        title = f"step {loop.step}: gradient after clipping, of all members"
        values = torch.stack([norm.float() for norm in norms.values()]).cpu()  # one wait for all
        figure = layers_figure(list(norms), values, label="norm of the gradient", title=title)
        loop.tracker.figure(loop.step, "weights/gradient_by_layer", figure)


def _shown(name: str, value: float) -> str:
    return percent(value) if is_accuracy(name) else decimals(value)


def _tell(loop: Validated, found: Evaluation) -> None:
    """A line for the log; a warning where something was scored NaN."""
    monitor, population = loop.evaluator.monitor, loop.population
    if not isinstance(loop.evaluator, Unvalidated):
        log.info(
            "step %d/%d: %s %s (best %s at step %d)",
            loop.step,
            loop.settings.steps,
            monitor,
            _shown(monitor, found.numbers[monitor]),
            _shown(monitor, population.best_value),
            population.best_step,
        )
    lost = population.nan_scores(found.scores, monitor)
    if lost:
        log.warning("step %d: %s is NaN in validation and cannot be the best", loop.step, lost)
