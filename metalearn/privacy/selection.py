"""What it costs to release the best of several runs and nothing of the others.

Axes: K runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from metalearn.core.checks import check_number
from metalearn.near_names import check_known
from metalearn.privacy.accountants import selected_epsilon
from metalearn.privacy.accounting import PrivacySpent, check_accounting, events_of, one_relation
from metalearn.privacy.mechanism import Mechanism
from metalearn.random_streams import SecureStream, Stream
from metalearn.signatures import checked

__all__ = ["RunCount", "number_of_runs", "selection_spent"]

RunCount = Literal["geometric", "poisson"]
"""How the number of runs is drawn."""

_SHAPES: dict[str, float] = {"geometric": 1.0, "poisson": math.inf}


@checked
def selection_spent(
    steps: Sequence[tuple[Mechanism, int]],
    delta: float,
    *,
    runs: float,
    distribution: RunCount = "geometric",
) -> PrivacySpent:
    """(ε, δ) of the best of K runs, K drawn by chance with the mean ``runs``, by Rényi divergences.

    K is geometric, or Poisson's, and is drawn before the first run and told to nobody
    (`number_of_runs`). Every run draws its settings, at random from whatever one likes, and its
    randomness anew, and gives a network and a score, both private at the cost of ``steps``; that
    with the best score is released, and nothing of the others, not even how many there were. This
    costs little more than two runs or three do, where to release all K costs K times as many steps.
    A score on the private samples has a cost of its own, which belongs to ``steps``; on public ones
    it has none.

    Papernot and Steinke, "Hyperparameter Tuning with Rényi Differential Privacy", ICLR 2022
    (theorem 2 with η = 1, and theorem 6).

    Args:
        steps: of one run, as in `privacy_spent`: of that among the runs that costs most, where
            settings change the cost.
        delta: δ in (0, 1).
        runs: the mean of K: above 1 where it is geometric, above 0 where it is Poisson's.
        distribution: of K. Poisson's is the more even, and dearer where there are many; it may be
            0, where nothing is released.

    Raises:
        SettingError: a value out of its range.
        DataError: dp-accounting is not installed.
    """
    check_accounting(delta, "rdp")
    _check_runs(runs, distribution)
    relation, events = one_relation(steps), events_of(steps)
    epsilon = selected_epsilon(events, float(delta), float(runs), _SHAPES[distribution])
    return PrivacySpent(epsilon, float(delta), relation, "rdp")


@checked
def number_of_runs(runs: float, distribution: RunCount = "geometric") -> int:
    """K of `selection_spent`, from the secure generator.

    Args:
        runs: the mean of K.
        distribution: of K.

    Raises:
        SettingError: a value out of its range.
    """
    _check_runs(runs, distribution)
    return _drawn(SecureStream(), float(runs), distribution)


def _drawn(stream: Stream, mean: float, distribution: RunCount) -> int:
    if distribution == "geometric":
        left = 1.0 - float(stream.uniform(1)[0])  # in (0, 1]
        return 1 + int(math.log(left) / math.log1p(-1 / mean))
    count, waited = -1, 0.0  # arrivals within a time of the mean, each after a wait of mean 1
    while waited <= mean:
        waited -= math.log(1.0 - float(stream.uniform(1)[0]))
        count += 1
    return count


def _check_runs(runs: float, distribution: RunCount) -> None:
    check_known("distribution", distribution, get_args(RunCount))
    least = 1 if distribution == "geometric" else 0
    check_number("runs", runs, above=least, below=math.inf)
