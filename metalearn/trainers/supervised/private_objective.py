"""The objective of a private training: what is drawn of the data is accounted for before it is.

Axes: N samples of a batch, B expected ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core.float64 import widest
from metalearn.data import Augmentation, augment
from metalearn.data.regression import SupervisedData
from metalearn.privacy import (
    BatchSampling,
    CorrelatedNoise,
    PrivacyAccount,
    QuantileNorm,
    add_gaussian_noise,
)
from metalearn.random_streams import SecureStream
from metalearn.ranks import OneRank, Ranks
from metalearn.schema import Kind, Misfit
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.private.growing import GrowingBatch
from metalearn.trainers.private.noisy_validation import SCORES
from metalearn.trainers.private.sharing import drawn_by_the_first
from metalearn.trainers.supervised.batches import LabelledBatch, check_augmentation
from metalearn.trainers.supervised.per_sample_objective import PerSampleObjective
from metalearn.trainers.supervised.pure_model import PureModel
from metalearn.types import Params

__all__ = ["PrivateBatches", "PrivateObjective"]

_BITS = "<gradients within the clipping norm>"  # summed with the gradients, of no parameter


class PrivateBatches:
    """Batches that are drawn once the account has written their step down.

    Args:
        account: of the training.
        sampling: of the samples of a step, as the account's mechanism says.
        data: whose training part they are drawn from.
        augmentation: of pictures.
        seed: of the augmentation; None takes a fresh one from the secure generator at each step.
            What is done to a picture depends on its place in the batch, which a sample more or less
            changes: known in advance, it would tell of that sample by all pictures after it.
        device: where batches are put.
        steps: of the whole training.
        reserved: how many of them are written down at once.
        growing: what draws them where they grow; steps are written down up to its next decision.
        ranks: that share the training: the first writes down and draws, and tells the others.

    Raises:
        SettingError: augmentation of what are no pictures.
    """

    def __init__(
        self,
        account: PrivacyAccount,
        sampling: BatchSampling,
        data: SupervisedData,
        augmentation: Augmentation,
        seed: int | None,
        device: torch.device,
        steps: int,
        reserved: int,
        growing: GrowingBatch | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        check_augmentation(augmentation, data)
        self.account, self.sampling, self.data = account, sampling, data
        self.augmentation, self.seed, self.device = augmentation, seed, device
        self.steps, self.reserved, self.growing = steps, reserved, growing
        self.ranks: Ranks = ranks or OneRank()

    def __call__(self, step: int) -> LabelledBatch:
        """Inputs and targets of a step, of as many samples as chance has it."""
        draw = partial(self._drawn, step)
        indices, seed = drawn_by_the_first(self.ranks, self.account, draw)
        x, y = self.data.take(torch.tensor(indices, dtype=torch.int64), device=self.device)
        return augment(x, self.augmentation, seeds=[seed], step=step), y

    def _drawn(self, step: int) -> tuple[list[int], int]:
        """The samples of a step, which is written down before, and the seed of the augmentation."""
        ahead = self.steps if self.growing is None else self.growing.ahead()
        self.account.reserve(step, max(1, min(self.reserved, self.steps - step, ahead)))
        indices: list[int] = self.sampling.draw(step).tolist()
        return indices, int(SecureStream().words(1)[0]) if self.seed is None else self.seed


class PrivateObjective(PerSampleObjective):
    """The gradient of DP-SGD, of which nothing but the noisy sum over a batch gets out.

    Losses, norms and clipped shares of a batch are not shown: no noise is on them. Whatever is
    decided before the first step, such as how many samples are taken at a time, is decided on
    zeros. A sample whose gradient is not finite counts as none.

    Args:
        model: whose parameters are trained.
        batches: reserve every step in the account before its batch is drawn, by the first of the
            ranks that share the training, which also decides what is decided by what was released.
        placeholder: inputs and targets of B samples that are not the data's.
        noise: what a step's sum gets.
        following: the clipping norm, where it follows a quantile; else it stays.
        validation: what `PrivateTrainer` calls so; a noisy one has an account of its own.
        given: the other arguments of `PerSampleObjective`.
    """

    def __init__(
        self,
        model: PureModel,
        batches: PrivateBatches,
        *,
        placeholder: Callable[[], LabelledBatch],
        noise: CorrelatedNoise,
        following: QuantileNorm | None = None,
        validation: str = "none",
        **given: Any,
    ) -> None:
        account = batches.account
        sigma = account.mechanism.noise_multiplier  # type: ignore[attr-defined]
        super().__init__(model, batches, noise_multiplier=sigma, **given)
        self.pure = None  # batches drawn by chance are of many sizes
        self.account, self.placeholder, self.secure = account, placeholder, account.secure
        self.noise = noise  # its past rows are in no state: they would take noise off
        self.following, self.growing, self.validation = following, batches.growing, validation
        self.ranks = batches.ranks

    def batch(self, step: int) -> LabelledBatch:
        """See `PerSampleObjective`; a norm or a size that changes is that of this step now."""
        if self.growing is not None:
            if self.ranks.rank == 0:
                self.growing.advance(step)
            self.expected = self.ranks.agreed(self.growing.size)
        if self.following is not None:
            self.following.advance()
            self.following.norm = self.max_norm = self.ranks.agreed(self.following.norm)
        return super().batch(step)

    def gradient(self, params: Params, batch: LabelledBatch, *, step: int) -> StepGradient:
        """See `PerSampleObjective`; losses are not told."""
        found = super().gradient(params, batch, step=step)
        grads = dict(found.grads)
        beside: dict[str, Tensor] = {}
        if self.following is not None:
            none = widest(next(iter(params.values())).new_zeros(()))  # of an empty part
            beside[_BITS] = grads.pop(_BITS, none)
        return replace(
            found,
            grads=grads,
            losses=torch.zeros_like(found.losses),
            shows_losses=False,
            scalars={},
            beside=beside,
            processed=self._share.sizes(self.expected)[self._share.rank],
            suspects=_of_no_one,
        )

    def records(
        self, batch: LabelledBatch, gradient: StepGradient, *, step: int
    ) -> Mapping[str, float]:
        """ε so far, where there is one, and the norm and size of the step where they change."""
        found = {} if self.following is None else {"privacy/max_norm": self.max_norm}
        if self.growing is not None:
            found |= self.growing.records()
        if self.account.secure and self.ranks.rank == 0:
            found["privacy/epsilon"] = self.account.spent().epsilon
        return found

    def state(self) -> dict[str, Any]:
        """And the account, and the clipping norm and the size where they change."""
        found = {**super().state(), **self.account.state()}
        for part in (self.following, self.growing):
            found |= {} if part is None else part.state()
        return found

    def state_kinds(self) -> list[Kind]:
        """And theirs."""
        norm = [] if self.following is None else self.following.state_kinds()
        size = [_stays] if self.growing is None else self.growing.state_kinds(self.model.params)
        kinds = [*super().state_kinds(), *self.account.state_kinds(), *norm, *size]
        scored = self.validation == "noisy"
        return kinds if scored else [*kinds, partial(_unscored, self.validation)]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """And theirs; in the account no step is forgotten."""
        super().load_state(state)
        self.account.load_state(state)
        if self.following is not None:
            self.following.load_state(state)
            self.max_norm = self.following.norm
        if self.growing is not None:
            self.growing.load_state(state, self.model.params)
            self.expected = self.growing.size

    def _first_batch(self) -> LabelledBatch:
        """Zeros: nothing of the data is looked at."""
        return self.placeholder()

    def _clipped(
        self, params: Params, batch: LabelledBatch
    ) -> tuple[Mapping[str, Tensor], Tensor, Tensor | None]:
        found = self.clipped(params, batch)
        grads, norms, count = found.grads, found.norms, len(batch[1])
        finite = norms.isfinite()
        if not bool(finite.all()):  # their share of a sum would be no number
            kept = tuple(part[finite] for part in batch)
            norms, share = norms[finite], len(kept[1]) / count  # the mean is over all of them
            if len(kept[1]):
                grads = {n: g * share for n, g in self.clipped(params, kept).grads.items()}
            else:
                grads = {name: torch.zeros_like(value) for name, value in params.items()}
        if self.following is not None:
            grads = {**grads, _BITS: self.following.bits(norms) / count}
        return grads, found.losses.new_zeros(()), None

    def noisy(
        self, grads: Mapping[str, Tensor], normalizer: float, *, step: int
    ) -> dict[str, Tensor]:
        """Gradients with noise of standard deviation σ·C/B, or more where it is correlated.

        Beside noisy bits, of which the next clipping norm is found, σ is that of gradients alone.
        """
        seeded: Callable[[int], torch.Generator] | None = None if self.secure else self._noise_of
        sigma, every = self.noise_multiplier, dict(grads)
        if self.following is not None:
            sigma = self.following.gradient_noise
            bits = every.pop(_BITS).cpu().double() * normalizer
            generator = None if self.secure else self._noise_of(step)
            noisy = add_gaussian_noise(bits, self.following.noise, generator=generator)
            self.following.follow(float(noisy))
            seeded = None if generator is None else lambda _: generator  # what comes after
        size = sigma * self.max_norm / normalizer
        found: dict[str, Tensor] = self.noise.add(every, size, step=step, generator=seeded)
        if self.growing is not None:
            self.growing.observe(found)
        return found


def _stays(state: Any, where: str) -> None:
    """A run whose batch did not grow: what it spent would be claimed by no budget."""
    if "batch_growth" in state:
        needed = "a largest batch, as at the start of the run, whose ε is that of a budget for it,"
        raise Misfit("batch_growth", None, needed)


def _unscored(validation: str, state: Any, where: str) -> None:
    """A run whose validation was not private: what scores have cost would be forgotten."""
    if SCORES in state:
        raise Misfit("validation", validation, "noisy, as at the start of the run,")


def _of_no_one() -> str:
    return "this step"
