"""The networks of a configuration: as many as are trained, each with a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import nn

from metalearn.cli.given_settings import plain_value
from metalearn.cli.targets import accepted_of, made, placed, target_of
from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models import Ensemble
from metalearn.trainers.supervised.losses import chosen_loss

__all__ = ["LARGEST_SEED", "made_model", "network_seeds"]

LARGEST_SEED = 2**63 - 1


def made_model(config: DictConfig, source: Any) -> nn.Module:
    """The network, or as many of them as the trainer trains, each with a seed of its own."""
    outputs = _outputs(config, source)
    shape = {"input_shape": list(source.input_shape), "outputs": outputs}
    members = config.trainer.get("members")
    if members is None:
        model: nn.Module = made(config.model, "model", **shape)
        return model
    seeded = "seed" in accepted_of(config.model, "model")

    def make(seed: int) -> nn.Module:
        own = shape | {"seed": seed} if seeded else shape
        network: nn.Module = made(config.model, "model", **own)
        return network

    seeds = network_seeds(config)
    size = sum(part.numel() * part.element_size() for part in make(seeds[0]).parameters())
    check_memory("trainer.members", members, 2 * size * len(seeds))  # with their gradients
    return Ensemble.from_factory(make, seeds)


def network_seeds(config: DictConfig) -> Sequence[int]:
    """Of the weights of each network, and of the order in which it sees the data."""
    given, members = plain_value(config.trainer.get("seeds")), config.trainer.members
    count = getattr(target_of(config.trainer, "trainer"), "networks", None) or members
    if given is None:
        return range(config.seed, config.seed + count)
    if len(given) != count:
        raise SettingError("trainer.seeds", given, f"{count} are needed, one for each network")
    for seed in given:
        check_whole("trainer.seeds", seed, 0, LARGEST_SEED)
    return [int(seed) for seed in given]


def _outputs(config: DictConfig, source: Any) -> int:
    """How many outputs of a sample the network needs."""
    if "loss" in accepted_of(config.trainer, "trainer"):
        try:
            return chosen_loss(plain_value(config.trainer.get("loss")), source).widths[0]
        except SettingError as error:
            raise placed(error, "trainer") from error
    return int((config.get("learner") or {}).get("features") or source.outputs)
