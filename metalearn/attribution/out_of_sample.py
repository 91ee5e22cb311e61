"""Predictions of training examples by networks that were trained without them.

Axes: K folds, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from metalearn.attribution.retraining import retrain_subsets
from metalearn.data import ClassificationData
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.signatures import check_settings, checked
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining

__all__ = ["folds_by_class", "out_of_sample_probabilities"]

_FIRST = 2**32  # of the streams of divisions; those before are of data sets into their parts


@checked
def out_of_sample_probabilities(
    network: nn.Module | Callable[..., nn.Module],
    data: ClassificationData,
    *,
    folds: int = 5,
    seed: int = 0,
    **settings: Annotated[Any, EnsembleTraining],
) -> Tensor:
    """Class probabilities ``[N, C]`` of the training examples, by cross-validation.

    The examples are dealt to K folds, those of each class evenly. K networks, trained as one stack
    by `retrain_subsets`, each lack one fold, whose examples they then predict.

    Args:
        network: as for `retrain_subsets`.
        data: whose training part has the N examples, in the order of ``data.splits["train"]``.
        folds: K, from 2 to N.
        seed: of the folds, and of batches, augmentation and dropout.
        settings: as for `retrain_subsets`. Of a batch of B examples about B/K weigh nothing.

    Raises:
        SettingError: a number of folds out of range; what `retrain_subsets` refuses.
        NonFiniteError: networks that diverged.
    """
    check_whole("folds", folds, 2)
    check_seed(seed)
    check_settings(EnsembleTraining, settings, "", without=("member_weights", "seeds"))
    examples, labels = data.part("train")
    if folds > len(labels):
        accepted = f"at most {len(labels)} are accepted, as many as there are examples"
        raise SettingError("folds", folds, accepted)
    own = folds_by_class(labels, folds, seed=seed)
    weights = (own != torch.arange(folds)[:, None]).float()
    outputs = retrain_subsets(
        network, data, weights, (examples, labels), seeds=seed, **settings
    ).outputs
    return outputs[own, torch.arange(len(own))].softmax(-1)


def folds_by_class(labels: Tensor, folds: int, *, seed: int) -> Tensor:
    """``[N]``, the fold of each example: sizes differ by one at most, of each class too.

    Examples of a class, in random order, are dealt in turn; each class goes on where the one before
    has ended.
    """
    order = []
    for label in torch.unique(labels).tolist():
        own = (labels == label).nonzero().flatten()
        drawn = AddressedStream(seed, "division", _FIRST + label).permutation(len(own))
        order.append(own[torch.from_numpy(drawn)])
    found = torch.empty_like(labels)
    found[torch.cat(order)] = torch.arange(len(labels)) % folds
    return found
