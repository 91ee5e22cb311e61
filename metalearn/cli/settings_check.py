"""Before Hydra makes a folder: every setting is checked, and what is not there yet is noted.

After a sweep, what its runs come to is said.

So a command line that is refused leaves nothing behind: neither a folder nor a file, nor is
anything removed that was there before.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from metalearn.cli.command_table import COMMANDS
from metalearn.cli.comparison.sweeps import summarize_sweep
from metalearn.cli.error_messages import KNOWN_ERRORS, one_sentence_errors
from metalearn.cli.given_settings import (
    given_settings,
    is_grid,
    plain_value,
    refuse_unknown,
    sweep_jobs,
)
from metalearn.cli.launching.launches import note_launch
from metalearn.cli.launching.signals import hand_on_signals
from metalearn.cli.launching.stacked import check_sweep, one_stack, put_one_stack
from metalearn.cli.run_folders import make_new_folder, note_missing, writing_to
from metalearn.errors import NonFiniteError, SettingError, StorageError

__all__ = ["CheckSettings"]

_JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


class CheckSettings(Callback):
    """Hydra's callback that refuses what cannot work, or would be in vain.

    Args:
        command: whose settings are checked.
    """

    def __init__(self, command: str) -> None:
        self.command = COMMANDS[command]

    def on_run_start(self, config: DictConfig, **rest: Any) -> None:
        """Check a single run."""
        with _ending_program(config), _as_current(config):
            self._check(config)
            check_sweep(config, several=False)
            _expect_folder("hydra.run.dir", config)
            if _is_named_by_time(config):
                with read_write(config.hydra):
                    config.hydra.run.dir = make_new_folder(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **rest: Any) -> None:
        """Check every job of a sweep before the first begins."""
        with _ending_program(config):
            jobs = sweep_jobs(config)
            for job in jobs:
                with _as_current(job):
                    if job.get("resume") is not None:
                        accepted = "a sweep starts new runs, so null is needed"
                        raise SettingError("resume", plain_value(job.resume), accepted)
                    self._check(job)
                    check_sweep(job, several=True)
            jobs = self._stacked(config, jobs)
            with _as_current(config):
                note_launch(_expect_folder("hydra.sweep.dir", config))
            _prepare_launcher(config, len(jobs) if is_grid(config) else None)

    def on_multirun_end(self, config: DictConfig, **rest: Any) -> None:
        """Say what the runs of a sweep come to."""
        with _ending_program(config):
            folder = Path(config.hydra.sweep.dir)
            jobs = sweep_jobs(config) if is_grid(config) else []
            typed = {
                _folder_of(n, job): list(job.hydra.overrides.task) for n, job in enumerate(jobs)
            }
            with writing_to(folder):
                summary = summarize_sweep(folder, typed, width=shutil.get_terminal_size().columns)
            if summary.lines:
                print("\n".join(summary.lines))
            if summary.failed is not None:
                raise NonFiniteError(summary.failed)

    def _stacked(self, config: DictConfig, jobs: list[DictConfig]) -> list[DictConfig]:
        """The jobs of a sweep, or the one that trains them all; says which, where it matters."""
        asked = any(job.get("sweep") == "stacked" for job in jobs)
        if asked and any(job.sweep != "stacked" for job in jobs):
            raise SettingError("sweep", "separate,stacked", "one value for all runs is needed")
        stack = one_stack(jobs, typed_anew=not asked) if is_grid(config) else None
        if asked:
            put_one_stack(config, stack, len(jobs))
        if stack is not None:
            done = "are" if asked else "can be"
            runs = f"these {stack.members} runs {done} trained as one"
            print(f"{runs}, each as a member: {stack.command}")
        return sweep_jobs(config) if asked else jobs

    def _check(self, config: DictConfig) -> None:
        given = given_settings(config.hydra)
        refuse_unknown(config, config.hydra.job.config_name, given)
        self.command.check()(config, given)


def _folder_of(number: int, job: DictConfig) -> str:
    """The name of a job's folder in that of its sweep, as Hydra has made it; "" where not known."""
    with read_write(job.hydra), _as_current(job):
        job.hydra.job.num = number
        try:
            return str(Path(str(job.hydra.sweep.subdir)))
        except OmegaConfBaseException:
            return ""


@contextmanager
def _ending_program(config: DictConfig) -> Iterator[None]:
    """End the program for an error, which Hydra would turn into a warning of a callback."""
    with one_sentence_errors(config.hydra.job.config_name):
        try:
            yield
        except KNOWN_ERRORS:
            raise
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(1) from error


@contextmanager
def _as_current(config: DictConfig) -> Iterator[None]:
    """Have ``${hydra:...}`` see a configuration whose job has not begun."""
    current = HydraConfig.instance()
    before = current.cfg
    current.cfg = config  # type: ignore[assignment]  # which holds the node of that type
    try:
        yield
    finally:
        current.cfg = before


def _is_named_by_time(config: DictConfig) -> bool:
    """Whether the folder is that of a new run, under a name that others may take meanwhile."""
    name = OmegaConf.to_container(config.hydra.run)["dir"]  # type: ignore[call-overload, index]
    return str(name).startswith("${run_folder:") and config.resume is None


def _prepare_launcher(config: DictConfig, jobs: int | None) -> None:
    """Have processors divided among the jobs that there are, and jobs hear of signals."""
    launcher = config.hydra.launcher
    if launcher._target_ != _JOBLIB:
        return
    if jobs is not None and launcher.n_jobs == -1:
        from joblib import cpu_count  # of the extra sweep

        with read_write(config.hydra):
            launcher.n_jobs = min(jobs, cpu_count())
    if launcher.n_jobs != 1:  # else joblib runs them in this very process
        hand_on_signals()


def _expect_folder(setting: str, config: DictConfig) -> Collection[Path]:
    """Refuse a folder that cannot be made or written to; note and say what is missing of it."""
    name = OmegaConf.select(config, setting)
    if not name:
        raise SettingError(setting, name, "the name of a folder is needed")
    folder = Path(name).absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    writable = folder == Path.cwd() or os.access(nearest, os.W_OK | os.X_OK)
    if not nearest.is_dir():
        raise SettingError(setting, name, f"a folder is needed, and {nearest} is none")
    if not writable:
        raise StorageError(f"{nearest}: it cannot be written to: read-only, or somebody else's")
    return note_missing(folder)
