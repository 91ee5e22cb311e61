"""A run of Weights & Biases, kept in the run's folder too: ``tracker=wandb``.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import io
import os
import secrets
import shlex
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from metalearn.errors import SettingError
from metalearn.tracking.backends.backend import RunFacts, Setting, TrackerBackend, picture_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["WandbRun"]

_PROJECT = "metalearn"


class WandbRun(TrackerBackend):
    """Logs numbers, figures and histograms under the names of ``metrics.jsonl``.

    The run is called as its folder and has its settings as ``config``; its files are in
    ``folder/wandb``. ``WANDB_MODE=offline`` needs neither network nor account, ``WANDB_PROJECT``
    names the project, `metalearn` otherwise. A run that goes on has the same id. Numbers are drawn
    over their own ``step``: Weights & Biases cannot take back what it has been given, so that of
    steps after a checkpoint, taken once more, both records stay. Offline it writes in blocks
    of 32 kB: a process that is killed (SIGKILL) loses what is in its last one, which
    ``metrics.jsonl`` has.
    """

    name = "wandb"
    package = "wandb"

    def __init__(self, run: RunFacts) -> None:
        self._wandb: Any = import_module("wandb")
        self.failures = (OSError, self._wandb.errors.Error)
        folder = run.folder.resolve()
        known = _known_id(folder)
        try:
            self._run: Any = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT") or _PROJECT,
                dir=str(folder),
                name=folder.name,
                id=known or secrets.token_hex(4),
                resume="allow" if known else None,
                config={name: _setting(value) for name, value in run.settings.items()},
                reinit="create_new",  # and no other run of this process is ended
                settings=self._wandb.Settings(console="off", quiet=True),  # the log is train.log
            )
        except Exception as error:  # of several kinds, some of them private
            said = " ".join(str(error).split()).rstrip(".")
            accepted = f"no run can begin ({said}); WANDB_MODE=offline needs no account"
            raise SettingError("tracker", self.name, accepted) from error
        self._run.define_metric("*", step_metric="step")

    @classmethod
    def watched(cls, folder: Path) -> str:
        """The project or, offline, the command that sends what was kept."""
        if os.environ.get("WANDB_MODE") == "offline":
            return f"wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"
        return f"project {os.environ.get('WANDB_PROJECT') or _PROJECT} of Weights & Biases"

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Log them in one row."""
        self._run.log({**values, "step": step})

    def histogram(self, step: int, name: str, values: np.ndarray[Any, Any]) -> None:
        """Log it as a histogram."""
        self._run.log({name: self._wandb.Histogram(values), "step": step})

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Log it as a picture."""
        with Image.open(io.BytesIO(picture_of(figure))) as picture:
            self._run.log({name: self._wandb.Image(picture), "step": step})

    def hparams(self, settings: Mapping[str, Setting]) -> None:
        """Add them to ``config``."""
        given = {name: _setting(value) for name, value in settings.items()}
        self._run.config.update(given, allow_val_change=True)

    def close(self, ending: str = "finished") -> None:
        """Send or keep all that is left."""
        self._run.finish(exit_code=0 if ending == "finished" else 1)


def _known_id(folder: Path) -> str | None:
    """The id of the run that this folder has, by the newest of its files."""
    found = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return found[-1].stem.removeprefix("run-") if found else None


def _setting(value: Setting) -> Setting | None:
    return None if value == "None" else value
