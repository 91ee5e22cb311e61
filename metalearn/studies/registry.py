"""All studies by name. A new one is a function of a seed and a line here."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metalearn.data import ClassificationData, digits_data, glyphs_data
from metalearn.errors import SettingError
from metalearn.near_names import with_nearest
from metalearn.studies.distillation import distil_digits
from metalearn.studies.label_errors import ScoredTraining, find_label_errors
from metalearn.studies.private_tasks import task_privacy_errors, task_privacy_times
from metalearn.studies.private_training import train_privately
from metalearn.studies.rows import Rows
from metalearn.studies.schedules import compare_schedules
from metalearn.studies.spoilt_training import train_imbalanced, train_mislabelled

__all__ = ["STUDIES", "Study", "chosen_studies"]


@dataclass(frozen=True)
class Study:
    """A use, and what else would be done in its place."""

    name: str
    title: str
    run: Callable[[int], Rows]
    """Of a seed: what it gives."""
    digits: dict[str, int]
    """Columns of the table, and how many decimals they are shown with."""


def _digits(seed: int) -> ClassificationData:
    return digits_data(seed=seed)


def _glyphs(seed: int) -> ClassificationData:
    return glyphs_data(image_size=14, classes=15, renderings=200, seed=seed)


_OF_DIGITS = ScoredTraining(hidden=32, steps=200)
_OF_GLYPHS = ScoredTraining(hidden=128, steps=600)
"""By the accuracy on validation samples, whose labels are right, of seed 100, which no row has."""


_RATES_OF_DIGITS: dict[float | None, float] = {1.0: 0.06, 3.0: 0.125, 8.0: 0.5, None: 0.5}
_RATES_OF_GLYPHS: dict[float | None, float] = {1.0: 0.03, 3.0: 0.125, 8.0: 0.25, None: 0.5}
"""By ε, so chosen from 0.03, 0.06, 0.125, 0.25 and 0.5."""


_RATES_OF_WAVES: dict[float | None, float] = {3.0: 0.06, 8.0: 0.06, None: 0.03}
"""By ε, so chosen from 0.01, 0.03 and 0.06, for 2,000 users."""


_ACCURACY = {"accuracy": 1, "seconds": 0}
_ERRORS = {"before": 2, "after": 2, "seconds": 0}
STUDIES = {
    study.name: study
    for study in (
        Study(
            "label_errors_digits",
            "Finding 10 % wrong labels of digits: AUROC",
            lambda seed: find_label_errors(_digits, _OF_DIGITS, seed),
            {"auroc": 3, "seconds": 1},
        ),
        Study(
            "label_errors_glyphs",
            "Finding 10 % wrong labels of 15 letters: AUROC",
            lambda seed: find_label_errors(_glyphs, _OF_GLYPHS, seed),
            {"auroc": 3, "seconds": 1},
        ),
        Study(
            "wrong_labels",
            "Training on digits with 30 % wrong labels: accuracy, %",
            train_mislabelled,
            _ACCURACY,
        ),
        Study(
            "imbalance",
            "Training on digits with an imbalance of 100: accuracy, %",
            train_imbalanced,
            _ACCURACY,
        ),
        Study(
            "distilled",
            "Training on ten pictures of digits: accuracy, %",
            distil_digits,
            _ACCURACY,
        ),
        Study(
            "schedule",
            "Learning rates for 50 steps on digits",
            compare_schedules,
            {"accuracy": 2, "nll": 4, "seconds": 1, "runs": 0},
        ),
        Study(
            "private_digits",
            "Private training on digits, δ = 1e-5: accuracy, %",
            lambda seed: train_privately(_digits, 32, _RATES_OF_DIGITS, seed),
            _ACCURACY,
        ),
        Study(
            "private_glyphs",
            "Private training on 15 letters, δ = 1e-5: accuracy, %",
            lambda seed: train_privately(_glyphs, 128, _RATES_OF_GLYPHS, seed),
            _ACCURACY,
        ),
        Study(
            "task_privacy",
            "Sine waves of 2,000 users, privately, δ = 1e-5: squared error on new tasks",
            lambda seed: task_privacy_errors(2_000, _RATES_OF_WAVES, seed),
            _ERRORS,
        ),
        Study(
            "task_privacy_10000",
            "Sine waves of 10,000 users, privately, δ = 1e-5: squared error on new tasks",
            lambda seed: task_privacy_errors(10_000, _RATES_OF_WAVES, seed),
            _ERRORS,
        ),
        Study(
            "task_privacy_times",
            "A step that is private in its tasks beside an ordinary one, ms",
            task_privacy_times,
            {"plain": 2, "private": 2, "ratio": 2},
        ),
    )
}
"""In the order in which they are shown."""


def chosen_studies(names: Sequence[str]) -> list[Study]:
    """Studies by name or pattern; all where none is named.

    Raises:
        SettingError: a name of none.
    """
    found: list[Study] = []
    for name in names or ["*"]:
        several = [study for study in STUDIES.values() if fnmatch.fnmatch(study.name, name)]
        if not several:
            accepted = f"one of {', '.join(STUDIES)}, or a pattern, is needed"
            raise SettingError("study", name, with_nearest(accepted, name, STUDIES))
        found += [study for study in several if study not in found]
    return found
