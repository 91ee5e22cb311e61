"""How a network of a trainer is trained again: arguments of `retrain_subsets`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch

from metalearn.errors import SettingError
from metalearn.trainers.supervised.network_run import NetworkRun
from metalearn.trainers.trainer import Trainer

__all__ = ["retraining_settings"]

_LOOKING = (
    "diagnostics", "diagnostics_every", "log_every", "eval_every", "checkpoint_every", "patience",
    "progress",
)  # fmt: skip


def retraining_settings(trainer: Trainer, *, member: int = 0) -> dict[str, Any]:
    """Arguments with which `retrain_subsets` trains a network as this trainer does.

    They are all but weights and targets: ``network``, ``data``, ``seeds``, and the settings.

    Args:
        trainer: that has not begun, whose weights are those that subsets begin with.
        member: which of an ensemble's.

    Raises:
        SettingError: a trainer without such a network, or a run that was weighted already.
    """
    make = getattr(trainer, "network_run", None)
    if make is None:
        accepted = "an EnsembleTrainer or a PerSampleTrainer is needed"
        raise SettingError("trainer", type(trainer).__name__, accepted)
    run: NetworkRun = make(member)
    if not bool((run.weights == 1).all()):
        accepted = "a run without member_weights is needed: subsets are weights of their own"
        raise SettingError("member_weights", "weights", accepted)
    batches, loss = run.batches, run.loss
    loop = {
        field.name: getattr(trainer.settings, field.name)
        for field in fields(trainer.settings)
        if field.name not in _LOOKING
    }
    shown = {name: getattr(batches.augmentation, name) for name in ("max_shift", "flip", "rotate")}
    return {
        "network": run.module,
        "data": run.data,
        "seeds": batches.order.seeds[member % len(batches.order.seeds)],
        "batch_size": batches.batch_size,
        "bootstrap": batches.order.bootstrap,
        "label_smoothing": float(run.smoothing),
        "loss": loss.each if loss.own else loss.name,
        "optimizer": _Again(trainer.optimizer, run.rate, run.decay),
        "device": trainer.device,
        **shown,
        **loop,
    }


class _Again:
    """Makes an optimiser like a given one, of other parameters.

    Args:
        optimizer: that it is like.
        rate: in place of its learning rate; None keeps that.
        decay: in place of its weight decay; None keeps that.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, rate: float | None, decay: float | None
    ) -> None:
        self._kind = type(optimizer)
        taken = inspect.signature(self._kind.__init__).parameters
        self.keywords = {n: v for n, v in optimizer.defaults.items() if n in taken}
        self.keywords |= {} if rate is None else {"lr": rate}
        self.keywords |= {} if decay is None else {"weight_decay": decay}

    def __call__(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser."""
        return self._kind(parameters, **self.keywords)
