"""A trainer's run as a function of weights on its examples: what it descended, step by step.

Axes: K steps, N examples of the training part, B samples of a batch, R targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.attribution.target_samples import checked_targets
from metalearn.core import InnerOptimizer, adam, adamw, sgd, with_gradients
from metalearn.core.hyper.run import run_of
from metalearn.core.meta.adapted_task import walk
from metalearn.core.module.copying import copy_module
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.network_run import NetworkRun, StepBatch
from metalearn.trainers.supervised.run_network import RunNetwork
from metalearn.trainers.trainer import Trainer
from metalearn.types import Params

__all__ = ["TrainingRun", "training_run"]


@dataclass(frozen=True)
class TrainingRun:
    """One network's run, as `metalearn.core.hyper_gradient` wants it: from `training_run`."""

    params: Params
    """Before the first step."""
    weights: Tensor
    """``[N]`` on the training examples, in the order of ``data.splits["train"]``."""
    optimizer: InnerOptimizer
    steps: int
    """K."""
    batch: Callable[[int], StepBatch]
    inner_loss: Callable[[Params, Tensor, StepBatch], Tensor]
    """(1/B)·Σ w_i·ℓ_i of a step's batch, as the trainer descends it."""
    target_losses: Callable[[Params, Any, tuple[Tensor, Tensor]], Tensor]
    """``[R]``, each in evaluation mode."""
    outputs: Callable[[Params, Tensor], Tensor]
    """In evaluation mode."""
    loss: SupervisedLoss
    rates: Tensor
    """``[K]``, of the optimiser."""
    data: SupervisedData
    network: nn.Module
    """In evaluation mode, as it stood before the first step."""
    counts: Tensor
    """``[N]``, whole numbers: how often each example is in an epoch; of a bootstrap 0, 1, 2, …"""

    def placed(self, targets: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Targets where the run computes.

        Raises:
            SettingError: what is no sample of the data's kind.
        """
        x, y = checked_targets(targets, self.data)
        return x.to(self.rates), y.to(self.rates.device)

    def states(self, at: Sequence[int]) -> Iterator[tuple[int, Params]]:
        """Parameters before step k, for every k of ``at`` in rising order, K the last; made anew.

        Raises:
            SettingError: numbers that do not rise from 0 to K.
        """
        if list(at) != sorted(set(at)) or not at or at[0] < 0 or at[-1] > self.steps:
            raise SettingError("at", list(at), f"rising numbers from 0 to {self.steps} are needed")
        wanted = set(at)
        run = run_of(
            self.inner_loss, self.target_losses, self.params, self.weights, self.batch, None,
            optimizer=self.optimizer, steps=self.steps, frozen=None, state=None,
        )  # fmt: skip
        points = walk(run.loop, run.start, run.batches, at[-1])
        for k, point in enumerate(points):
            if k in wanted:
                yield k, run.apart([value.detach() for value in point.values])[0]

    def sample_loss(self, params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss in evaluation mode: what scores at one state of the network take."""
        return self.target_losses(params, None, batch).mean()

    def arguments(self, targets: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Those of `metalearn.core.hyper_gradient`, for the losses of targets."""
        return {
            "inner_loss": self.inner_loss,
            "outer_loss": self.target_losses,
            "params": self.params,
            "hyper": self.weights,
            "inner_batches": self.batch,
            "outer_batch": self.placed(targets),
            "optimizer": self.optimizer,
            "steps": self.steps,
        }


def training_run(trainer: Trainer, *, member: int = 0, steps: int | None = None) -> TrainingRun:
    """The run that a trainer is about to make, of one of its networks.

    The trainer is one that has not begun: its weights are those that the run starts with. The run
    is its optimiser, schedule, batches, augmentation, dropout masks, clipping and weights on
    examples, computed again.

    Args:
        trainer: an `EnsembleTrainer`, or a `PerSampleTrainer` that does not clip samples.
        member: which of an ensemble's.
        steps: K; None is all steps of the trainer.

    Raises:
        SettingError: a trainer that has begun, or a run that is not a function of this kind:
            clipped or noisy gradients of samples, an average of the weights, accumulated batches,
            a lower precision, several groups of parameters, another optimiser than SGD, Adam or
            AdamW, running statistics.
    """
    network_run = getattr(trainer, "network_run", None)
    if network_run is None:
        accepted = "an EnsembleTrainer or a PerSampleTrainer is needed"
        raise SettingError("trainer", type(trainer).__name__, accepted)
    if trainer.step:
        raise SettingError("trainer", f"at step {trainer.step}", "one that has not begun is needed")
    settings = trainer.settings
    count = settings.steps if steps is None else steps
    check_whole("steps", count, 1, settings.steps)
    _check_settings(settings)
    parts: NetworkRun = network_run(member)
    network = RunNetwork(parts.module)
    optimizer, rates = _inner_optimizer(trainer, parts, settings, count)
    loss, smoothing = parts.loss, parts.smoothing

    def inner_loss(params: Params, weights: Tensor, batch: StepBatch) -> Tensor:
        x, y, rows, step = batch
        outputs = network.trained(params, x, step)
        return loss.criterion(outputs, y, smoothing, weights[rows])

    def target_losses(params: Params, hyper: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss.each(network.evaluated(params, batch[0]), batch[1])

    return TrainingRun(
        network.params, parts.weights, optimizer, count, parts.batch, inner_loss, target_losses,
        network.evaluated, loss, rates, parts.data, copy_module(parts.module).eval(),
        parts.batches.order.counts(member).to(rates.device),
    )  # fmt: skip


def _check_settings(settings: LoopSettings) -> None:
    """Refuse runs that are more than steps of an optimiser on batches."""
    for name, plain in (("accumulate", 1), ("average", None), ("precision", "float32")):
        if getattr(settings, name) != plain:
            accepted = f"{plain} is needed where a run is differentiated"
            raise SettingError(f"trainer.{name}", getattr(settings, name), accepted)


def _inner_optimizer(
    trainer: Trainer, parts: NetworkRun, settings: LoopSettings, steps: int
) -> tuple[InnerOptimizer, Tensor]:
    """The torch optimiser as a pure function, and its rate at each step."""
    given = trainer.optimizer
    if len(given.param_groups) != 1:
        accepted = "one group of parameters is needed where a run is differentiated"
        raise SettingError("optimizer.groups", len(given.param_groups), accepted)
    group = given.param_groups[0]
    base = float(group["lr"]) if parts.rate is None else parts.rate
    decay = float(group.get("weight_decay", 0.0)) if parts.decay is None else parts.decay
    like = next(iter(trainer.module.parameters()))
    rates = like.new_tensor([base * settings.rate(k) for k in range(steps)])
    made = _translated(given, group, rates, decay)
    if settings.clip is not None:
        made = with_gradients(made, clip_norm=float(settings.clip))
    return made, rates


def _translated(
    given: torch.optim.Optimizer, group: Mapping[str, Any], rates: Tensor, decay: float
) -> InnerOptimizer:
    kind = type(given)
    for name in ("dampening", "maximize", "amsgrad"):
        if group.get(name):
            accepted = f"an optimiser without {name} is needed where a run is differentiated"
            raise SettingError(f"optimizer.{name}", group[name], accepted)
    if kind is torch.optim.SGD:
        momentum, nesterov = float(group["momentum"]), bool(group["nesterov"])
        return sgd(rates, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = kind is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
        betas = tuple(float(beta) for beta in group["betas"])
        make = adamw if decoupled else adam
        return make(rates, betas=betas, eps=float(group["eps"]), weight_decay=decay)  # type: ignore[arg-type]
    raise SettingError("optimizer", kind.__name__, "SGD, Adam or AdamW of torch.optim is needed")
