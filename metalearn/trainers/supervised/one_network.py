"""Ensembles out of the training of one network: MC-dropout, BatchEnsemble.

Axes: M members, B samples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Unpack

from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.models import BatchEnsemble, Ensemble, MCDropout
from metalearn.models.batch_ensemble import Factors
from metalearn.signatures import checked
from metalearn.trainers.supervised import ensemble_methods as methods
from metalearn.trainers.supervised.ensemble_evaluation import Validation
from metalearn.trainers.supervised.ensemble_options import EnsembleOptions
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining
from metalearn.trainers.trainer import Trainer

__all__ = ["BatchEnsembleTrainer", "MCDropoutTrainer", "check_one_network", "settings_of_each"]


class MCDropoutTrainer(Trainer):
    """Trains a network with dropout, and predicts under M draws of its masks.

    Validation, which decides what is best, is of the network without dropout.

    Args:
        model: an ensemble of one network with `metalearn.models.Dropout` layers.
        data: samples in three splits, with classes or real targets.
        members: M, draws of masks.
        settings: the rest of `EnsembleTrainer`; ``dropout`` is the rate.

    Raises:
        SettingError: a setting out of range, or a network without dropout.
    """

    networks: ClassVar[int | None] = 1
    makes_module: ClassVar[tuple[str, ...]] = ("loss",)

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: SupervisedData,
        *,
        members: int = 10,
        **settings: Unpack[EnsembleOptions],
    ) -> None:
        check_one_network(model, members, settings)
        self.training = EnsembleTraining(model, data, **settings)
        self.ensemble, self.data, self.seeds = model, data, self.training.seeds
        self.members = members
        super().__init__(self.training.loop())
        self.predictive()  # refuses a network without dropout

    def predictive(self) -> MCDropout:
        """The network as it stands under M draws of masks."""
        return MCDropout(self.ensemble.member(0), self.members)

    def member_settings(self) -> list[dict[str, float]]:
        """The settings of the one network for each member, and the number of the member."""
        return settings_of_each(self.training, self.members)

    plan, predict, test = methods.plan, methods.predict, methods.score
    reports, diagnosis_sources = methods.reports, methods.diagnosis_sources


class BatchEnsembleTrainer(Trainer):
    """Trains M members that share weights up to factors of rank one, all on the same batches.

    ``ensemble`` is one `BatchEnsemble` of the given network. A step is one pass of M members, and
    clipping, learning rate and the best state are of all of them together.

    Args:
        model: an ensemble of one network, which is copied.
        data: samples in three splits, with classes or real targets.
        members: M.
        factors: how factors begin, see `metalearn.models.batch_ensemble.Factors`.
        settings: the rest of `EnsembleTrainer`.

    Raises:
        SettingError: a setting out of range, or a network without a layer that can share.
    """

    networks: ClassVar[int | None] = 1
    makes_module: ClassVar[tuple[str, ...]] = ("members", "loss")

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: SupervisedData,
        *,
        members: int = 10,
        factors: Factors = "signs",
        **settings: Unpack[EnsembleOptions],
    ) -> None:
        check_one_network(model, members, settings)
        seeds = settings.get("seeds")
        seed = seeds[0] if isinstance(seeds, list | tuple | range) and seeds else 0
        shared = BatchEnsemble(model.member(0), members, factors=factors, seed=seed)
        self.ensemble, self.data, self.members = Ensemble.from_modules([shared]), data, members
        validation = Validation(scored=_members_of, together=True)
        self.training = EnsembleTraining(self.ensemble, data, validation, **settings)
        self.seeds = self.training.seeds
        super().__init__(self.training.loop())

    def predictive(self) -> BatchEnsemble:
        """The members as they stand."""
        return _members_of(self.ensemble)

    def member_settings(self) -> list[dict[str, float]]:
        """The settings of the one network for each member, and the number of the member."""
        return settings_of_each(self.training, self.members)

    plan, predict, test = methods.plan, methods.predict, methods.score
    reports, diagnosis_sources = methods.reports, methods.diagnosis_sources


def check_one_network(model: Ensemble, members: int, settings: Mapping[str, Any]) -> None:
    """Refuse more than one network, a number of members that is none, and settings of each.

    Raises:
        SettingError: names the setting.
    """
    check_whole("members", members, 1)
    for name in ("lr", "weight_decay", "label_smoothing", "dropout"):
        if isinstance(settings.get(name), Mapping):
            accepted = "a number is needed: one network is trained, of which all members are made"
            raise SettingError(name, dict(settings[name]), accepted)
    if len(model) != 1:
        accepted = "one network, of which all members are made, is needed"
        raise SettingError("model", f"{len(model)} networks", accepted)


def settings_of_each(training: EnsembleTraining, members: int) -> list[dict[str, float]]:
    """The settings of the one network, once for each member, and the number of the member."""
    (row,) = training.member_settings()
    return [row | {"member": float(index)} for index in range(members)]


def _members_of(ensemble: Ensemble) -> BatchEnsemble:
    found = ensemble.member(0)
    assert isinstance(found, BatchEnsemble)
    return found
