"""The networks of a configuration: as many as are trained, each with a seed of its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor, nn

from metalearn.cli.given_settings import plain_value
from metalearn.cli.targets import AROUND, accepted_of, made, placed, target_of
from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models import MLP, Ensemble, SavedWeights, read_weights, with_head, with_lora
from metalearn.models.weight_files import check_source
from metalearn.models.weights import check_patterns, put_weights, same_entries
from metalearn.signatures import accepted_settings, check_settings
from metalearn.trainers.meta.making import takes_any_keyword
from metalearn.trainers.supervised.losses import chosen_loss

__all__ = [
    "LARGEST_SEED",
    "InitialWeights",
    "check_around",
    "check_initial",
    "initial_weights",
    "inputs_of",
    "kept_weights",
    "made_model",
    "network_factory",
    "network_seeds",
    "started_network",
]

LARGEST_SEED = 2**63 - 1
_OF_TEXTS = tuple(f"metalearn.models.{name}" for name in ("AveragedEmbeddings", "TextTransformer"))


class InitialWeights(NamedTuple):
    """Weights that a training starts from."""

    saved: SavedWeights
    skip: list[str]
    """Patterns of entries that stay as they are."""

    def suit(self, module: nn.Module) -> bool:
        """Whether their names are those of the module that a trainer trains."""
        return same_entries(module, self.saved, self.skip)

    @property
    def origin(self) -> dict[str, Any]:
        """What tells later where they came from."""
        return {**self.saved.origin, "skip": self.skip}


def initial_weights(config: DictConfig) -> InitialWeights | None:
    """What ``init_from`` names; None where it names nothing, as in runs of before.

    Raises:
        SettingError, DataError: nothing there, or nothing that can be read as weights.
    """
    check_initial(config)
    if config.get("init_from") is None:
        return None
    return InitialWeights(read_weights(config.init_from), list(config.get("init_skip") or ()))


def check_initial(config: DictConfig) -> None:
    """Refuse what cannot be the start of a training, without reading it."""
    source, skip = config.get("init_from"), plain_value(config.get("init_skip"))
    if not isinstance(skip or [], list) or not all(isinstance(p, str) for p in skip or ()):
        raise SettingError("init_skip", skip, "a list of patterns is needed, such as [head.*]")
    if source is not None:
        check_source("init_from", plain_value(source))
    elif skip:
        raise SettingError("init_skip", skip, "init_from is needed for it")


def made_model(config: DictConfig, source: Any, start: InitialWeights | None = None) -> nn.Module:
    """The network, or as many of them as the trainer trains, each with a seed of its own.

    With ``start`` all of them have those weights.
    """
    members = config.trainer.get("members")
    if members is None:
        shape = inputs_of(source) | {"outputs": _outputs(config, source)}
        frozen = plain_value(config.model.get("frozen_features")) or False
        if frozen:
            return _head_on_features(shape, frozen, config.model.get("seed", config.seed))
        return started_network(config, shape, start)
    make = network_factory(config, source, start)
    seeds = network_seeds(config)
    size = sum(part.numel() * part.element_size() for part in make(seeds[0]).parameters())
    check_memory("trainer.members", members, 2 * size * len(seeds))  # with their gradients
    adapted = (plain_value(config.model.get("lora")) or {}).get("rank") is not None
    return Ensemble.from_factory(_on_one_body(make) if adapted else make, seeds)


def network_factory(
    config: DictConfig, source: Any, start: InitialWeights | None = None
) -> Callable[[int], nn.Module]:
    """What makes networks like that of ``model``, each with a seed of its own."""
    shape = inputs_of(source) | {"outputs": _outputs(config, source)}
    frozen = plain_value(config.model.get("frozen_features")) or False
    seeded = "seed" in accepted_of(config.model, "model")

    def make(seed: int) -> nn.Module:
        if frozen:
            return _head_on_features(shape, frozen, seed)
        own = shape | {"seed": seed} if seeded else shape
        return started_network(config, own, start, seed=seed)

    return make


def inputs_of(source: Any) -> dict[str, Any]:
    """What a network is told of its inputs: ``input_shape``, and of texts ``vocabulary``."""
    vocabulary = getattr(source, "vocabulary", None)
    shape = {"input_shape": list(source.input_shape)}
    return shape if vocabulary is None else {**shape, "vocabulary": vocabulary}


def _on_one_body(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Networks with adapters of their own, on what is fixed in the first, and with its buffers."""
    body: dict[str, Tensor] = {}

    def made(seed: int) -> nn.Module:
        network = make(seed)
        fixed = {n: p.detach() for n, p in network.named_parameters() if not p.requires_grad}
        fixed |= dict(network.named_buffers())
        for name, value in fixed.items():
            value.copy_(body.setdefault(name, value))
        return network

    return made


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


