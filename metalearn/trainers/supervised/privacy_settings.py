"""What a private training may cost, and how that is kept to: its account, its batches, its loop.

Axes: N samples of the training part, B of a batch as expected.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch

from metalearn.core.checks import check_number
from metalearn.data import Augmentation
from metalearn.data.checksums import data_checksum
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.near_names import check_known
from metalearn.privacy import (
    Accountant,
    PrivacyAccount,
    PrivacyLedger,
    SampledGaussian,
    Sampling,
    noise_multiplier_for,
    sampling_of,
)
from metalearn.signatures import checked
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.supervised.private_objective import PrivateBatches

__all__ = ["PrivacySettings", "privacy_summary"]

Noise = Literal["secure", "seeded"]
Validation = Literal["none", "public"]

_LEDGER = "privacy.jsonl"
_SILENT = (("diagnostics", (), "[]"), ("precision", "float32", "float32"), ("accumulate", 1, "1"))
"""Settings of the loop that would show or use more of the data than is accounted for."""


class PrivacySettings:
    """Settings of a private training; `PrivateTrainer` says what they are.

    Args:
        epsilon: ε of all steps, or
        noise_multiplier: σ.
        delta: δ.
        sampling: how batches are drawn.
        accountant: by what ε is bounded.
        noise: whether it can be drawn again.
        ledger: a file of several runs.
        reserve: steps that are written down at once.
        validation: whether the validation split may be read.
        settings: of `LoopSettings`.

    Raises:
        SettingError: both or none of ε and σ; a value that is not known.
    """

    mechanism: SampledGaussian

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
        reserve: int = 10,
        validation: Validation = "none",
        **settings: Annotated[Any, LoopSettings],
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
        check_known("noise", noise, get_args(Noise))
        check_known("validation", validation, get_args(Validation))
        self.epsilon, self.noise_multiplier, self.delta = epsilon, noise_multiplier, delta
        self.sampling, self.accountant, self.secure = sampling, accountant, noise == "secure"
        self.ledger, self.reserve, self.validation = ledger, reserve, validation
        self.settings = settings

    def limits(self, steps: int, monitor: str) -> LoopSettings:
        """Settings of the loop, none of which looks at private data, or uses them otherwise.

        So is ``monitor`` refused, and patience, where there is no validation for them.

        Raises:
            SettingError: names the first that would.
        """
        found = LoopSettings(steps=steps, **self.settings)
        for name, needed, shown in _SILENT:
            value = getattr(found, name)
            if (tuple(value) if name == "diagnostics" else value) != needed:
                accepted = (
                    f"{shown} is needed: more of the data would be seen than is accounted for"
                )
                raise SettingError(name, value, accepted)
        for name, value, plain in (
            ("monitor", monitor, "loss"),
            ("patience", found.patience, None),
        ):
            if self.validation == "none" and value != plain:
                raise SettingError(name, value, "validation=public is needed for it")
        return found

    def account(
        self, data: SupervisedData, batch_size: int, steps: int, folder: str | Path | None
    ) -> PrivacyAccount:
        """The account of so many steps, in the ledger or in a file of the run's folder.

        Raises:
            SettingError: a number out of range; sampling that the accountant does not know.
            DataError: a ledger that is damaged.
        """
        count, sigma = data.size("train"), self.noise_multiplier
        check_whole("batch_size", batch_size, 1, count)
        accepted = f"a number above 0 and below 1/N = {1 / count:.2g} is needed"
        check_number("delta", self.delta, above=0, below=1 / count, accepted=accepted)
        if sigma is None:
            assert self.epsilon is not None
            sigma = noise_multiplier_for(
                self.epsilon, delta=self.delta, sampling=self.sampling, examples=count,
                batch_size=batch_size, steps=steps, accountant=self.accountant,
            )  # fmt: skip
        self.mechanism = SampledGaussian(self.sampling, count, batch_size, float(sigma))
        path = self.ledger
        if path is None and folder is not None:
            path = Path(folder) / _LEDGER
        return PrivacyAccount(
            self.mechanism, delta=self.delta, accountant=self.accountant, secure=self.secure,
            ledger=None if path is None else PrivacyLedger(path), data=data_checksum(data) or "",
        )  # fmt: skip

    def batches(
        self,
        account: PrivacyAccount,
        data: SupervisedData,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        steps: int,
    ) -> PrivateBatches:
        """Batches of all steps, each accounted for before it is drawn."""
        drawn = sampling_of(
            self.mechanism, data.splits["train"], seed=None if self.secure else seed
        )
        return PrivateBatches(account, drawn, data, augmentation, seed, device, steps, self.reserve)


def privacy_summary(account: PrivacyAccount) -> dict[str, Any]:
    """What a person needs to know of it a year later, as plain values."""
    mechanism, steps = account.mechanism.state(), account.steps()
    found: dict[str, Any] = {
        "epsilon": None, "delta": account.delta, "accountant": account.accountant,
        "neighbours": account.mechanism.neighbours,
        "noise": "secure" if account.secure else "seeded",
        **{name: value for name, value in mechanism.items() if name != "kind"},
        "steps": sum(count for _, count in steps),
        "ledger": None if account.ledger is None else str(account.ledger.path),
    }  # fmt: skip
    if len(steps) > 1:
        found["mechanisms"] = [{**made.state(), "steps": count} for made, count in steps]
    if account.secure:
        spent = account.spent()
        found |= {"epsilon": spent.epsilon, "accountant": spent.accountant}
        if account.ledger is not None and len(account.ledger.runs()) > 1:
            together = account.spent_together().epsilon
            found["epsilon_of_ledger"] = together if math.isfinite(together) else None
    return found
