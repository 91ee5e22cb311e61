"""Ensembles out of the training of one network: MC-dropout, BatchEnsemble, and what they share.

Axes: M members, B samples of a batch, C classes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from torch import Tensor

from metalearn.data import ClassificationData
from metalearn.errors import SettingError, check_whole
from metalearn.models import BatchEnsemble, Ensemble, MCDropout, Predictor
from metalearn.models.batch_ensemble import Factors
from metalearn.signatures import checked
from metalearn.trainers.ensemble import EnsembleTrainer

__all__ = ["BatchEnsembleTrainer", "MCDropoutTrainer", "OneNetworkTrainer"]


class OneNetworkTrainer(EnsembleTrainer):
    """Trains one network as `EnsembleTrainer` does; a subclass makes M members of it.

    Args:
        model: an ensemble of one network.
        data: labelled samples in three splits.
        members: M, of `predictive`.
        settings: the rest of `EnsembleTrainer`; lists have one value, for the one network.

    Raises:
        SettingError: a setting out of range, or more than one network.
    """

    networks: ClassVar[int | None] = 1

    def __init__(
        self,
        model: Ensemble,
        data: ClassificationData,
        *,
        members: int = 10,
        **settings: Annotated[Any, EnsembleTrainer],
    ) -> None:
        check_whole("members", members, 1)
        _one_network(model)
        super().__init__(model, data, **settings)
        self.members = members

    def member_settings(self) -> list[dict[str, float]]:
        """The settings of the one network for each member, and the number of the member."""
        (row,) = super().member_settings()
        return [row | {"member": float(index)} for index in range(self.members)]


class MCDropoutTrainer(OneNetworkTrainer):
    """Trains a network with dropout, and predicts under M draws of its masks.

    Validation, which decides what is best, is of the network without dropout.

    Args:
        model: an ensemble of one network with `metalearn.models.Dropout` layers.
        data: labelled samples in three splits.
        members: M, draws of masks.
        settings: the rest of `EnsembleTrainer`; ``dropout`` is the rate.

    Raises:
        SettingError: a setting out of range, or a network without dropout.
    """

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: ClassificationData,
        *,
        members: int = 10,
        **settings: Annotated[Any, EnsembleTrainer],
    ) -> None:
        super().__init__(model, data, members=members, **settings)
        self.predictive()  # refuses a network without dropout

    def predictive(self) -> MCDropout:
        """The network as it stands under M draws of masks."""
        return MCDropout(self.ensemble.member(0), self.members)


class BatchEnsembleTrainer(OneNetworkTrainer):
    """Trains M members that share weights up to factors of rank one, all on the same batches.

    ``ensemble`` is one `BatchEnsemble` of the given network. A step is one pass of M members, and
    clipping, learning rate and the best state are of all of them together.

    Args:
        model: an ensemble of one network, which is copied.
        data: labelled samples in three splits.
        members: M.
        factors: how factors begin, see `metalearn.models.batch_ensemble.Factors`.
        settings: the rest of `EnsembleTrainer`.

    Raises:
        SettingError: a setting out of range, or a network without a layer that can share.
    """

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: ClassificationData,
        *,
        members: int = 10,
        factors: Factors = "signs",
        **settings: Annotated[Any, EnsembleTrainer],
    ) -> None:
        _one_network(model)
        seeds = settings.get("seeds")
        seed = seeds[0] if isinstance(seeds, list | tuple | range) and seeds else 0
        shared = BatchEnsemble(model.member(0), members, factors=factors, seed=seed)
        super().__init__(Ensemble.from_modules([shared]), data, members=members, **settings)

    def validated(self) -> Predictor:
        """The members as they stand."""
        found = self.ensemble.member(0)
        assert isinstance(found, BatchEnsemble)
        return found

    def member_scores(self) -> Tensor:
        """``[1]``: mean over the members, which are kept together."""
        return super().member_scores().mean(0, keepdim=True)


def _one_network(model: Ensemble) -> None:
    if len(model) != 1:
        accepted = "one network, of which all members are made, is needed"
        raise SettingError("model", f"{len(model)} networks", accepted)
