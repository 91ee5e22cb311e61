"""Private steps and their account: what was done to the data, written down before it is done.

Nothing here knows of networks.
"""

# One kind of step, and what steps spend
from metalearn.privacy.events import Neighbours
from metalearn.privacy.adaptive import AdaptiveGaussian
from metalearn.privacy.banded import BandedGaussian
from metalearn.privacy.mechanism import Mechanism, SampledGaussian, Sampling
from metalearn.privacy.accounting import (
    Accountant,
    PrivacySpent,
    noise_multiplier_for,
    privacy_spent,
    steps_for,
)

# A budget for steps that are chosen by what earlier ones released
from metalearn.privacy.renyi_filter import RenyiFilter, noise_multiplier_of_plan

# What choosing among runs spends
from metalearn.privacy.selection import RunCount, number_of_runs, selection_spent

# Where steps are written down
from metalearn.privacy.ledger import PrivacyLedger
from metalearn.privacy.series import RecordedRun
from metalearn.privacy.account import PrivacyAccount

# Whom a step sees, its clipping norm, and its noise
from metalearn.privacy.sampling import (
    BatchSampling,
    FixedSizeSampling,
    PartitionedSampling,
    PoissonSampling,
    ShuffledSampling,
    sampling_of,
)
from metalearn.privacy.quantile import QuantileNorm
from metalearn.privacy.noise import add_gaussian_noise, gaussian_noise
from metalearn.privacy.strategies import banded_strategy, prefix_error
from metalearn.privacy.correlated import CorrelatedNoise

__all__ = [
    # One kind of step, and what steps spend
    "Accountant",
    "AdaptiveGaussian",
    "BandedGaussian",
    "Mechanism",
    "Neighbours",
    "PrivacySpent",
    "SampledGaussian",
    "Sampling",
    "noise_multiplier_for",
    "privacy_spent",
    "steps_for",
    # A budget for steps that are chosen by what earlier ones released
    "RenyiFilter",
    "noise_multiplier_of_plan",
    # What choosing among runs spends
    "RunCount",
    "number_of_runs",
    "selection_spent",
    # Where steps are written down
    "PrivacyAccount",
    "PrivacyLedger",
    "RecordedRun",
    # Whom a step sees, its clipping norm, and its noise
    "BatchSampling",
    "CorrelatedNoise",
    "FixedSizeSampling",
    "PartitionedSampling",
    "PoissonSampling",
    "QuantileNorm",
    "ShuffledSampling",
    "add_gaussian_noise",
    "banded_strategy",
    "gaussian_noise",
    "prefix_error",
    "sampling_of",
]
