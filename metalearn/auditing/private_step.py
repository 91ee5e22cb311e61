"""An audit of the step of a private training: is it as private as its account says.

Axes: T trials in each of two worlds, P parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metalearn.auditing.lower_bounds import EpsilonBound, epsilon_lower_bound, gaussian_epsilon
from metalearn.core.checks import check_number
from metalearn.core.samples.gradients import one_gradient
from metalearn.errors import SettingError, check_whole
from metalearn.privacy import CorrelatedNoise
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.trainers import PrivateTrainer
from metalearn.trainers.loop.step import StepGradient, finish

__all__ = ["StepAudit", "audit_private_step", "noise_apart"]

_SCALES = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class StepAudit:
    """What an adversary who sees every noisy gradient found, beside what is claimed."""

    claimed: float
    """ε of one step of the mechanism in which the sample takes part, at ``delta``."""
    delta: float
    confidence: float
    """With which all bounds hold together."""
    bounds: dict[str, EpsilonBound] = field(default_factory=dict)
    """``"one step"``, by the noisy gradient of a step; ``"two steps"``, by the difference of two
    steps, in the first of which alone the sample takes part: noise that is used again cancels."""
    canary_norm: float = math.nan
    """‖g‖ of the sample whose part is looked for, beside C."""
    max_norm: float = math.nan
    """C."""

    @property
    def lower_bound(self) -> float:
        """The largest of the bounds for a Gaussian mechanism."""
        return max(bound.gaussian_epsilon for bound in self.bounds.values())

    @property
    def refuted(self) -> bool:
        """Whether the step is less private than is claimed."""
        return self.lower_bound > self.claimed

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        bounds = {name: dict(vars(bound)) for name, bound in self.bounds.items()}
        return {
            "claimed_epsilon": self.claimed, "lower_bound": self.lower_bound,
            "refuted": self.refuted, "delta": self.delta, "confidence": self.confidence,
            "canary_norm": self.canary_norm, "max_norm": self.max_norm, "bounds": bounds,
        }  # fmt: skip


@checked
def audit_private_step(
    trainer: PrivateTrainer, *, trials: int = 1000, confidence: float = 0.95, seed: int = 0
) -> StepAudit:
    """Try to tell from a trainer's noisy gradients whether one sample took part in a step.

    The step is the trainer's own: its clipping, its sum, its division, its noise, at the parameters
    where it stands; what is claimed is what its account counts. The adversary knows all other
    samples, the parameters, and the direction of the canary's gradient, which is the worst case
    that differential privacy speaks of: a right step is told apart as well as a Gaussian mechanism
    with its σ, and no better. A step that does not clip, has less noise than it says, or uses noise
    again is told apart better than is claimed.
    Nothing is trained, and no step of the account is used.

    Args:
        trainer: whose step is audited; the canary is made of its training part.
        trials: T, noisy gradients of each world, half of which choose the threshold.
        confidence: with which all bounds hold together.
        seed: of the choice of the batch.

    Raises:
        SettingError: a number out of range, a canary without a gradient.
    """
    check_whole("trials", trials, 8)
    check_seed(seed)
    check_number("confidence", confidence, above=0, below=1)
    bands = len(trainer.noise.strategy)
    if bands > 1 and not trainer.account.secure:
        raise SettingError("trainer.noise", "seeded", f"secure is needed with noise_bands={bands}")
    trainer.prepare()
    objective, delta = trainer.objective, trainer.account.delta
    batch, canary = _samples(trainer, seed)
    direction, norm = _direction(trainer, canary)
    if not norm > 0:
        raise SettingError("trainer", "a canary without a gradient", "another state is needed")
    both = tuple(torch.cat(pair) for pair in zip(batch, canary))
    worlds = {
        name: objective.gradient(trainer.params, samples, step=0)
        for name, samples in (("in", both), ("out", batch))
    }
    empty = tuple(part[:0] for part in batch)
    with noise_apart(trainer):
        scores = _released(trainer, empty, worlds, direction, trials)
    bounds = {
        name: epsilon_lower_bound(*pair, delta=delta, confidence=1 - (1 - confidence) / 2)
        for name, pair in scores.items()
    }
    counted = trainer.account.mechanism.noise_multiplier  # type: ignore[attr-defined]
    claimed = gaussian_epsilon(1 / counted, delta)
    return StepAudit(claimed, delta, confidence, bounds, norm, objective.max_norm)


@contextmanager
def noise_apart(trainer: PrivateTrainer) -> Iterator[None]:
    """A block whose draws leave the trainer's noise, and a norm or a size that changes, as is.

    Noise that is correlated begins another series where a step does not follow the last one, of
    which the account of a training that goes on would not know.
    """
    objective: Any = trainer.objective
    kept = objective.noise, objective.following, objective.growing
    objective.noise = CorrelatedNoise(kept[0].strategy)
    objective.following, objective.growing = copy.copy(kept[1]), None
    try:
        yield
    finally:
        objective.noise, objective.following, objective.growing = kept


Sums = Mapping[str, Tensor]
Samples = tuple[Tensor, ...]


def _samples(trainer: PrivateTrainer, seed: int) -> tuple[Samples, Samples]:
    """A batch of the training part, and a canary: a scaled sample with the least likely class.

    Its scale is the one with the largest gradient, which clipping is there to bound.
    """
    data, size = trainer.data, int(trainer.objective.expected)
    train = data.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    x, y = data.take(train[order[:size]], device=trainer.device)
    if len(y) > 1:
        x, y, one = x[1:], y[1:], (x[:1], y[:1])
    else:
        one = (x, y)
    found, largest = one, -1.0
    for scale in _SCALES if one[0].is_floating_point() else (1.0,):
        inputs = one[0] * scale
        for target in _targets(trainer, inputs, one[1]):
            _, norm = _direction(trainer, (inputs, target))
            if math.isfinite(norm) and norm > largest:
                found, largest = (inputs, target), norm
    return (x, y), found


def _targets(trainer: PrivateTrainer, inputs: Tensor, target: Tensor) -> list[Tensor]:
    """Targets to try: the class that is least likely, or real numbers that are far away."""
    if target.is_floating_point():
        return [target, 100 * target + 100]
    with torch.no_grad():
        outputs = trainer.objective.model.outputs(trainer.params, inputs)
    return [outputs.argmin(-1).to(target)]


def _direction(trainer: PrivateTrainer, sample: Samples) -> tuple[Sums, float]:
    """g/‖g‖ of a sample by an ordinary backward pass, and ‖g‖."""
    trainer.objective.model.train()
    grads = one_gradient(trainer.objective.loss, trainer.params, sample)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    return {name: g.double() / max(norm, 1e-300) for name, g in grads.items()}, norm


def _released(
    trainer: PrivateTrainer,
    empty: Samples,
    worlds: Mapping[str, StepGradient],
    direction: Sums,
    trials: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores of both worlds ``[T]``: along the canary's direction, without the part of the others.

    A step is noisy twice in a row, so that differences of two steps are had of the same draws.
    Where noise is correlated over b bands, a step is b steps: their rows are made independent by
    S, of which the canary's column has the norm 1, and taken along that column.
    """
    size = float(trainer.objective.expected)
    known = _along(finish(replace(worlds["out"], noise=None)).grads, direction)
    rows: dict[str, list[list[float]]] = {"in": [], "out": []}
    bands = trainer.noise.strategy.tolist()
    many = 2 * len(bands)
    apart = many + (len(bands) > 1)  # a step in between begins another series
    for trial in range(trials):
        for world in rows:
            row = []
            for number in range(many):
                step, part = apart * trial + number, "out" if number else world
                noise = trainer.objective.gradient(trainer.params, empty, step=step).noise
                released = finish(replace(worlds[part], noise=noise)).grads
                row.append((_along(released, direction) - known) * size)
            rows[world].append(_decorrelated(row, bands))
    inside, outside = (torch.tensor(rows[w], dtype=torch.float64) for w in ("in", "out"))
    return {
        "one step": (inside[:, 0], outside[:, 0]),
        "two steps": (inside[:, 0] - inside[:, 1], outside[:, 0] - outside[:, 1]),
    }


def _decorrelated(row: list[float], bands: list[float]) -> list[float]:
    """c·z of the first b steps and of the next b, z = S·y for the rows y; y itself for one band."""
    b = len(bands)
    z = [sum(bands[k] * row[t - k] for k in range(min(b, t + 1))) for t in range(2 * b)]
    return [sum(c * z[first + k] for k, c in enumerate(bands)) for first in (0, b)]


def _along(grads: Sums, direction: Sums) -> float:
    return sum(float((grads[name].double() * v).sum()) for name, v in direction.items())
