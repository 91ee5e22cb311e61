"""``metalearn train``: train a run and score it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metalearn.checkpoint import load_checkpoint
from metalearn.cli.building import build, check_settings_of, groups_of
from metalearn.cli.determinism import determinism
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.launching.launches import is_of_sweep
from metalearn.cli.log_lines import log_ending
from metalearn.cli.member_sweep import put_one_seed, sweep_of, sweep_text
from metalearn.cli.networks import InitialWeights, check_initial, initial_weights, kept_weights
from metalearn.cli.own_classes import leave_out_others, leave_out_others_of_job
from metalearn.cli.processes import ranks_of_command
from metalearn.cli.run_config import resumed_config, write_config
from metalearn.cli.run_folders import (
    claimed,
    discard_unused,
    existing_run,
    remove_partial_files,
    writing_to,
)
from metalearn.cli.run_results import check_direction, flat_config, has_results, write_results
from metalearn.cli.same_run import check_same_data, check_same_settings
from metalearn.cli.shapes import recorded_shapes
from metalearn.cli.shown_progress import shown_progress
from metalearn.cli.start_block import start_block
from metalearn.cli.typed_names import hints_as_typed
from metalearn.cli.unused_settings import refuse_unused_groups, refuse_unused_settings
from metalearn.errors import DataError, NonFiniteError, SettingError
from metalearn.files import read_regular
from metalearn.tracking import RunTracker, device_name, provenance, write_json
from metalearn.tracking.backends import DEFAULT_TRACKER, check_backends
from metalearn.trainers import Trainer
from metalearn.trainers.loop.stop_signal import Stopped
from metalearn.trainers.report import Report, report_text

__all__ = ["check", "train"]

log = logging.getLogger(__name__)

_LARGEST = 2**26  # bytes of them
_RECORDED = ("best/", "test/", "member_")
"""Beginnings of the names under which `write_results` records what came of a run."""


@one_sentence_errors()  # inside Hydra's own handling, which would add lines
def train(config: DictConfig) -> float:
    """Train as the configuration says; leaves a folder that explains itself.

    Returns:
        The score of the best validation, never of a test: what a sweeper optimises. In a sweep a
        run that diverges gives the worst of all scores, infinite.

    Raises:
        SettingError, DataError: what a user can mend.
        NonFiniteError: training diverged.
        StorageError: the folder cannot be written to, or is gone.
        SystemExit: 128 + signal number, after an interrupted run has been saved.
    """
    ranks, own = ranks_of_command(), Path(HydraConfig.get().runtime.output_dir)
    resuming, writes = config.resume is not None, ranks.rank == 0
    held = claimed(own, "resume" if resuming else "hydra.run.dir") if writes else nullcontext()
    with held:
        try:
            folder = Path(ranks.agreed(str(own)))
            config = _composed_or_resumed(config, folder, own)
            if writes:
                remove_partial_files(folder)
            check_same_settings(ranks, config)
            begun = resuming and _last(folder).is_file()
            start = None if begun else initial_weights(config)
            made_of = kept_weights(config) if begun else config
            trainer = build(made_of, folder=folder, start=start, ranks=ranks)
            check_direction(trainer)
            check_same_data(ranks, trainer)
            if resuming:
                _resume(trainer, folder)
        except Exception:
            if writes:
                discard_unused(own)
            raise
        with determinism(config):
            done = resuming and trainer.finished and has_results(folder, trainer.step)
            if ranks.agreed(done):
                _show_again(folder, config, trainer)
                return trainer.loop.population.best_value
            with writing_to(folder, f"with that mended, resume={folder} goes on"):
                if writes:
                    _begin(folder, config, trainer, start, resuming=resuming)
                try:
                    return _score(folder, config, trainer)
                except Exception as error:
                    if writes:
                        log_ending(error)
                    raise


def _resume(trainer: Trainer, folder: Path) -> None:
    """Go on from the last checkpoint, or from the beginning where there is none yet."""
    last = _last(folder)
    if last.is_file():
        trainer.resume(last)
        trainer.check_best()
        return
    best = last.with_name("best.pt")
    if best.is_file() and load_checkpoint(best).get("step") != 0:
        raise DataError(f"{last}: it is missing; a copy of best.pt in its place goes on from there")
    log.info("%s: stopped before its first checkpoint, so it starts from step 0", folder)


def _last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"


def _show_again(folder: Path, config: DictConfig, trainer: Trainer) -> None:
    """The test table of a finished run, of which nothing is written."""
    print(f"{folder}: finished at step {trainer.step}; its files stay as they are")
    trainer.load_best()
    _show(trainer, _test_reports(trainer, config.test_tasks))


def _begin(
    folder: Path,
    config: DictConfig,
    trainer: Trainer,
    start: InitialWeights | None,
    *,
    resuming: bool,
) -> None:
    """Write what explains a run before it trains, and let it keep records."""
    path = folder / "provenance.json"
    if path.exists() and (folder / "config.yaml").exists():
        path = folder / f"provenance-resumed-at-{trainer.step}.json"
    origin: dict[str, Any] = {} if start is None else {"init_from": start.origin}
    data = {"sha256": trainer.data_checksum}
    origin |= {"device": device_name(trainer.loop.device), "data": data}
    _warn_of_other_data(folder, data)
    write_json(path, provenance() | origin, make_folder=False)
    write_config(folder, config, recorded_shapes(trainer))  # from here on there is a run
    again = ("validation",) if trainer.validation_due else _RECORDED
    trainer.tracker = RunTracker(
        folder,
        resume_step=trainer.step if resuming else None,
        again=() if has_results(folder, trainer.step) else again,
        bands=trainer.bands,
        tracker=_tracker_of(config),
        settings=flat_config(config),
    )
    named = {setting.name for setting in given_settings(HydraConfig.get())}
    chosen = {} if resuming else HydraConfig.get().runtime.choices
    choices = {name: word for name, word in chosen.items() if f"{name}._target_" not in named}
    print(start_block(folder, config, trainer, choices))


def _warn_of_other_data(folder: Path, data: Mapping[str, Any]) -> None:
    """Say that a run goes on with other data than it began with."""
    try:
        known = json.loads(read_regular(folder / "provenance.json", _LARGEST)).get("data", data)
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if data["sha256"] is not None and known != data:
        log.warning("%s: these are not the data that the run began with", folder)


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings of a training that cannot work, or that it has no use for.

    Args:
        config: composed, with its ``hydra`` node.
        given: what a person gave.

    Raises:
        SettingError: the first of them.
    """
    if config.resume is not None:
        resumed = resumed_config(config, given)
        check_settings_of(resumed)
        check_backends(_tracker_of(resumed), own=False)
    else:
        check_backends(_tracker_of(config), own=False)
        _check_trust(config)
        leave_out_others(config, given)
        choices = config.hydra.runtime.choices
        refuse_unused_groups(config, given, choices.get("trainer"))
        check_settings_of(config)
        _check_features(config)
        check_initial(config)
        refuse_unused_settings(config, given, choices.get("learner"))


