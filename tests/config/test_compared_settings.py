"""Settings in which runs differ, by the names that a person types."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from omegaconf import OmegaConf

from metalearn.cli.comparison.settings import ABSENT, as_typed, differing_settings, seeds_of
from metalearn.cli.config_files import config_folder

CONF = config_folder()
SEED = {"seed": 3}


def choice(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """A choice of a group that builds on no other, as a run would save it."""
    text = (CONF / group / f"{name}.yaml").read_text()
    values = OmegaConf.to_container(OmegaConf.create(text.replace("${seed}", "3")))
    assert isinstance(values, dict) and "defaults" not in values
    return {str(key): value for key, value in values.items()} | changes


def alone(group: str) -> list[str]:
    paths = sorted((CONF / group).glob("*.yaml"))
    return [path.stem for path in paths if "defaults" not in OmegaConf.load(path)]


@pytest.mark.parametrize("group", ["data", "hyper", "learner", "model", "optimizer", "task"])
def test_a_group_that_was_chosen_otherwise_is_the_choice_alone(group: str) -> None:
    names = alone(group)
    assert len(names) >= 2
    for first, second in pairwise(names):
        given = [SEED | {group: choice(group, name)} for name in (first, second)]
        assert differing_settings(given) == [{group: first}, {group: second}]


def test_what_departs_from_the_choice_stands_beside_it() -> None:
    given = [
        {"optimizer": choice("optimizer", "adam", lr=0.5), "trainer": {"steps": 10}},
        {"optimizer": choice("optimizer", "sgd"), "trainer": {"steps": 10.0}},
    ]
    assert differing_settings(given) == [
        {"optimizer": "adam", "optimizer.lr": 0.5},
        {"optimizer": "sgd", "optimizer.lr": 0.1},
    ]


def test_runs_of_earlier_versions_had_what_is_the_default_now() -> None:
    new = choice("maml", "maml")
    old = {name: new[name] for name in ("_target_", "inner_lr", "inner_steps")}
    assert differing_settings([{"maml": new}, {"maml": old}]) == [{}, {}]
    changed = new | {"inner_clip": 2.0}
    found = differing_settings([{"maml": changed}, {"maml": old}])
    assert found == [{"maml.inner_clip": 2.0}, {"maml.inner_clip": None}]
    tasks = {"task": choice("task", "sinusoid")}
    assert differing_settings([tasks, tasks | {"learner": choice("learner", "maml")}]) == [{}, {}]
    other = tasks | {"learner": choice("learner", "anil")}
    assert differing_settings([tasks, other]) == [{"learner": "maml"}, {"learner": "anil"}]


def test_a_mapping_beside_a_number_is_one_value() -> None:
    given: list[dict[str, Any]] = [
        {"trainer": {"_target_": "x", "lr": {"low": 0.1, "high": 1, "seed": 5}}},
        {"trainer": {"_target_": "x", "lr": 0.1}},
        {"trainer": {"_target_": "x", "lr": None}},
    ]
    found = [settings["trainer.lr"] for settings in differing_settings(given)]
    assert [as_typed(value) for value in found] == ["{low: 0.1, high: 1}", "0.1", "null"]
    split = [{"model": {"lora": {"rank": rank, "alpha": 1}}} for rank in (1, 2)]
    assert differing_settings(split) == [{"model.lora.rank": 1}, {"model.lora.rank": 2}]


def test_what_one_kind_of_run_alone_has_is_compared_within_it() -> None:
    few = {"trainer": choice("trainer", "meta"), "task": choice("task", "sinusoid")}
    data = {"trainer": {"_target_": "own.Trainer", "steps": 600}, "data": choice("data", "digits")}
    found = differing_settings([few, data])
    assert found == [
        {"trainer": "meta", "task": "sinusoid", "learner": "maml", "data": ABSENT},
        {"trainer": "own.Trainer", "task": ABSENT, "learner": ABSENT, "data": "digits"},
    ]
    more = few | {"task": choice("task", "sinusoid", shot=9)}
    shots = [settings["task.shot"] for settings in differing_settings([few, data, more])]
    assert shots == [5, ABSENT, 9]
    ood = [{"ood": None, **data}, {"ood": choice("data", "digits"), **data}]
    assert [settings["ood"] for settings in differing_settings(ood)] == [ABSENT, "digits"]


def test_seeds_are_no_settings_wherever_they_stand() -> None:
    one = {"seed": 0, "task": {"seed": 0, "eval_seed": None}, "a": [{"seed": 1, "x": 1}]}
    two = {"seed": 1, "task": {"seed": 1, "eval_seed": 7}, "a": [{"seed": 2, "x": 1}]}
    assert differing_settings([one, two]) == [{}, {}]
    assert seeds_of(two) == {"seed": 1, "task.seed": 1, "task.eval_seed": 7}
