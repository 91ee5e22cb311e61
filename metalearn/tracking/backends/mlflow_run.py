"""A run in MLflow's store: ``tracker=mlflow``.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from metalearn.errors import SettingError
from metalearn.files import replace_file
from metalearn.tracking.backends.backend import RunFacts, Setting, TrackerBackend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MlflowRun"]

T = TypeVar("T")

log = logging.getLogger(__name__)

_EXPERIMENT = "metalearn"
_ID = "mlflow-run-id.txt"
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one call
_LONGEST = 6000  # characters of a parameter's value
_NOT_IN_NAMES = re.compile(r"[^/\w.\- ]")


class MlflowRun(TrackerBackend):
    """Logs settings as parameters, numbers as metrics and figures as artifacts.

    Names are those of ``metrics.jsonl``. The store is MLflow's own choice: ``MLFLOW_TRACKING_URI``,
    else ``mlflow.db`` in the current folder; ``MLFLOW_EXPERIMENT_NAME`` names the experiment,
    `metalearn` otherwise. The run is called as its folder, whose ``mlflow-run-id.txt`` has its id,
    by which it goes on. MLflow keeps what it has been given: of steps after a checkpoint, taken
    once more, both records stay, and of a parameter the first value, others as the tag
    ``changed.<name>``.
    """

    name = "mlflow"
    package = "mlflow"

    def __init__(self, run: RunFacts) -> None:
        self._entities: Any = import_module("mlflow.entities")
        error_of: Any = import_module("mlflow.exceptions").MlflowException
        self.failures = (OSError, error_of)
        try:
            self._client: Any = import_module("mlflow.tracking").MlflowClient()
            self._id = self._known(run.folder) or self._begun(run.folder)
            self.hparams(run.settings)
        except error_of as error:
            said = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            accepted = f"no run can begin ({said}); MLFLOW_TRACKING_URI names another store"
            raise SettingError("tracker", self.name, accepted) from error

    @classmethod
    def watched(cls, folder: Path) -> str:
        """The command that shows all runs of the store."""
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        return uri if uri.startswith("http") else "mlflow ui"

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Log them as metrics."""
        when = round(time * 1000)
        metric = self._entities.Metric
        for some in _pieces(values.items(), _MOST_METRICS):
            metrics = [metric(_name(name), float(value), when, step) for name, value in some]
            self._client.log_batch(self._id, metrics=metrics)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Log it as the artifact ``figures/<name>/<step>.png``."""
        path = f"figures/{_name(name)}/{step:08}.png"
        self._client.log_figure(self._id, figure, path, save_kwargs={"dpi": figure.dpi})

    def hparams(self, settings: Mapping[str, Setting]) -> None:
        """Log them as parameters, which never change, or as tags."""
        given = {_name(name): str(value)[:_LONGEST] for name, value in settings.items()}
        known = self._client.get_run(self._id).data.params if given else {}
        param, tag = self._entities.Param, self._entities.RunTag
        new = [param(name, value) for name, value in given.items() if name not in known]
        other = {name: value for name, value in given.items() if known.get(name, value) != value}
        for some in _pieces(new, _MOST_PARAMS):
            self._client.log_batch(self._id, params=some)
        for changed in _pieces(other.items(), _MOST_PARAMS):
            tags = [tag(f"changed.{name}", value) for name, value in changed]
            self._client.log_batch(self._id, tags=tags)

    def close(self, ending: str = "finished") -> None:
        """End the run: finished, killed or failed."""
        self._client.set_terminated(self._id, _STATUS[ending])

    def _known(self, folder: Path) -> str | None:
        """The run that this folder has in the store, going on; None where there is none."""
        path = folder / _ID
        if not path.is_file():
            return None
        known = path.read_text(encoding="utf-8").strip()
        try:
            found = self._client.get_run(known)
        except self.failures as error:
            log.warning("%s: MLflow's store has no such run, so a new one begins (%s)", path, error)
            return None
        if found.info.lifecycle_stage == "deleted":
            log.warning("%s: this run was deleted in MLflow's store, so a new one begins", path)
            return None
        self._client.update_run(known, "RUNNING")
        return known

    def _begun(self, folder: Path) -> str:
        run = self._client.create_run(self._experiment(), run_name=folder.resolve().name)
        identity: str = run.info.run_id
        replace_file(folder / _ID, lambda file: file.write(identity.encode() + b"\n"))
        return identity

    def _experiment(self) -> Any:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except self.failures:  # another run was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id


def _pieces(values: Iterable[T], most: int) -> Iterator[list[T]]:
    rest = iter(values)
    while piece := list(itertools.islice(rest, most)):
        yield piece


def _name(name: str) -> str:
    """A name that MLflow takes."""
    return _NOT_IN_NAMES.sub("_", name)
