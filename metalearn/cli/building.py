"""From a configuration to objects, every setting checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig
from torch import nn

from metalearn.cli.devices import device_of
from metalearn.cli.frozen_features import frozen_network, with_features
from metalearn.cli.given_settings import plain_value
from metalearn.cli.networks import (
    LARGEST_SEED,
    InitialWeights,
    check_around,
    made_model,
    network_factory,
    network_seeds,
)
from metalearn.cli.shapes import deferred_tasks
from metalearn.cli.targets import (
    SOURCES,
    accepted_of,
    check_node,
    group_node,
    made,
    made_optimizer,
    placed,
    target_of,
)
from metalearn.cli.typed_names import hints_as_typed
from metalearn.core.checks import check_number
from metalearn.data import ClassificationData, imbalanced, mislabelled, resized
from metalearn.data.division import check_fraction
from metalearn.errors import SettingError, check_whole
from metalearn.ranks import Ranks, refuse_division
from metalearn.signatures import accepted_settings, check_settings
from metalearn.tasks.deferred import DeferredTasks
from metalearn.trainers import Trainer
from metalearn.trainers.loop.initial_weights import start_beside
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.meta.criterion import Kind
from metalearn.trainers.supervised.member_weights import random_subsets

__all__ = ["GROUPS", "build", "check_settings_of", "groups_of"]

GROUPS = ("task", "data", "ood", "learner", "maml", "hyper", "model", "optimizer", "trainer")

_REQUIRED = ("task", "data")


def groups_of(config: DictConfig) -> tuple[str, ...]:
    """The groups that a configuration's trainer is built from, itself last."""
    accepted = accepted_settings(target_of(group_node(config, "trainer"), "trainer"))
    sources = [g for g, argument in SOURCES.items() if argument in accepted and config.get(g)]
    looping = "learner" not in sources or "maml" in accepted_settings(
        target_of(group_node(config, "learner"), "learner")
    )
    if not looping and "maml" in sources:
        sources.remove("maml")
    return (*sources, "model", "optimizer", "trainer")


@hints_as_typed
def check_settings_of(config: DictConfig) -> None:
    """Refuse a configuration that cannot work, as far as that shows before anything is loaded.

    Raises:
        SettingError: the first setting that cannot work.
    """
    device_of(config.device)
    for name in ("seed", "test_tasks"):
        check_whole(name, plain_value(config[name]), 0, LARGEST_SEED)
    deterministic = config.get("deterministic", False)  # runs of before have no such setting
    if not isinstance(deterministic, bool):
        raise SettingError("deterministic", plain_value(deterministic), "true or false is needed")
    accepted = accepted_of(group_node(config, "trainer"), "trainer")
    arguments = accepted_settings(target_of(config.trainer, "trainer"))
    for group in _REQUIRED:
        if SOURCES[group] in arguments:
            group_node(config, group)
    for group in groups_of(config):
        check_node(group_node(config, group), group)
    check_around(config.model)
    _check_member_weights(config, arguments)
    _check_changes(config)
    _check_learner(config)
    loop = {
        f.name: config.trainer[f.name] for f in fields(LoopSettings) if f.name in config.trainer
    }
    try:
        LoopSettings(**{name: plain_value(value) for name, value in loop.items()})
    except SettingError as error:
        raise placed(error, "trainer") from error
    if "members" in accepted and ("seeds" in accepted or config.trainer.get("members") is not None):
        check_whole("trainer.members", config.trainer.get("members"), 1)
        network_seeds(config)


@hints_as_typed
def build(
    config: DictConfig,
    *,
    folder: Path | None,
    start: InitialWeights | None = None,
    deferred: bool = False,
    trained_on: Mapping[str, int | None] | None = None,
    ranks: Ranks | None = None,
) -> Trainer:
    """The trainer of a configuration, every setting checked before anything is loaded.

    Args:
        config: composed, or that of a run.
        folder: of the run, for its checkpoints.
        start: weights to begin with: of a run of the same kind, or of the network itself.
        deferred: whether the data of tasks are looked for when one is drawn, and not here.
        trained_on: ``training_classes`` and ``training_units`` of a learner that may be scored on
            tasks of other data.
        ranks: that share the training; None is one process.
    """
    check_settings_of(config)
    device = device_of(config.device)
    groups = groups_of(config)
    optimizer = made_optimizer(config.optimizer)
    frozen = config.model.get("frozen_features")
    later = deferred_tasks(config) if deferred and "task" in groups and not frozen else None
    objects = _sources(config, later)
    source = objects.get("tasks") or objects["data"]
    if frozen:
        network, start = frozen_network(config, source, start), None
        for name in {"tasks", "data", "ood"} & set(objects):
            objects[name] = with_features(objects[name], network, device)
        source = objects.get("tasks") or objects["data"]
    if later is None and any(count is not None for count in (trained_on or {}).values()):
        source = objects["tasks"] = DeferredTasks.scored(objects["tasks"], **(trained_on or {}))
    if "seeds" in accepted_of(config.trainer, "trainer"):
        objects["seeds"] = network_seeds(config)
    if "factory" in accepted_settings(target_of(config.trainer, "trainer")):
        objects["factory"] = network_factory(config, source)
    objects |= {"optimizer": optimizer, "folder": folder, "device": device, **_weights(config)}
    objects |= {"deterministic": config.get("deterministic", False), **_shared(config, ranks)}

    def assembled(start: InitialWeights | None) -> Trainer:
        model = made_model(config, source, start)
        trainer: Trainer = made(config.trainer, "trainer", model=model, **objects)
        return trainer

    trainer = assembled(None)
    if start is None:
        return trainer
    try:
        if start.suit(trainer.module):
            trainer.start_from(start.saved, skip=start.skip)
        else:  # they are of the network, before its trainer wraps or converts it
            trainer = assembled(start)
            start_beside(trainer.loop, start.saved, start.skip)
    except SettingError as error:
        name = {"source": "init_from", "skip": "init_skip"}.get(error.setting, error.setting)
        raise SettingError(name, error.value, error.accepted) from error
    return trainer


