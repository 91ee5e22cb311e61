"""A validation split that is private too: a noisy share of right answers, with its own account.

Axes: V samples of the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.errors import SettingError
from metalearn.privacy import (
    PrivacyAccount,
    PrivacyLedger,
    SampledGaussian,
    add_gaussian_noise,
    noise_multiplier_for,
    privacy_spent,
)
from metalearn.privacy.account import account_kind
from metalearn.random_streams import AddressedStream
from metalearn.ranks import OneRank, Ranks
from metalearn.schema import Kind, Misfit, mapping
from metalearn.trainers.loop.protocols import Evaluation
from metalearn.trainers.private.reports import cost_remarks
from metalearn.trainers.private.settings import PrivacySettings
from metalearn.trainers.private.sharing import drawn_by_the_first

__all__ = ["SCORES", "NoisyAccuracy", "validation_account"]

_SENSITIVITY = 0.5
"""Of a sum of bits less a half, in one sample that is added or taken away."""
_LARGEST = 100.0  # the largest ε that noise is found for
SCORES = "validation_privacy"
"""Where a checkpoint has the account of scores."""


class NoisyAccuracy:
    """Scores a split that is private by how many of its samples are classed rightly, with noise.

    The score is ½ + (Σ_i (b_i − ½) + (σ/2)·z)/V, b_i whether sample i is classed rightly, z
    standard normal: a Gaussian mechanism, since one sample more or less moves the sum by ½, and
    another value of one by 1, which is twice that as for the sums of a training. Each call is
    written down before the split is read, and counts.

    No sample of the split has a part in a step but by such scores, and none of the training part in
    a score but by weights that are private already: each of the two accounts holds for the samples
    of its part.

    Args:
        right: which samples of the split are classed rightly, as the network stands: bool ``[V]``.
        account: of these scores, the one before the first step its step 0.
        every: steps from one score to the next.
        seed: of the noise, where that is not secure.
        ranks: that share the training: the first has the account, and tells its scores.
    """

    monitor = "validation/accuracy"
    larger_is_better = True
    bands: Mapping[str, Sequence[str]] = {}

    def __init__(
        self,
        right: Callable[[], Tensor],
        account: PrivacyAccount,
        *,
        every: int,
        seed: int | None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks: Ranks = ranks or OneRank()
        self._right, self.account, self._every, self._seed = right, account, every, seed

    def __call__(self, step: int) -> Evaluation:
        """The noisy share of right answers, which may lie outside of [0, 1], and what it cost."""
        first = self._ranks.rank == 0
        if first:
            self.account.reserve(self._number(step))
        bits = self._right().cpu().double() - _SENSITIVITY
        draw = partial(self._noisy, bits.sum(), step)
        numbers = drawn_by_the_first(self._ranks, self.account, draw)
        return Evaluation(numbers, torch.tensor([numbers[self.monitor]], dtype=torch.float64))

    def state(self) -> dict[str, Any]:
        """The account."""
        return {SCORES: self.account.state()["privacy"]}

    def state_kinds(self) -> list[Kind]:
        """The same."""
        return [_scored, mapping({SCORES: account_kind()})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; no score is forgotten."""
        self.account.load_state({"privacy": state[SCORES]})

    def summary(self) -> dict[str, Any]:
        """What a person needs to know of it a year later, as plain values."""
        account = self.account
        mechanism = account.mechanism
        assert isinstance(mechanism, SampledGaussian)
        found: dict[str, Any] = {
            "epsilon": None, "delta": account.delta, "accountant": account.accountant,
            "samples": mechanism.examples, "noise_multiplier": mechanism.noise_multiplier,
            "standard_deviation": _SENSITIVITY * mechanism.noise_multiplier / mechanism.examples,
            "scores": sum(count for _, count in account.steps()),
            "ledger": None if account.ledger is None else str(account.ledger.path),
        }  # fmt: skip
        if left := account.left():  # which count as well, see `PrivacyAccount`
            found["scores_left"] = sum(count for _, count in left)
        if account.secure:
            spent = account.spent()
            found |= {"epsilon": spent.epsilon, "accountant": spent.accountant}
            if account.ledger is not None and len(account.ledger.runs()) > 1:
                found["epsilon_of_ledger"] = account.spent_together().epsilon
        return found

    def remarks(self, asked: float | None) -> list[str]:
        """What the scores have cost, in a line or two; whether that is more than was asked for."""
        what = "privacy of validation samples"
        return cost_remarks(self.account, asked, what, "scores") if self.account.secure else []

    def _noisy(self, bits: Tensor, step: int) -> dict[str, float]:
        """The score of a sum of bits less a half each, and what it has cost."""
        mechanism = self.account.mechanism
        assert isinstance(mechanism, SampledGaussian)
        std = _SENSITIVITY * mechanism.noise_multiplier
        noisy = float(add_gaussian_noise(bits, std, generator=self._generator(step)))
        numbers = {self.monitor: noisy / mechanism.examples + _SENSITIVITY}
        if self.account.secure:
            numbers["privacy/validation_epsilon"] = self.account.spent().epsilon
        return numbers

    def _number(self, step: int) -> int:
        """Of the score after so many steps, from 0."""
        return -(-step // self._every)

    def _generator(self, step: int) -> torch.Generator | None:
        if self.account.secure:
            return None
        drawn = AddressedStream(self._seed or 0, "scores", step).with_replacement(2**62, 1)
        return torch.Generator().manual_seed(int(drawn[0]))


def _scored(state: Any, where: str) -> None:
    """A run whose validation was private from the start: others may have read the split before."""
    if SCORES not in state:
        raise Misfit("validation", "noisy", "none or public, as at the start of the run,")


def validation_account(
    private: PrivacySettings, training: PrivacyAccount, samples: int, noise: float | None
) -> PrivacyAccount:
    """The account of a split's noisy scores, in a file of its own beside that of the training.

    Args:
        private: whose ε the scores of all runs may cost, where ``noise`` is None: as the parts
            share no sample, that makes the ε of the whole no larger.
        training: the account of the steps.
        samples: V.
        noise: σ of a score; None is the least that keeps to ε.

    Raises:
        SettingError: a number out of range, or no ε to keep to.
        DataError: a ledger that is damaged.
    """
    accepted = f"a number below 1/V = {1 / samples:.2g} is needed, V of the validation split"
    check_number("delta", training.delta, above=0, below=1 / samples, accepted=accepted)
    drawn = partial(SampledGaussian, private.sampling, samples, samples)
    if noise is None:
        scores = private.validations * private.runs
        noise = noise_multiplier_for(
            _epsilon(private, training), delta=training.delta, sampling=private.sampling,
            examples=samples, batch_size=samples, steps=scores, accountant=training.accountant,
        )  # fmt: skip
    check_number("validation_noise", noise, above=0)
    ledger = None
    if training.ledger is not None:
        path = Path(training.ledger.path)
        ledger = PrivacyLedger(path.with_name(f"{path.stem}.validation{path.suffix}"))
    return PrivacyAccount(
        drawn(float(noise)), delta=training.delta, accountant=training.accountant,
        secure=training.secure, ledger=ledger,
        planned=private.validations if private.patient else None,
    )  # fmt: skip


def _epsilon(private: PrivacySettings, training: PrivacyAccount) -> float:
    """What the training is to cost, of which the scores may cost as much.

    Raises:
        SettingError: that is more than noise is found for.
    """
    if private.epsilon is not None:
        return private.epsilon
    steps = [(training.mechanism, training.mechanism.counted(0, private.steps))]
    if training.budget is not None:
        found = training.budget.epsilon(steps)
    else:
        found = privacy_spent(steps, training.delta, training.accountant).epsilon
    if found > _LARGEST:
        accepted = f"a number above 0 is needed, as the training alone has ε = {found:.3g}"
        raise SettingError("validation_noise", None, accepted)
    return found
