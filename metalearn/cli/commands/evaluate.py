"""``metalearn evaluate``: score a trained run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from metalearn.cli.combined_privacy import combined_privacy
from metalearn.cli.combining import combined, member_lines
from metalearn.cli.determinism import determinism
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.loading import trainer_of
from metalearn.cli.other_tasks import any_way, check_other_tasks, put_other_tasks
from metalearn.cli.processes import ranks_of_command
from metalearn.cli.run_config import config_to_read, saved_config
from metalearn.cli.run_folders import existing_run, writing_to
from metalearn.cli.scoring import Evaluated, conformal_sets, evaluated_episodes, evaluated_tasks
from metalearn.cli.targets import target_of
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.files import failures_named
from metalearn.ranks import refuse_division
from metalearn.signatures import accepted_settings
from metalearn.tracking import provenance, write_json
from metalearn.trainers.report import report_text

__all__ = ["check", "evaluate"]


@one_sentence_errors()
def evaluate(config: DictConfig) -> None:
    """Score a trained run on a split; prints a table and writes JSON into the run.

    Raises:
        SettingError, DataError: what a user can mend.
        StorageError: the scores are printed, but cannot be written into the run's folder.
    """
    check(config, given_settings(HydraConfig.get()))
    _check_shared(config)
    folders = [existing_run(run, "run") for run in _runs(config)]
    several = [saved_config(folder, trust=config.trust) for folder in folders]
    folder, saved = folders[0], several[0]
    with determinism(saved), writing_to(folder):
        every = [_change(one, config) for one in several]
        changes = every[0]
        trainer = _trainer(folders, several, config)
        started = time.monotonic()
        if config.episodes is not None:
            found = evaluated_episodes(trainer, saved, config)
        else:
            found = evaluated_tasks(trainer, config)
        seconds = time.monotonic() - started
        if not found.reports:
            raise SettingError("run", config.run, "one whose trainer takes tests is needed")
        if len(folders) > 1:
            _add_members(found, trainer, folders)
        named = " + ".join(map(str, folders))
        print(f"{named}, step {trainer.step}{_what(config, saved, found)}")
        print("\n".join([report_text(found.reports), *found.lines]))
        how = {"checkpoint": config.checkpoint, "step": trainer.step}
        if "task" in saved:
            how |= _how(config, saved) | {"seconds": seconds}
        source = provenance()
        if config.episodes is None:
            source["data"] = {"sha256": trainer.data_checksum}
        how["provenance"] = source
        if ranks_of_command().rank == 0:
            _write(folder, _evaluation_name(config, changes), found, how)


def _check_shared(config: DictConfig) -> None:
    """Refuse what ranks do not divide.

    Raises:
        SettingError: that.
    """
    ranks = ranks_of_command()
    if ranks.count > 1 and len(_runs(config)) > 1:
        refuse_division("the evaluation of several runs as one", ranks.share)
    if ranks.count > 1 and config.episodes is not None:
        refuse_division("the evaluation of given episodes", ranks.share)


def _what(config: DictConfig, saved: DictConfig, found: Evaluated) -> str:
    """What was scored, in words."""
    if config.episodes is not None:
        return f", {len(found.entries['episodes'])} episodes of {config.episodes}"
    return f", {config.tasks} {config.split} tasks" if "task" in saved else ""


def _how(config: DictConfig, saved: DictConfig) -> dict[str, Any]:
    """How tasks were scored."""
    steps = {"eval_steps": OmegaConf.select(saved, "maml.eval_steps")}
    if config.episodes is not None:
        return steps
    task = OmegaConf.to_container(saved.task, resolve=True)
    return {"split": config.split, "task": task, **steps}


def _write(folder: Path, name: str, found: Evaluated, how: Mapping[str, Any]) -> None:
    """Scores as JSON, and figures, in the run's folder."""
    scores: dict[str, Any] = {name: report.as_json() for name, report in found.reports.items()}
    if "seconds" not in how and len(scores) == 1:  # that of the data set
        (scores,) = scores.values()
    path = folder / f"{name}.json"
    write_json(path, {**how, "scores": scores, **found.entries})
    print(f"written: {path}")
    for stem, figure in found.figures.items():
        picture = folder / f"{stem}.png"
        with failures_named(picture):
            figure.savefig(picture, dpi=110)
        print(f"written: {picture}")


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, or that the run has no use for.

    Raises:
        SettingError, DataError: the first of them, or a run that cannot be read.
    """
    for run in _runs(config):
        _check_run(config, config_to_read(config, run), given)


def _check_run(config: DictConfig, saved: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse what a run has no use for."""
    check_whole("tasks", plain_value(config.tasks), 1)
    if config.eval_steps is not None:
        check_whole("eval_steps", plain_value(config.eval_steps), 0)
    check_whole("confusions", plain_value(config.confusions), 0)
    _check_episodes(config, saved, given)
    for setting in given:
        if setting.value is None or "task" in saved:
            continue
        if setting.group in ("task", "eval_steps", "episodes", "conformal"):
            raise setting.refusal("the run has no tasks, so null is needed")
        if setting.name in ("tasks", "confusions"):
            raise setting.refusal("the run has no tasks, so nothing is needed here")
    if config.get("ood") is not None:
        _check_ood(config, saved)
    conformal_sets(config)
    if config.get("test_task") is not None:
        check_other_tasks(saved, config)
        return
    for key, value in config.task.items() if "task" in saved else ():
        if value is not None and key not in saved.task:
            raise SettingError(
                f"task.{key}", plain_value(value), "the run's task has no such setting"
            )


