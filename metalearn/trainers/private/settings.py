"""What a private training may cost, and how that is kept to: its account, its draws, its loop.

Nothing here knows whether a step draws samples or tasks.

Axes: N units that are private each by itself, B of a step as expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor
from typing_extensions import Unpack

from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.near_names import check_known
from metalearn.privacy import (
    Accountant,
    AdaptiveGaussian,
    BandedGaussian,
    BatchSampling,
    Neighbours,
    PrivacyAccount,
    PrivacyLedger,
    SampledGaussian,
    Sampling,
    noise_multiplier_for,
    sampling_of,
)
from metalearn.privacy.mechanism import drawn_gaussian
from metalearn.ranks import Ranks
from metalearn.signatures import checked
from metalearn.trainers.loop.options import LoopOptions
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.private.following import ClipQuantile
from metalearn.trainers.private.growing import BatchGrowth, GrowthPlan, growth_plan

__all__ = ["PrivacySettings"]

Noise = Literal["secure", "seeded"]
Validation = Literal["none", "public", "noisy"]

_LEDGER = "privacy.jsonl"
_SILENT = (("diagnostics", (), "[]"), ("precision", "float32", "float32"), ("accumulate", 1, "1"))
"""Settings of the loop that would show or use more of the data than is accounted for."""


class PrivacySettings:
    """Settings of a private training; `metalearn.trainers.PrivateTrainer` says what they are.

    Args:
        epsilon: ε of all steps, or
        noise_multiplier: σ.
        delta: δ.
        sampling: how units are drawn.
        accountant: by what ε is bounded.
        noise: whether it can be drawn again.
        ledger: a file of several runs.
        runs: how many of them share ε.
        reserve: steps that are written down at once.
        validation: whether the validation split may be read, and whether it is private too.
        settings: of `LoopSettings`.

    Raises:
        SettingError: both or none of ε and σ; a value that is not known.
    """

    mechanism: SampledGaussian | AdaptiveGaussian | BandedGaussian
    steps: int
    """In all; known once there are `limits`, as is the next."""
    validations: int
    """How many there are, the one before the first step among them."""
    every: int
    """Steps from one to the next."""
    patient: bool
    """Whether what is released may end the training before its last step."""

    @checked
    def __init__(
        self,
        *,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        sampling: Sampling = "poisson",
        accountant: Accountant = "pld",
        noise: Noise = "secure",
        ledger: str | Path | None = None,
        runs: int = 1,
        reserve: int = 10,
        validation: Validation = "none",
        **settings: Unpack[LoopOptions],
    ) -> None:
        if epsilon is not None and noise_multiplier is not None:
            accepted = (
                f"null is needed beside noise_multiplier={noise_multiplier}, of which it follows"
            )
            raise SettingError("epsilon", epsilon, accepted)
        if epsilon is None and noise_multiplier is None:
            accepted = "a number above 0 is needed, or noise_multiplier in its place"
            raise SettingError("epsilon", None, accepted)
        if noise_multiplier is not None:
            check_number("noise_multiplier", noise_multiplier, above=0)
        check_whole("reserve", reserve, 1)
        _check_runs(runs, epsilon, ledger)
        check_known("noise", noise, get_args(Noise))
        check_known("validation", validation, get_args(Validation))
        self.epsilon, self.noise_multiplier, self.delta = epsilon, noise_multiplier, delta
        self.sampling, self.accountant, self.secure = sampling, accountant, noise == "secure"
        self.ledger, self.reserve, self.validation = ledger, reserve, validation
        self.runs, self.settings = runs, settings

    def limits(
        self,
        steps: int,
        choices: Mapping[str, tuple[Any, Any]],
        *,
        needed: str = "validation=public",
    ) -> LoopSettings:
        """Settings of the loop, none of which looks at private data, or uses them otherwise.

        Args:
            steps: in all.
            choices: settings of validations, by name, each with the value that asks for nothing;
                where there are no validations they are refused another, as patience is.
            needed: what such a setting is said to need.

        Raises:
            SettingError: names the first that would.
        """
        found = LoopSettings(steps=steps, **self.settings)
        self.steps, self.validations = steps, 1 + -(-steps // found.eval_every)
        self.every, self.patient = found.eval_every, found.patience is not None
        for name, silent, shown in _SILENT:
            value = getattr(found, name)
            if (tuple(value) if name == "diagnostics" else value) != silent:
                accepted = (
                    f"{shown} is needed: more of the data would be seen than is accounted for"
                )
                raise SettingError(name, value, accepted)
        every = {**choices, "patience": (found.patience, None)}
        for name, (value, plain) in every.items():
            if self.validation == "none" and value != plain:
                raise SettingError(name, value, f"{needed} is needed for it")
        return found

    def account(
        self,
        units: int,
        expected: int,
        steps: int,
        folder: str | Path | None,
        *,
        setting: str = "batch_size",
        bands: int = 1,
        growth: GrowthPlan | None = None,
        ranks: Ranks | None = None,
    ) -> PrivacyAccount:
        """The account of so many steps, in the ledger or in a file of the run's folder.

        The first of several ranks alone draws, and writes down.

        Args:
            units: N.
            expected: B.
            steps: in all.
            folder: of the run.
            setting: what B is called in messages.
            bands: of correlated noise.
            growth: how B may grow.
            ranks: that share the training; None is one process.

        Raises:
            SettingError: a number out of range; sampling that the accountant does not know.
            DataError: a ledger that is damaged.
        """
        check_whole(setting, expected, 1, units)
        accepted = f"a number above 0 and below 1/N = {1 / units:.2g} is needed"
        check_number("delta", self.delta, above=0, below=1 / units, accepted=accepted)
        self._check_bands(bands, units, expected, steps)
        budget = None
        if growth is None:
            self.mechanism = self._fixed(units, expected, steps, bands)
        else:
            asked = {"epsilon": self.epsilon, "noise_multiplier": self.noise_multiplier}
            self.mechanism, budget = growth.within(
                units, expected, steps, delta=self.delta, **asked
            )
        path = self.ledger
        if path is None and folder is not None:
            path = Path(folder) / _LEDGER
        writes = ranks is None or ranks.rank == 0
        ledger = None if path is None or not writes else PrivacyLedger(path)
        found = PrivacyAccount(
            self.mechanism, delta=self.delta, accountant=self.accountant, secure=self.secure,
            ledger=ledger, budget=budget, planned=steps if self.patient else None,
        )  # fmt: skip
        if ledger is not None:
            _check_neighbours(ledger, self.mechanism.neighbours)
        return found

    def growth(
        self,
        given: BatchGrowth,
        units: int,
        expected: int,
        steps: int,
        bands: int,
        quantile: ClipQuantile,
    ) -> GrowthPlan | None:
        """How B may grow, see `growth_plan`, beside correlated noise and a norm that moves."""
        return growth_plan(
            given, units, expected, steps, sampling=self.sampling, accountant=self.accountant,
            runs=self.runs, noise_bands=bands, clip_quantile=quantile,
        )  # fmt: skip

    def draws(self, units: Tensor | int, seed: int) -> BatchSampling:
        """Who takes part in a step, of N or of indices ``[N]``; ``seed`` is of seeded draws."""
        return sampling_of(self.mechanism, units, seed=None if self.secure else seed)

    def _fixed(
        self, units: int, expected: int, steps: int, bands: int
    ) -> SampledGaussian | BandedGaussian:
        """Steps of which all are alike, with the σ that is given or keeps to ε."""
        drawn = partial(drawn_gaussian, self.sampling, units, expected, bands=bands)
        sigma = self.noise_multiplier
        if sigma is None:
            assert self.epsilon is not None
            counted = drawn(1.0).counted(0, steps) * self.runs
            sigma = noise_multiplier_for(
                self.epsilon, delta=self.delta, sampling=self.sampling, examples=units,
                batch_size=expected, steps=counted, accountant=self.accountant, bands=bands,
            )  # fmt: skip
        return drawn(float(sigma))

    def _check_bands(self, bands: int, units: int, expected: int, steps: int) -> None:
        """Refuse bands that there are no steps, no units or no account for."""
        check_whole("noise_bands", bands, 1, steps)
        if bands > 1 and self.sampling != "poisson":
            accepted = f"1 is needed with sampling={self.sampling}: poisson has an account for more"
            raise SettingError("noise_bands", bands, accepted)
        if bands > max(1, units // expected):
            accepted = (
                f"at most {units // expected} is accepted: so many parts of {units} have room for "
                f"batches of {expected}"
            )
            raise SettingError("noise_bands", bands, accepted)


def _check_runs(runs: int, epsilon: float | None, ledger: str | Path | None) -> None:
    check_whole("runs", runs, 1)
    if runs == 1:
        return
    if epsilon is None:
        raise SettingError("runs", runs, "1 is needed beside noise_multiplier: no ε is shared")
    if ledger is None:
        raise SettingError("ledger", None, f"a file is needed in which all {runs} runs are counted")


def _check_neighbours(ledger: PrivacyLedger, neighbours: Neighbours) -> None:
    """Refuse a ledger whose runs a training does not compose with, which has no ε then."""
    others = {mechanism.neighbours for mechanism, _ in ledger.composed()} - {neighbours}
    if others:
        accepted = (
            f"another file is needed: its runs are accounted for with {min(others)}, "
            f"this one with {neighbours}, and no ε is of both"
        )
        raise SettingError("ledger", str(ledger.path), accepted)
