"""An audit of whole private trainings: many networks at once, half of them with a canary.

Axes: M networks, N samples of the training part, B of a batch, the largest of the M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.utils.rnn import pad_sequence

from metalearn.auditing.lower_bounds import EpsilonBound, epsilon_lower_bound
from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.privacy import privacy_spent, sampling_of
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.trainers import PrivateTrainer
from metalearn.types import Params

__all__ = ["TrainingAudit", "audit_private_training"]


@dataclass(frozen=True)
class TrainingAudit:
    """What an adversary who sees the trained weights alone found, beside what is claimed."""

    claimed: float
    """ε of the whole training, at ``delta``."""
    delta: float
    confidence: float
    bound: EpsilonBound
    """By the canary's loss after the training."""
    inside: Tensor
    """``[M/2]``: losses of the canary where it was trained on."""
    outside: Tensor
    """``[M/2]``: where it was not."""

    @property
    def lower_bound(self) -> float:
        """Of ε, whatever the mechanism."""
        return self.bound.epsilon

    @property
    def refuted(self) -> bool:
        """Whether the training is less private than is claimed."""
        return self.lower_bound > self.claimed

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "claimed_epsilon": self.claimed, "lower_bound": self.lower_bound,
            "refuted": self.refuted, "delta": self.delta, "confidence": self.confidence,
            "models": len(self.inside) + len(self.outside), "bound": dict(vars(self.bound)),
            "loss_inside": float(self.inside.mean()), "loss_outside": float(self.outside.mean()),
        }  # fmt: skip


@checked
def audit_private_training(
    trainer: PrivateTrainer,
    *,
    models: int = 200,
    models_at_once: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    tell: Callable[[int], Any] | None = None,
) -> TrainingAudit:
    """Train M networks at once as a trainer would, half of them on a canary too, and tell which.

    The canary is a sample of the training part with another label, or, of real targets, one far
    away. The adversary sees the trained networks alone and takes the canary's loss for a score
    (membership inference; Yeom et al., "Privacy Risk in Machine Learning", CSF 2018). With M
    networks the bound is at most about log(M/12) at a confidence of 95 %, whatever leaks.

    Batches are drawn, clipped, summed and given noise by the trainer's own parts, over a stack of
    networks that begin with the same weights; nothing of it is in the account.

    Args:
        trainer: that has not begun.
        models: M, even.
        models_at_once: of one stack; None is all.
        confidence: with which the bound holds.
        seed: of the choice of the canary.
        tell: is told of every step of a stack.

    Raises:
        SettingError: a trainer that has begun, one with augmentation or method="loop", a number
            out of range.
    """
    check_whole("models", models, 16)
    check_seed(seed)
    check_number("confidence", confidence, above=0, below=1)
    if models % 2:
        raise SettingError("models", models, "an even number is needed, half with the canary")
    if models_at_once is not None:
        check_whole("models_at_once", models_at_once, 1)
    if trainer.step:
        raise SettingError("trainer", f"at step {trainer.step}", "one that has not begun is needed")
    _check_parts(trainer)
    trainer.prepare()
    canary = _canary(trainer, seed)
    sizes = _stacks(models, models_at_once)
    worlds = [
        torch.cat([_losses(trainer, canary, count, taken, tell) for count in sizes])
        for taken in (True, False)
    ]
    inside, outside = worlds
    delta, steps = trainer.account.delta, trainer.settings.steps
    spent = privacy_spent(
        [(trainer.mechanism, steps)], delta, accountant=trainer.account.accountant
    )
    bound = epsilon_lower_bound(-inside, -outside, delta=delta, confidence=confidence)
    return TrainingAudit(spent.epsilon, delta, confidence, bound, inside, outside)


Samples = tuple[Tensor, Tensor]


