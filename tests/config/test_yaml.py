"""Every YAML binds to its constructor, and every choice composes."""

from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from metalearn.cli.building import groups_of
from metalearn.cli.targets import AROUND, OF_EXAMPLES
from metalearn.signatures import accepted_settings, check_settings
from metalearn.trainers import HYPER_KINDS, LEARNERS
from tests.support.commands import ROOT

CONF = ROOT / "conf"
GROUPS = ("task", "model", "learner", "maml", "hyper", "optimizer", "trainer")
SAMPLES = ("data", "model", "optimizer", "trainer")
NODES = [p for group in GROUPS for p in sorted((CONF / group).glob("*.yaml"))]
DATA = sorted((CONF / "data").glob("*.yaml"))
OOD = sorted((CONF / "ood").glob("*.yaml"))
GIVEN_BY_THE_PROGRAM = {
    "learner": {"module", "maml", "kind"},
    "hyper": {"setup"},
    "model": {"input_shape", "outputs", "vocabulary"},
    "task": {"data"},
    "trainer": {
        "model", "tasks", "data", "ood", "learner", "maml", "hyper", "factory", "optimizer",
        "tracker", "folder", "ranks",
        "device", "deterministic", "metrics", "member_weights",
    },
}  # fmt: skip


def choice(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.mark.parametrize("path", NODES + DATA, ids=choice)
def test_a_node_binds_to_its_constructor(path: Path) -> None:
    node = composed(choice(path))[path.parent.name]
    for missing in OmegaConf.missing_keys(node):
        name = missing.rpartition(".")[2]
        node[name] = {"root": "somewhere", "sets": ["glyphs"]}[name]
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    target = get_object(values.pop("_target_"))
    partial = values.pop("_partial_", False)
    assert path.parent.name != "optimizer" or values.pop("groups") is None  # see ParameterGroups
    for name in {"model": AROUND, "data": OF_EXAMPLES}.get(path.parent.name, ()):
        values.pop(name, None)
    check_settings(target, values, "")
    accepted = set(accepted_settings(target)) - GIVEN_BY_THE_PROGRAM.get(path.parent.name, set())
    if not partial:  # a torch optimiser has more settings than need to be shown
        assert accepted == set(values), "a setting is missing from the YAML"


@pytest.mark.parametrize(
    "override",
    [choice(p) for p in NODES] + [choice(p) for p in sorted((CONF / "experiment").glob("*.yaml"))],
)
def test_every_choice_composes(override: str) -> None:
    config = composed(override)
    for group in GROUPS:
        assert "_target_" in config[group]


@pytest.mark.parametrize(
    "override", [choice(p) for p in [*DATA, *OOD, *NODES] if p.parent.name in (*SAMPLES, "ood")]
)
def test_every_choice_composes_for_an_ensemble(override: str) -> None:
    if override.startswith("trainer="):
        override = "seed=0"
    config = composed("trainer=ensemble", override)
    for group in (*SAMPLES, *(["ood"] if override.startswith("ood=") else [])):
        assert "_target_" in config[group]
    assert config.trainer._target_ == "metalearn.trainers.EnsembleTrainer"
    expected = ("data", *(["ood"] if "ood" in config and config.ood else []), *SAMPLES[1:])
    assert groups_of(config) == expected


def test_every_kind_of_what_shapes_runs_is_a_choice() -> None:
    assert {path.stem for path in (CONF / "hyper").glob("*.yaml")} == set(HYPER_KINDS)
    for name, kind in HYPER_KINDS.items():
        config = composed("trainer=hyper", f"hyper={name}")
        assert get_object(config.hyper._target_) is kind
        assert groups_of(config) == ("data", "hyper", "model", "optimizer", "trainer")


def test_every_learner_that_is_known_is_a_choice() -> None:
    assert {path.stem for path in (CONF / "learner").glob("*.yaml")} == set(LEARNERS)
    for name, known in LEARNERS.items():
        config = composed(f"learner={name}")
        wanted = known.make.func if isinstance(known.make, partial) else known.make
        assert get_object(config.learner._target_) is wanted
        assert ("maml" in groups_of(config)) == ("maml" in accepted_settings(wanted))


@pytest.mark.parametrize("path", OOD, ids=choice)
def test_a_second_data_set_is_the_data_set_of_that_name(path: Path) -> None:
    assert (CONF / "data" / path.name).is_file()
    config = composed("trainer=ensemble", choice(path), f"data={path.stem}")
    assert config.ood == config.data
    assert config.ood.seed == config.seed


def test_groups_of_a_trainer_are_those_it_is_built_from() -> None:
    assert groups_of(composed()) == ("task", "maml", "learner", "model", "optimizer", "trainer")
    both = composed("trainer=meta", "ood=glyphs")  # a meta-learner takes no labelled samples
    assert groups_of(both) == ("task", "maml", "learner", "model", "optimizer", "trainer")


def test_an_ensemble_has_a_network_and_an_optimiser_of_its_own() -> None:
    config = composed("trainer=ensemble")
    assert config.model._target_.endswith("MLP")
    assert config.optimizer.fused
    config = composed("trainer=ensemble", "model=conv4", "optimizer=sgd")
    assert config.model._target_.endswith("Conv4")
    assert config.optimizer.momentum == 0.9


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def test_experiments_change_only_what_is_there() -> None:
    """A key of an experiment that no group has would be silently new."""
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        config = composed(choice(path))
        for group in GROUPS:
            values = OmegaConf.to_container(config[group])
            assert isinstance(values, dict)
            names = {str(k) for k in values if not str(k).startswith("_")}
            beside = {"optimizer": {"groups"}, "model": set(AROUND)}.get(group, set())
            assert names <= {*accepted_settings(get_object(values["_target_"])), *beside}, path
