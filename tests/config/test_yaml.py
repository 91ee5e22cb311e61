"""Every YAML binds to its constructor, and every choice composes."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import OmegaConf

from metalearn.signatures import accepted_settings, check_settings
from tests.config.commands import ROOT

CONF = ROOT / "conf"
GROUPS = ("task", "model", "maml", "optimizer", "trainer")
NODES = [p for group in GROUPS for p in sorted((CONF / group).glob("*.yaml"))]
DATA = sorted((CONF / "data").glob("*.yaml"))
GIVEN_BY_THE_PROGRAM = {
    "model": {"input_shape", "outputs"},
    "trainer": {"model", "tasks", "maml", "optimizer", "tracker", "folder", "device"},
}


def choice(path: Path) -> str:
    return f"{path.parent.name}={path.stem}"


@pytest.mark.parametrize("path", NODES + DATA, ids=choice)
def test_a_node_binds_to_its_constructor(path: Path) -> None:
    node = OmegaConf.create({"seed": 0, path.parent.name: OmegaConf.load(path)})[path.parent.name]
    if "root" in OmegaConf.missing_keys(node):
        node.root = "somewhere"
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    target = get_object(values.pop("_target_"))
    partial = values.pop("_partial_", False)
    check_settings(target, values, "")
    accepted = set(accepted_settings(target)) - GIVEN_BY_THE_PROGRAM.get(path.parent.name, set())
    if not partial:  # a torch optimiser has more settings than need to be shown
        assert accepted - {"data"} == set(values), "a setting is missing from the YAML"


@pytest.mark.parametrize(
    "override",
    [choice(p) for p in NODES] + [choice(p) for p in sorted((CONF / "experiment").glob("*.yaml"))],
)
def test_every_choice_composes(override: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[override])
    for group in GROUPS:
        assert "_target_" in config[group]


def test_experiments_change_only_what_is_there() -> None:
    """A key of an experiment that no group has would be silently new."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for path in sorted((CONF / "experiment").glob("*.yaml")):
            config = compose("train", overrides=[choice(path)])
            for group in GROUPS:
                values = OmegaConf.to_container(config[group])
                assert isinstance(values, dict)
                names = {str(k) for k in values if not str(k).startswith("_")}
                assert names <= set(accepted_settings(get_object(values["_target_"]))), path