def _check_parts(trainer: PrivateTrainer) -> None:
    if trainer.augmentation.active:
        raise SettingError("trainer", "augmentation", "a training without it is needed")
    if trainer.following is not None:
        accepted = "null is needed for a stack, whose networks have one norm"
        raise SettingError("trainer.clip_quantile", trainer.following.quantile, accepted)
    if trainer.objective.method == "loop":
        raise SettingError("trainer.method", "loop", "layers or vmap is needed for a stack")


def _stacks(models: int, at_once: int | None) -> list[int]:
    """How many networks of one world each stack has."""
    half = models // 2
    size = half if at_once is None else min(at_once, half)
    return [min(size, half - first) for first in range(0, half, size)]


def _canary(trainer: PrivateTrainer, seed: int) -> Samples:
    """A sample with a target that nothing but its being trained on explains."""
    data = trainer.data
    train = data.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    x, y = data.take(train[order[:1]], device=trainer.device)
    if y.is_floating_point():
        return x, y + 10 * (1 + y.abs())
    return x, (y + 1) % max(2, data.outputs)


def _losses(
    trainer: PrivateTrainer,
    canary: Samples,
    count: int,
    taken: bool,
    tell: Callable[[int], Any] | None,
) -> Tensor:
    """Of the canary, after ``count`` trainings with it or without, ``[count]``."""
    x, y = trainer.data.take(trainer.data.splits["train"], device=trainer.device)
    if taken:
        x, y = torch.cat([x, canary[0]]), torch.cat([y, canary[1]])
    mechanism = replace(trainer.mechanism, examples=len(y))
    secure = trainer.account.secure
    drawers = [
        sampling_of(mechanism, torch.arange(len(y)), seed=None if secure else m + count * taken)
        for m in range(count)
    ]
    params = {n: p.detach().expand(count, *p.shape).clone() for n, p in trainer.params.items()}
    optimizer = _optimizer(trainer, params)
    for step in range(trainer.settings.steps):
        rows = [drawer.draw(step) for drawer in drawers]
        grads = _noisy_gradients(trainer, params, (x, y), rows, step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial"] * trainer.settings.rate(step)
        for name, value in params.items():
            value.grad = grads[name]
        optimizer.step()
        if tell is not None:
            tell(step)
    with torch.no_grad():
        trainer.objective.model.module.eval()
        found: Tensor = vmap(lambda p: trainer.objective.loss(p, canary))(params)
    trainer.objective.model.train()
    return found.cpu()


def _optimizer(trainer: PrivateTrainer, params: dict[str, Tensor]) -> torch.optim.Optimizer:
    """One like the trainer's for a stack, each of whose networks it steps by itself."""
    given = trainer.optimizer
    if len(given.param_groups) != 1:
        raise SettingError("optimizer.groups", len(given.param_groups), "one group is needed")
    options = {k: v for k, v in given.param_groups[0].items() if k not in ("params", "initial_lr")}
    made = type(given)(params.values())  # type: ignore[call-arg]
    for group in made.param_groups:
        group.update({**options, "initial": trainer.loop.update.base_rates[0]})
    return made


def _noisy_gradients(
    trainer: PrivateTrainer, params: Params, data: Samples, rows: list[Tensor], step: int
) -> dict[str, Tensor]:
    """Of a step of each network, ``[M, ...]``; batches are filled up with samples of weight 0."""
    objective, size = trainer.objective, float(trainer.objective.expected)
    padded = pad_sequence([torch.cat([row, row.new_zeros(1)]) for row in rows], batch_first=True)
    counts = torch.tensor([len(row) for row in rows])
    weights = (torch.arange(padded.shape[1]) < counts[:, None]).to(trainer.device)
    padded = padded.to(trainer.device)
    batch = data[0][padded], data[1][padded], weights.to(data[0].dtype)

    def total(params: Params, batch: Any) -> Params:
        found = objective.clipped(params, batch)
        return {name: grad * batch[0].shape[0] / size for name, grad in found.grads.items()}

    means = vmap(total)(params, batch)
    assert objective.noise_multiplier
    return dict(objective.noisy(means, size, step=step))