def _check_episodes(config: DictConfig, saved: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse what says how tasks are drawn beside episodes that are given, and the reverse."""
    episodes, invert = plain_value(config.episodes), plain_value(config.invert)
    if episodes is not None and not isinstance(episodes, str):
        raise SettingError("episodes", episodes, "a folder of episodes, or null, is needed")
    if invert is not None and not isinstance(invert, bool):
        raise SettingError("invert", invert, "true, false or null is needed")
    for setting in given:
        if setting.value is None or "task" not in saved:
            continue
        if episodes is None and setting.name == "invert":
            raise setting.refusal("null is needed: it is for pictures of episodes=...")
        if episodes is not None and setting.group in (
            "task",
            "tasks",
            "test_task",
            "split",
            "conformal",
        ):
            raise setting.refusal("nothing is needed here beside episodes=..., which are scored")


def _check_ood(config: DictConfig, saved: DictConfig) -> None:
    name = config.ood.get("_target_")
    if "task" in saved:
        raise SettingError("ood", name, "the run has tasks, so null is needed")
    if "ood" not in accepted_settings(target_of(saved.trainer, "trainer")):
        raise SettingError("ood", name, "only a run of an ensemble takes one")


def _runs(config: DictConfig) -> list[str]:
    """The folders of the runs that are scored, as one where there are several."""
    runs = plain_value(config.run)
    return runs if isinstance(runs, list) and len(runs) > 1 else [runs]


def _trainer(folders: Sequence[Path], several: Sequence[DictConfig], config: DictConfig) -> Any:
    """The trainer of a run, or several combined, on their own tasks or on those from elsewhere."""
    how: Any = {"deferred": config.episodes is not None, "ranks": ranks_of_command()}
    try:
        trainers = [
            trainer_of(folder, saved, config.checkpoint, config.device, **how)
            for folder, saved in zip(folders, several)
        ]
    except SettingError as error:
        if config.get("test_task") is None or not error.setting.startswith("task."):
            raise
        raise SettingError(f"test_{error.setting}", error.value, error.accepted) from error
    except DataError as error:
        if config.get("test_task") is None or "does not fit the run" not in str(error):
            raise
        accepted = f"tasks that the run's network takes are needed ({error})"
        raise SettingError("test_task", several[0].task._target_, accepted) from error
    return trainers[0] if len(trainers) == 1 else combined(trainers)


def _add_members(found: Evaluated, trainer: Any, folders: Sequence[Path]) -> None:
    """What each of the combined runs scores alone."""
    names = [str(folder) for folder in folders]
    for name, report in found.reports.items():
        found.lines += [f"{name}, each alone:", *member_lines(names, trainer.members, report)]
    entry, lines = combined_privacy(folders, trainer.trainers)
    found.lines += lines
    found.entries |= entry
    found.entries["runs"] = names
    found.entries["members_of"] = [names[number] for number in trainer.members]


def _change(saved: DictConfig, config: DictConfig) -> dict[str, Any]:
    """Put into a run's configuration what is evaluated otherwise; gives the changes of the task."""
    changes = {str(key): value for key, value in config.task.items() if value is not None}
    with open_dict(saved):
        if config.get("ood") is not None:
            saved.ood = config.ood
        if config.eval_steps is not None:
            if "maml" not in saved:
                accepted = "null is needed: the run's learner has no inner loop"
                raise SettingError("eval_steps", config.eval_steps, accepted)
            saved.maml.eval_steps = config.eval_steps
        if config.get("test_task") is not None:
            return put_other_tasks(saved, config.test_task, given_settings(HydraConfig.get()))
        if changes:
            trained_way = saved.task.get("way")
            if config.task.way not in (None, trained_way) and not any_way(saved):
                accepted = f"the model was built for {trained_way}"
                raise SettingError("task.way", config.task.way, accepted)
            saved.task.update(changes)
            if "seed" in changes and "eval_seed" in saved.task:
                saved.task.eval_seed = None  # the seed that is given is that of the tasks scored
    return changes


def _evaluation_name(config: DictConfig, changes: Mapping[str, Any]) -> str:
    """A name that tells what differs from the run, so that no evaluation replaces another."""
    parts = ["evaluation", config.split]
    if config.get("test_task") is not None:
        parts.append(str(HydraConfig.get().runtime.choices["test_task"]))
    if config.episodes is not None:
        parts[1:] = ["episodes", Path(config.episodes).resolve().name]
    if len(_runs(config)) > 1:
        places = "\n".join(str(Path(run).resolve()) for run in _runs(config))
        digest = hashlib.sha256(places.encode()).hexdigest()
        parts.append(f"combined{len(_runs(config))}-{digest[:8]}")
    if config.checkpoint != "best":
        parts.append(config.checkpoint)
    if config.eval_steps is not None:
        parts.append(f"steps{config.eval_steps}")
    if config.conformal.coverage is not None:
        parts.append(f"{config.conformal.rule or 'thr'}{config.conformal.coverage}")
    for key, value in changes.items():
        if isinstance(value, Mapping):  # a number for each split
            value = "-".join(f"{split}{size}" for split, size in value.items())
        if key != "root":
            parts.append(f"{key}{value}")
    return "-".join(parts)