def _shared(config: DictConfig, ranks: Ranks | None) -> dict[str, Any]:
    """Ranks, as an argument of the trainer, where there are several.

    Raises:
        SettingError: a trainer that one process takes alone.
    """
    if ranks is None or ranks.count == 1:
        return {}
    if "ranks" not in accepted_settings(target_of(config.trainer, "trainer")):
        name = config.trainer["_target_"].rpartition(".")[2]
        refuse_division(f"a training by {name}", ranks.share)
    return {"ranks": ranks}


def _sources(config: DictConfig, later: DeferredTasks | None) -> dict[str, Any]:
    """Arguments of the trainer that groups become, by name; ``later`` are tasks made already."""
    groups = groups_of(config)
    objects: dict[str, Any] = {} if later is None else {"tasks": later}
    for group in groups:
        if group in SOURCES and group != "ood" and SOURCES[group] not in objects:
            objects[SOURCES[group]] = made(config[group], group)
    if "data" in objects:
        objects["data"] = _changed(config.data, objects["data"])
    if "ood" in groups:
        objects["ood"] = _second_data(config.ood, objects.get("tasks") or objects["data"])
    return objects


def _weights(config: DictConfig) -> dict[str, Any]:
    """Weights of the examples, as an argument of the trainer, where the data have some."""
    data = config.data if "data" in groups_of(config) else {}
    given = plain_value(data.get("member_weights"), resolve=True)
    return {} if given is None else {"member_weights": given}


_CHANGES: dict[str, tuple[Callable[..., ClassificationData], str]] = {
    "imbalance": (imbalanced, "ratio"),
    "wrong_labels": (mislabelled, "fraction"),
}
"""Settings of ``data`` that spoil what is trained on, in this order, and what each becomes."""


def _changed(node: DictConfig, data: Any) -> Any:
    """The data as they are, or with rare classes and wrong labels in their training part."""
    for setting, (change, argument) in _CHANGES.items():
        value = plain_value(node.get(setting))
        if value is None:
            continue
        if data.kind != "classification":
            accepted = "null is needed: these data have no classes"
            raise SettingError(f"data.{setting}", value, accepted)
        try:
            data = change(data, **{argument: value}, seed=node.get("seed", 0))
        except SettingError as error:
            name = {argument: setting}.get(error.setting, error.setting)
            raise SettingError(f"data.{name}", error.value, error.accepted) from error
    return data


def _check_changes(config: DictConfig) -> None:
    """Refuse what is no share or ratio, or changes data that are not trained on."""
    for group in sorted({"data", "ood"} & set(groups_of(config))):
        given = {name: plain_value(config[group].get(name)) for name in _CHANGES}
        for name, value in given.items():
            if value is not None and group == "ood":
                accepted = "null is needed: nothing is trained on these data"
                raise SettingError(f"ood.{name}", value, accepted)
        if given["wrong_labels"] is not None:
            check_fraction(f"{group}.wrong_labels", given["wrong_labels"])
        if given["imbalance"] is not None:
            check_number(f"{group}.imbalance", given["imbalance"], above=1)


def _check_member_weights(config: DictConfig, arguments: Mapping[str, Any]) -> None:
    """Refuse weights of examples that are not trained on, or for a trainer that takes none."""
    for group in sorted({"data", "ood"} & set(groups_of(config))):
        given = plain_value(config[group].get("member_weights"))
        name = f"{group}.member_weights"
        if given is None:
            continue
        if group == "ood":
            raise SettingError(name, given, "null is needed: nothing is trained on these data")
        if "member_weights" not in arguments:
            raise SettingError(name, given, "null is needed: this trainer weights no examples")
        if isinstance(given, dict):
            unset = {"members", "examples"}
            check_settings(random_subsets, given, f"{name}.", without=unset)
        elif not isinstance(given, str):
            accepted = "{leave_out: 0.05, seed: 0}, or a file .npy or .csv, is needed"
            raise SettingError(name, given, accepted)


def _check_learner(config: DictConfig) -> None:
    """Refuse settings of a learner that cannot work, tried on the smallest of networks."""
    groups = groups_of(config)
    inner = {"maml": made(config.maml, "maml")} if "maml" in groups else {}
    if "learner" not in groups:
        return
    learner = config.learner
    if inner and learner.get("first_order") and inner["maml"].method not in ("auto", "first_order"):
        accepted = "auto is needed with a learner of first order"
        raise SettingError("maml.method", inner["maml"].method, accepted)
    for kind in get_args(Kind):
        try:
            made(learner, "learner")(nn.Linear(1, 1), kind=kind, **inner)
        except SettingError as error:
            if error.setting == "kind":  # it is for tasks of the other
                continue
            own = error.setting.partition("[")[0] in learner
            if own:  # what is said of such a network is of no concern
                raise placed(error, "learner") from error
        return


def _second_data(node: DictConfig, first: Any) -> ClassificationData:
    """Data that ought to be found uncertain, resized to the first."""
    if first.kind != "classification":
        accepted = "null is needed: uncertainties of classes alone are compared with a second set"
        raise SettingError("ood", node["_target_"], accepted)
    channels, *size = first.input_shape
    return resized(made(node, "ood"), image_size=size[0], channels=channels)