def kept_weights(config: DictConfig) -> DictConfig:
    """The configuration for a network whose weights are in a checkpoint: no file is read for them.

    The network of torchvision's that it makes is the same but for its weights.
    """
    model = config.model
    if model.get("frozen_features") or not (model.get("weights") or model.get("download")):
        return config
    found = copy.deepcopy(config)
    found.model.weights, found.model.download = None, False
    if model.get("standardise") is None and "standardise" in model:
        found.model.standardise = True
    return found


def _network(node: DictConfig, supplied: dict[str, Any], seed: int) -> nn.Module:
    """The network of a node; one that cannot be made for so many outputs has a new last layer."""
    target = target_of(node, "model")
    takes = set(accepted_settings(target))
    if takes_any_keyword(inspect.signature(target)):
        takes |= set(supplied)
    _check_tokens(node, takes, supplied)
    network: nn.Module = made(node, "model", **{k: v for k, v in supplied.items() if k in takes})
    if "outputs" in takes:
        return network
    try:
        return with_head(network, supplied["outputs"], seed=seed)
    except SettingError as error:
        accepted = "outputs as an argument, or a last linear layer to replace, is needed"
        raise SettingError("model._target_", node["_target_"], accepted) from error


def _check_tokens(node: DictConfig, takes: Set[str], supplied: Mapping[str, Any]) -> None:
    """Refuse a network of texts for other inputs, and networks of ours that know no texts."""
    texts, place = "vocabulary" in supplied, str(node["_target_"])
    ours = place.startswith("metalearn.models.")
    if texts and ours and "vocabulary" not in takes:
        accepted = "a network of texts is needed: averaged_embeddings, text_transformer, gru, lstm"
        raise SettingError("model", place.rpartition(".")[2], accepted)
    if not texts and place in _OF_TEXTS:
        accepted = "texts are needed for it (task=texts), or a network of other inputs"
        raise SettingError("model", place.rpartition(".")[2], accepted)


def started_network(
    config: DictConfig,
    supplied: dict[str, Any],
    start: InitialWeights | None,
    *,
    seed: int | None = None,
) -> nn.Module:
    """The network of ``model`` for what is supplied, with weights to start from and adapters.

    ``seed`` is that of a new last layer and of the adapters; None is that of the settings.
    """
    seed = config.model.get("seed", config.seed) if seed is None else seed
    network = _network(config.model, supplied, seed)
    if start is not None:
        saved = start.saved
        check_patterns(start.skip, [*network.state_dict(), *saved.entries, *saved.learnt])
        put_weights(network, saved, start.skip)
    lora = plain_value(config.model.get("lora")) or {}
    if lora.get("rank") is None:
        return network
    try:
        return with_lora(network, **lora, seed=seed)
    except SettingError as error:
        raise SettingError(f"model.lora.{error.setting}", error.value, error.accepted) from error


def check_around(model: DictConfig) -> None:
    """Refuse settings of ``model`` that say what becomes of its network and cannot work."""
    frozen, lora = (plain_value(model.get(name)) for name in AROUND)
    widths = frozen if isinstance(frozen, list) else []
    if frozen == [] or not isinstance(frozen, bool | list | None):
        accepted = "true, false or widths of hidden layers, [64], are needed"
        raise SettingError("model.frozen_features", frozen, accepted)
    for width in widths:
        check_whole("model.frozen_features", width, 1)
    if lora is not None and not isinstance(lora, dict):
        raise SettingError("model.lora", lora, "settings are needed, {rank: 4}, or null")
    lora = lora or {}
    if lora.get("rank") is None:
        for name, value in lora.items():
            if name not in ("rank", "alpha", "layers"):
                raise SettingError(f"model.lora.{name}", value, "there is no such setting")
        return
    check_settings(with_lora, lora, "model.lora.", without={"module", "seed"})
    if frozen:
        accepted = "null is needed: a network whose features are computed once has no adapters"
        raise SettingError("model.lora.rank", lora["rank"], accepted)


def _head_on_features(shape: dict[str, Any], frozen: Any, seed: int) -> nn.Module:
    """A linear layer on features, or an MLP of the widths that are given."""
    return MLP(**shape, hidden=frozen if isinstance(frozen, list) else (), seed=seed)


def _outputs(config: DictConfig, source: Any) -> int:
    """How many outputs of a sample the network needs."""
    if "loss" in accepted_of(config.trainer, "trainer"):
        try:
            return chosen_loss(plain_value(config.trainer.get("loss")), source).widths[0]
        except SettingError as error:
            raise placed(error, "trainer") from error
    return int((config.get("learner") or {}).get("features") or source.outputs)
