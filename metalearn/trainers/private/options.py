"""Settings of private trainings as keywords, so that editors and mypy know them.

The names and hints are those of `PrivacySettings`; a test holds one against the other.
"""

from __future__ import annotations

from pathlib import Path

from metalearn.privacy import Accountant, Sampling
from metalearn.trainers.loop.options import LoopOptions
from metalearn.trainers.private.settings import Noise, Validation

__all__ = ["PrivacyOptions"]


class PrivacyOptions(LoopOptions, total=False):
    """What `PrivateTrainer` and `PrivateMetaTrainer` hand on."""

    epsilon: float | None
    noise_multiplier: float | None
    delta: float
    sampling: Sampling
    accountant: Accountant
    noise: Noise
    ledger: str | Path | None
    runs: int
    reserve: int
    validation: Validation
