"""What a group is called in a run's folder and in the block at its start."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from metalearn.cli.choice_names import chosen_name, name_of
from metalearn.cli.config_files import config_folder
from metalearn.cli.run_folders import run_folder
from metalearn.percent import is_share

GROUPS = ("data", "task", "model", "ood", "learner", "hyper")
CHOICES = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((config_folder() / group).glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_run_that_goes_on_is_called_as_it_was_begun(group: str, choice: str) -> None:
    node = OmegaConf.load(config_folder() / group / f"{choice}.yaml")
    assert OmegaConf.is_dict(node)
    if "_target_" in node:
        assert name_of(group, node) == choice  # type: ignore[arg-type]
        assert chosen_name(group, choice, str(node["_target_"])) == choice


def test_classes_of_ones_own_are_called_by_their_names() -> None:
    assert name_of("model", {"_target_": "mine.Net"}) == "Net"
    assert name_of("data", {"_target_": "mine.letters_data"}) == "letters"
    assert chosen_name("data", "digits", "mine.letters_data") == "letters"
    assert chosen_name("data", "digits", None) == "digits"


@pytest.mark.parametrize(
    ("trainer", "begins"),
    [("PerSampleTrainer", "outputs/letters-per_sample-"), ("MetaTrainer", "outputs/marks-")],
)
def test_a_folder_is_named_after_what_is_trained_on(trainer: str, begins: str) -> None:
    choices = {"data": "digits", "task": "glyphs", "trainer": "per_sample"}
    where = "mine.marks_tasks", "mine.letters_data"
    name = run_folder(None, choices, f"metalearn.trainers.{trainer}", *where)
    assert name.startswith(begins)


@pytest.mark.parametrize(
    ("name", "share"),
    [("test/accuracy", True), ("coverage", True), ("test/nll", False), ("accuracy/step", False)],
)
def test_shares_are_told_by_the_last_part_of_a_name(name: str, share: bool) -> None:
    assert is_share(name) is share
