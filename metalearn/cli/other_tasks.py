"""Tasks from elsewhere for a run that is scored: trained on one set, tested on another."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from metalearn.cli.given_settings import GivenSetting, plain_value
from metalearn.cli.targets import target_of
from metalearn.errors import SettingError

__all__ = ["any_way", "check_other_tasks", "put_other_tasks"]

_KEPT = ("way", "shot", "query", "image_size", "tokens", "vocabulary", "length")
"""Settings of the run's own tasks that hold for others, unless they are given."""


def any_way(saved: DictConfig) -> bool:
    """Whether a run's learner takes tasks of any number of classes."""
    learner = saved.get("learner")
    return learner is not None and target_of(learner, "learner").needs == "features"


def check_other_tasks(saved: DictConfig, config: DictConfig) -> None:
    """Refuse tasks from elsewhere that a run cannot be scored on.

    Args:
        saved: the run's configuration.
        config: of the evaluation, with a ``test_task``.

    Raises:
        SettingError: names ``test_task``, the setting of it that is missing, or one of the run's
            own tasks that is given beside it.
    """
    node = config.test_task
    name = node.get("_target_")
    if "task" not in saved:
        raise SettingError("test_task", name, "the run has no tasks, so null is needed")
    for missing in sorted(OmegaConf.missing_keys(_with_seed(saved, node))):
        raise SettingError(f"test_{missing}", None, "this setting has to be given")
    for key, value in config.task.items():
        if value is not None:
            accepted = f"the run's own tasks are not scored; test_task.{key} is needed"
            raise SettingError(f"task.{key}", plain_value(value), accepted)


def put_other_tasks(
    saved: DictConfig, node: DictConfig, given: Sequence[GivenSetting]
) -> dict[str, object]:
    """Put tasks from elsewhere in the place of a run's own; what was given of them, by name.

    Args:
        saved: the run's configuration, changed here.
        node: of the tasks, as composed; its seed is the run's unless that is given.
        given: what a person gave; of the rest, sizes of tasks and inputs are those of the run, and
            all classes are test classes, where the data do not name some.

    Raises:
        SettingError: another number of classes than the run's network has outputs for.
    """
    typed = {s.name.removeprefix("test_task."): s.value for s in given if s.group == "test_task"}
    own, way = saved.task, saved.task.get("way")
    tasks = _with_seed(saved, node)
    for name in _KEPT:
        if own.get(name) is not None and name in tasks and name not in typed:
            tasks[name] = own[name]
    if not {"validation_fraction", "test_fraction"} & set(typed) and "test_fraction" in tasks:
        tasks.validation_fraction, tasks.test_fraction = 0, 1
    if way is not None and tasks.get("way", way) != way and not any_way(saved):
        raise SettingError(
            "test_task.way", plain_value(tasks.way), f"the model was built for {way}"
        )
    with open_dict(saved):
        saved.task = OmegaConf.create(plain_value(tasks, resolve=True))
    return {name: value for name, value in typed.items() if name != "test_task"}


def _with_seed(saved: DictConfig, node: DictConfig) -> DictConfig:
    """A copy of the node in which ``${seed}`` is the run's."""
    found: DictConfig = OmegaConf.create({"seed": saved.seed, "task": plain_value(node)}).task
    return found
