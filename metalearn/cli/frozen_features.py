"""Tasks or data of features: the network of ``model`` describes every picture once.

What trains is a linear layer on the features, or an MLP.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from metalearn.cli.networks import InitialWeights, initial_weights, inputs_of, started_network
from metalearn.core import convert_norm
from metalearn.data.feature_table import FeatureTable, feature_table
from metalearn.data.picture_files import PictureFiles
from metalearn.errors import SettingError
from metalearn.models.frozen import frozen_body
from metalearn.tasks import FewShotTasks, MixtureTasks

__all__ = ["frozen_network", "with_features"]


def frozen_network(config: DictConfig, source: Any, start: InitialWeights | None) -> nn.Module:
    """The network whose features are computed once, with the weights to start from.

    Raises:
        SettingError: one that has no features of a picture alone.
    """
    shape = inputs_of(source) | {"outputs": source.outputs}
    network = started_network(config, shape, start or initial_weights(config))
    norm = _norm(config)
    try:
        return frozen_body(network if norm is None else convert_norm(network, norm))
    except SettingError as error:
        raise _named(error) from error


def with_features(source: Any, network: nn.Module, device: torch.device) -> Any:
    """Tasks or samples of features in the place of pictures.

    Raises:
        SettingError: inputs that are no pictures of a data set, or that are changed at random.
    """
    try:
        if isinstance(source, FewShotTasks):
            inputs, turned = source.data.inputs, source.turned
            return source.with_features(_table(network, inputs, device, turned=turned))
        if isinstance(source, MixtureTasks):
            sets = source.sets.items()
            return source.with_sets({n: with_features(s, network, device) for n, s in sets})
        if hasattr(source, "inputs") and source.inputs.dim() == 4:
            table = _table(network, source.inputs, device)
            return dataclasses.replace(source, inputs=table.values[0])
    except SettingError as error:
        raise _named(error) from error
    accepted = "false is needed: these are no pictures of a data set that has an end"
    raise SettingError("model.frozen_features", True, accepted)


def _table(
    network: nn.Module,
    pictures: torch.Tensor | PictureFiles,
    device: torch.device,
    *,
    turned: bool = False,
) -> FeatureTable:
    return feature_table(network, pictures, turned=turned, device=device)


def _norm(config: DictConfig) -> Any:
    """How the method's settings convert the norms of the network; None where they do not."""
    for group in ("learner", "maml"):
        found = (config.get(group) or {}).get("norm")
        if found is not None:
            return found
    return None


def _named(error: SettingError) -> SettingError:
    """The error under the name of the setting on the command line."""
    if error.setting in ("frozen_features", "pictures"):
        return SettingError("model.frozen_features", error.value, error.accepted)
    return error
