"""An audit of whole private trainings: many networks at once, half of them with a canary.

Axes: M networks, N samples of the training part, B of a batch, the largest of the M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.utils.rnn import pad_sequence

from metalearn.auditing.lower_bounds import EpsilonBound, epsilon_lower_bound
from metalearn.auditing.private_step import noise_apart
from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.models import set_draw
from metalearn.privacy import (
    BandedGaussian,
    BatchSampling,
    PartitionedSampling,
    PoissonSampling,
    privacy_spent,
    sampling_of,
)
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
    away. The two worlds are neighbours as the account has them: with Poisson sampling the canary is
    there beside all others, each drawn with the same chance; with sampling of fixed size it stands
    in its sample's place, where that stands itself in the other world; with shuffled batches the
    place is empty in the other world. The adversary sees the trained networks alone and takes the
    canary's loss for a score (membership inference; Yeom et al., "Privacy Risk in Machine
    Learning", CSF 2018). With M networks the bound is at most about log(M/12) at a confidence of
    95 %, whatever leaks.

    Batches are drawn, clipped, summed and given noise by the trainer's own parts, over a stack of
    networks that begin with the same weights; the gradient is limited and the weights are averaged
    as the trainer's settings say. Nothing of it is in the account.

    Args:
        trainer: that has not begun.
        models: M, even.
        models_at_once: of one stack; None is all.
        confidence: with which the bound holds.
        seed: of the choice of the canary.
        tell: is told of every step of a stack.

    Raises:
        SettingError: a trainer that has begun, one with augmentation or method="loop", a number
            out of range, networks that did not stay finite.
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
    with noise_apart(trainer):
        inside, outside = _both_worlds(trainer, models // 2, models_at_once, seed, tell)
    delta, steps = trainer.account.delta, trainer.settings.steps
    spent = privacy_spent(
        [(trainer.mechanism, steps)], delta, accountant=trainer.account.accountant
    )
    bound = epsilon_lower_bound(-inside, -outside, delta=delta, confidence=confidence)
    return TrainingAudit(spent.epsilon, delta, confidence, bound, inside, outside)


Samples = tuple[Tensor, Tensor]


class _World(NamedTuple):
    """What networks are trained on."""

    inputs: Tensor
    targets: Tensor
    parts: Tensor
    """``[N]``: 1, or 0 of a sample that counts as none."""


def _both_worlds(
    trainer: PrivateTrainer,
    half: int,
    at_once: int | None,
    seed: int,
    tell: Callable[[int], Any] | None,
) -> list[Tensor]:
    """Losses of the canary where it was trained on, and where it was not, ``[M/2]`` each."""
    place, canary = _canary(trainer, seed)
    found = []
    for taken, first in ((True, half), (False, 0)):
        world = _world(trainer, canary, place, taken=taken)
        stacks = _stacks(range(first, first + half), at_once)
        found.append(torch.cat([_losses(trainer, world, canary, some, tell) for some in stacks]))
    if bool(torch.cat(found).isnan().any()):
        accepted = "trainings are needed whose networks stay finite"
        raise SettingError("trainer", "a loss that is no number", accepted)
    return found


def _check_parts(trainer: PrivateTrainer) -> None:
    if trainer.augmentation.active:
        raise SettingError("trainer", "augmentation", "a training without it is needed")
    if trainer.following is not None:
        accepted = "null is needed for a stack, whose networks have one norm"
        raise SettingError("trainer.clip_quantile", trainer.following.quantile, accepted)
    if trainer.growing is not None:
        accepted = "null is needed for a stack, whose networks have one size of batches"
        raise SettingError("trainer.batch_growth", trainer.growing.plan.most, accepted)
    if trainer.objective.method == "loop":
        raise SettingError("trainer.method", "loop", "layers or vmap is needed for a stack")
    bands = len(trainer.noise.strategy)
    if bands > 1 and not trainer.account.secure:
        raise SettingError("trainer.noise", "seeded", f"secure is needed with noise_bands={bands}")


def _stacks(numbers: range, at_once: int | None) -> list[range]:
    """The networks of a world, stack by stack."""
    size = len(numbers) if at_once is None else at_once
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def _canary(trainer: PrivateTrainer, seed: int) -> tuple[int, Samples]:
    """A sample, its place, and a target that nothing but its being trained on explains."""
    data = trainer.data
    train = data.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    x, y = data.take(train[order[:1]], device=trainer.device)
    if y.is_floating_point():
        return int(order[0]), (x, y + 10 * (1 + y.abs()))
    return int(order[0]), (x, (y + 1) % max(2, data.outputs))


def _world(trainer: PrivateTrainer, canary: Samples, place: int, *, taken: bool) -> _World:
    """The training part with a canary or without, neighbours as the account has them."""
    x, y = trainer.data.take(trainer.data.splits["train"], device=trainer.device)
    parts, neighbours = x.new_ones(len(y)), trainer.mechanism.neighbours
    if taken and neighbours == "add_or_remove_one":
        x, y = torch.cat([x, canary[0]]), torch.cat([y, canary[1]])
        return _World(x, y, x.new_ones(len(y)))
    if taken:
        at = torch.tensor([place], device=y.device)
        return _World(x.index_copy(0, at, canary[0]), y.index_copy(0, at, canary[1]), parts)
    if neighbours == "zero_out_one":
        parts[place] = 0
    return _World(x, y, parts)


def _drawer(trainer: PrivateTrainer, world: _World, number: int) -> BatchSampling:
    """Batches of a network; a canary beside the others leaves them the chance that they have."""
    mechanism, count = trainer.mechanism, len(world.targets)
    seed = None if trainer.account.secure else number
    if isinstance(mechanism, BandedGaussian):
        return PartitionedSampling(count, mechanism.rate, mechanism.bands, seed=seed)
    if mechanism.neighbours == "add_or_remove_one":
        return PoissonSampling(count, mechanism.rate, seed=seed)
    return sampling_of(mechanism, count, seed=seed)


def _losses(
    trainer: PrivateTrainer,
    world: _World,
    canary: Samples,
    numbers: range,
    tell: Callable[[int], Any] | None,
) -> Tensor:
    """Of the canary, after a training of each of the numbered networks in a world, ``[M]``."""
    settings, objective = trainer.settings, trainer.objective
    drawers = [_drawer(trainer, world, number) for number in numbers]
    count = len(numbers)
    params = {n: p.detach().expand(count, *p.shape).clone() for n, p in trainer.params.items()}
    kept = params if settings.average is None else {n: p.clone() for n, p in params.items()}
    optimizer = _optimizer(trainer, params)
    for step in range(settings.steps):
        rows = [drawer.draw(step) for drawer in drawers]
        set_draw(trainer.module, step)
        noise = numbers.start * (settings.steps + 1) + step  # of a series that is the stack's own
        grads = _limited(_noisy_gradients(trainer, params, world, rows, noise), settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = group["initial"] * settings.rate(step)
        for name, value in params.items():
            value.grad = grads[name]
        optimizer.step()
        if settings.average is not None:
            _average(kept, params, min(settings.average, (1 + step) / (10 + step)))
        if tell is not None:
            tell(step)
    with torch.no_grad():
        objective.model.module.eval()
        found: Tensor = vmap(lambda p: objective.loss(p, canary))(kept)
    objective.model.train()
    return found.cpu()


def _limited(grads: dict[str, Tensor], clip: float | None) -> dict[str, Tensor]:
    """Gradients ``[M, ...]``, each network's scaled down to a norm, as the loop does."""
    if clip is None:
        return grads
    squares = torch.stack([grad.flatten(1).square().sum(1) for grad in grads.values()]).sum(0)
    factors = (clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    return {n: g * factors.view(-1, *(1,) * (g.dim() - 1)) for n, g in grads.items()}


def _average(kept: dict[str, Tensor], params: dict[str, Tensor], decay: float) -> None:
    """Take the weights of a step into their average, as `WeightAverage` does."""
    for name, value in params.items():
        kept[name].lerp_(value.detach(), 1 - decay)


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
    trainer: PrivateTrainer, params: Params, world: _World, rows: list[Tensor], step: int
) -> dict[str, Tensor]:
    """Of a step of each network, ``[M, ...]``; batches are filled up with samples of weight 0."""
    objective, size = trainer.objective, float(trainer.objective.expected)
    padded = pad_sequence([torch.cat([row, row.new_zeros(1)]) for row in rows], batch_first=True)
    counts = torch.tensor([len(row) for row in rows])
    drawn = (torch.arange(padded.shape[1]) < counts[:, None]).to(world.parts)
    padded = padded.to(trainer.device)
    batch = world.inputs[padded], world.targets[padded], drawn * world.parts[padded]

    def total(params: Params, batch: Any) -> Params:
        found = objective.clipped(params, batch)
        return {name: grad * batch[0].shape[0] / size for name, grad in found.grads.items()}

    means = vmap(total)(params, batch)
    return dict(objective.noisy(means, size, step=step))
