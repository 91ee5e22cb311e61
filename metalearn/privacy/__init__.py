"""Private steps and their account: what was done to the data, written down before it is done.

Nothing here knows of networks.
"""

# One kind of step, and what steps spend
from metalearn.privacy.mechanism import Mechanism, Neighbours, SampledGaussian, Sampling
from metalearn.privacy.accounting import (
    Accountant,
    PrivacySpent,
    noise_multiplier_for,
    privacy_spent,
    steps_for,
)

# Where steps are written down
from metalearn.privacy.ledger import PrivacyLedger
from metalearn.privacy.series import RecordedRun
from metalearn.privacy.account import PrivacyAccount

# Whom a step sees, and its noise
from metalearn.privacy.sampling import (
    BatchSampling,
    FixedSizeSampling,
    PoissonSampling,
    ShuffledSampling,
    sampling_of,
)
from metalearn.privacy.noise import add_gaussian_noise, gaussian_noise

__all__ = [
    # One kind of step, and what steps spend
    "Accountant",
    "Mechanism",
    "Neighbours",
    "PrivacySpent",
    "SampledGaussian",
    "Sampling",
    "noise_multiplier_for",
    "privacy_spent",
    "steps_for",
    # Where steps are written down
    "PrivacyAccount",
    "PrivacyLedger",
    "RecordedRun",
    # Whom a step sees, and its noise
    "BatchSampling",
    "FixedSizeSampling",
    "PoissonSampling",
    "ShuffledSampling",
    "add_gaussian_noise",
    "gaussian_noise",
    "sampling_of",
]