def _tracker_of(config: DictConfig) -> Any:
    """Where records go; of a run that began before there was a choice, to TensorBoard."""
    return plain_value(config.get("tracker", DEFAULT_TRACKER))


def _check_features(config: DictConfig) -> None:
    """Refuse to leave open how many features the network has that is about to be made."""
    learner = config.get("learner") if "learner" in groups_of(config) else None
    if learner is not None and learner.get("features", 0) is None:
        accepted = "a whole number of at least 1 is needed, to make the model with so many outputs"
        raise SettingError("learner.features", None, accepted)


def _composed_or_resumed(config: DictConfig, folder: Path, own: Path) -> DictConfig:
    """The configuration to train: as composed, or that of the run which goes on in ``folder``.

    ``own`` is what Hydra has made, of several ranks the first one's.
    """
    if config.resume is not None:
        if folder.resolve() != existing_run(config.resume, "resume").resolve():
            accepted = "a resumed run stays in its own folder"
            raise SettingError("hydra.run.dir", str(folder), accepted)
        return resumed_config(config, given_settings(HydraConfig.get()))
    _check_trust(config)
    leave_out_others_of_job(config)
    if own == folder:
        _check_free(folder)
    put_one_seed(config)
    return config


def _check_free(folder: Path) -> None:
    """Refuse a folder in which a new run would mix with another."""
    if (folder / "config.yaml").exists():
        accepted = f"this folder holds a run already; resume={folder} goes on with it"
        raise SettingError("hydra.run.dir", str(folder), accepted)
    if any((folder / "checkpoints").glob("*.pt")):
        accepted = "this folder holds checkpoints of another training; one without is needed"
        raise SettingError("hydra.run.dir", str(folder), accepted)


def _check_trust(config: DictConfig) -> None:
    if config.trust is not False:
        accepted = "false is needed: without resume no file is read"
        raise SettingError("trust", plain_value(config.trust), accepted)


@hints_as_typed
def _score(folder: Path, config: DictConfig, trainer: Trainer) -> float:
    """The score of a run; in a sweep the worst of all where it diverges, whatever shows that."""
    try:
        return _train_and_test(folder, config, trainer)
    except NonFiniteError as error:
        if not is_of_sweep():
            raise
        log.error("diverged: %s", error)
        return -math.inf if trainer.loop.evaluator.larger_is_better else math.inf


def _train_and_test(folder: Path, config: DictConfig, trainer: Trainer) -> float:
    try:
        with trainer.stoppable() as stop:
            result = trainer.fit()
            if result.signal is not None:
                print(f"stopped at step {result.step}; go on with resume={folder}")
                raise SystemExit(128 + result.signal)
            trainer.load_best()
            try:
                reports = _test_reports(trainer, config.test_tasks)
            except Stopped:
                print(f"trained, but stopped before it was tested; go on with resume={folder}")
                raise SystemExit(128 + (stop.received or 0)) from None
            if trainer.folder is not None:  # of several ranks the first keeps one
                write_results(folder, config, result, reports, trainer)
    finally:
        trainer.tracker.close()
    _show(trainer, reports)
    for line in trainer.remarks():
        print(line)
    return result.best_value


def _show(trainer: Trainer, reports: Mapping[str, Report]) -> None:
    """What tests found, and of a sweep of members which of them has won."""
    if reports:
        print(report_text(reports))
    sweep = sweep_of(trainer, reports)
    if sweep is not None:
        print(sweep_text(sweep))


def _test_reports(trainer: Trainer, count: int) -> Mapping[str, Report]:
    with shown_progress(trainer.settings.progress):
        return trainer.reports(tasks=count, inductive=None) if count else {}
