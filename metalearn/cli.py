"""From a configuration to objects to a run: the one room that knows Hydra and OmegaConf."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metalearn.errors import DataError, NonFiniteError, SettingError, check_whole
from metalearn.files import replace_file
from metalearn.signatures import check_settings
from metalearn.tracking import RunTracker, provenance, write_json
from metalearn.trainers import FitResult, MetaLearner, MetaTrainer, TestReport
from metalearn.types import TaskDistribution

__all__ = ["evaluate", "load_learner", "run", "train"]

_USAGE_ERROR = 2
_BANDS = [
    f"{split}/{name}_{when}"
    for split in ("train", "validation")
    for name in ("accuracy", "loss")
    for when in ("before", "after")
]
_FULL_NAMES = ("maml.", "model", "module", "optimizer")
_GROUPS = ("task", "model", "maml", "optimizer", "trainer")


def run(main: Callable[[], Any]) -> None:
    """Call a Hydra main; whatever a user can mend becomes one sentence and exit code 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing
    OmegaConf.register_new_resolver("run_folder", _run_folder, use_cache=True, replace=True)
    with _one_sentence_errors():
        main()


@contextmanager
def _one_sentence_errors() -> Iterator[None]:
    try:
        yield
    except NonFiniteError as error:
        _fail(str(error), 1)
    except (SettingError, DataError) as error:
        _fail(str(error), _USAGE_ERROR)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_one_sentence(error), _USAGE_ERROR)


@_one_sentence_errors()  # inside Hydra's own handling, which would add lines
def train(config: DictConfig) -> None:
    """Train as the configuration says; leaves a folder that explains itself.

    Raises:
        SettingError, DataError: what a user can mend.
        NonFiniteError: training diverged.
        SystemExit: 128 + signal number, after an interrupted run has been saved.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    resuming = config.resume is not None
    if resuming:
        config = _resumed_config(config, list(HydraConfig.get().overrides.task))
    elif (folder / "checkpoints").exists() or (folder / "config.yaml").exists():
        raise SettingError(
            "hydra.run.dir",
            str(folder),
            f"this folder holds a run already; go on with it by resume={folder}, or name another",
        )
    try:
        _, trainer = build(config, folder=folder)
        if resuming:
            trainer.resume(folder / "checkpoints" / "last.pt")
    except (SettingError, DataError):
        _discard_if_empty(folder)
        raise
    _write_config(folder, config)
    suffix = f"-resumed-at-{trainer.step}" if resuming else ""
    write_json(folder / f"provenance{suffix}.json", provenance())
    trainer.tracker = RunTracker(
        folder, resume_step=trainer.step if resuming else None, bands=_BANDS
    )
    print(f"run folder: {folder}")
    try:
        result = trainer.fit()
        if result.reason == "interrupted" and result.signal is not None:
            print(f"stopped at step {result.step}; go on with resume={folder}")
            raise SystemExit(128 + result.signal)
        trainer.load_best()
        reports = _test_reports(trainer, config.test_tasks)
        _finish(folder, config, result, reports, trainer)
    finally:
        trainer.tracker.close()
    print(_table(reports))
    print(f"dashboard: tensorboard --logdir {folder.parent}")


@_one_sentence_errors()
def evaluate(config: DictConfig) -> None:
    """Score a trained run on tasks of a split; prints a table and writes JSON into the run.

    Raises:
        SettingError, DataError: what a user can mend.
    """
    folder = _existing_run(config.run, "run")
    saved = _saved_config(folder)
    trained_way = saved.task.get("way")
    with open_dict(saved):
        saved.device = config.device
        for key, value in config.task.items():
            if value is not None:
                saved.task[key] = value
        if config.eval_steps is not None:
            saved.maml.eval_steps = config.eval_steps
    if config.task.way not in (None, trained_way):
        raise SettingError("task.way", config.task.way, f"the model was built for {trained_way}")
    if config.checkpoint not in ("best", "last"):
        raise SettingError("checkpoint", config.checkpoint, "best or last is needed")
    check_whole("tasks", config.tasks, 1)
    _, trainer = build(saved, folder=None)
    trainer.resume(folder / "checkpoints" / f"{config.checkpoint}.pt")
    started = time.monotonic()
    reports = {
        name: trainer.test(config.tasks, split=config.split, inductive=name == "inductive")
        for name in ("transductive", "inductive")
    }
    path = folder / f"evaluation-{config.split}.json"
    write_json(
        path,
        {
            "checkpoint": config.checkpoint,
            "step": trainer.step,
            "split": config.split,
            "task": OmegaConf.to_container(saved.task, resolve=True),
            "eval_steps": saved.maml.eval_steps,
            "seconds": time.monotonic() - started,
            "scores": {name: _plain(report) for name, report in reports.items()},
        },
    )
    print(f"{folder}, step {trainer.step}, {config.tasks} {config.split} tasks")
    print(_table(reports))
    print(f"written: {path}")


def load_learner(run: str | Path, *, checkpoint: str = "best", device: str = "cpu") -> MetaLearner:
    """The trained learner of a run's folder: ``load_learner("outputs/…").adapt((x, y))``.

    Args:
        run: the folder.
        checkpoint: ``"best"`` or ``"last"``.
        device: where to put it.

    Raises:
        SettingError, DataError: no run there, or one that cannot be read.
    """
    folder = _existing_run(str(run), "run")
    saved = _saved_config(folder)
    saved.device = device
    _, trainer = build(saved, folder=None)
    trainer.resume(folder / "checkpoints" / f"{checkpoint}.pt")
    return trainer.learner


def build(config: DictConfig, *, folder: Path | None) -> tuple[TaskDistribution, MetaTrainer]:
    """Tasks and trainer of a configuration, every setting checked before anything is loaded."""
    device = _device(config.device)
    check_whole("seed", config.seed, 0)
    check_whole("test_tasks", config.test_tasks, 0)
    for group in _GROUPS:
        _check(config[group], group)
    maml = _make(config.maml, "maml")
    optimizer = _make(config.optimizer, "optimizer")
    tasks: TaskDistribution = _make(config.task, "task")
    model = _make(config.model, "model", input_shape=list(tasks.input_shape), outputs=tasks.outputs)
    trainer = _make(
        config.trainer,
        "trainer",
        model=model,
        tasks=tasks,
        maml=maml,
        optimizer=optimizer,
        folder=folder,
        device=device,
    )
    return tasks, trainer


def _check(node: DictConfig, group: str) -> None:
    """Hold a configuration node against the signature of its ``_target_``."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise SettingError(f"{group}.{missing[0]}", None, "this setting has to be given")
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    plain = {str(k): v for k, v in values.items() if not str(k).startswith("_")}
    check_settings(get_object(node["_target_"]), plain, f"{group}.")


def _make(node: DictConfig, group: str, **objects: Any) -> Any:
    """Instantiate a node; what its constructor refuses is named by its place."""
    try:
        # Objects go in by hand: Hydra would turn dataclasses into configurations.
        target = instantiate(node, _partial_=True, _convert_="all")
        return target if node.get("_partial_") else target(**objects)
    except SettingError as error:
        raise _placed(error, group) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, SettingError):
            raise _placed(error.__cause__, group) from error
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, ValueError):  # a torch optimiser's own check
            raise SettingError(group, node.get("_target_"), str(error.__cause__)) from error
        raise


def _placed(error: SettingError, group: str) -> SettingError:
    """The error under its full name, where it does not have one already."""
    if error.setting.startswith(_FULL_NAMES):
        return error
    return SettingError(f"{group}.{error.setting}", error.value, error.accepted)


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingError(
            "device", name, "auto, cpu or a device that torch finds here is needed"
        ) from error
    return device


def _run_folder(resume: str | None, task: str) -> str:
    """The run's folder: that of ``resume``, or a new one named after the task and the time."""
    if resume is not None:
        return str(_existing_run(resume, "resume"))
    return f"outputs/{task}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def _existing_run(name: str, setting: str) -> Path:
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        raise SettingError(setting, name, "the folder of a run, with its config.yaml, is needed")
    return folder


def _discard_if_empty(folder: Path) -> None:
    """Take away a new run's folder in which nothing but an empty log stands."""
    held = list(folder.iterdir()) if folder.is_dir() else []
    if all(path.suffix == ".log" and path.stat().st_size == 0 for path in held):
        shutil.rmtree(folder, ignore_errors=True)


def _saved_config(folder: Path) -> DictConfig:
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    return config


def _write_config(folder: Path, config: DictConfig) -> None:
    text = OmegaConf.to_yaml(config, resolve=True)
    replace_file(folder / "config.yaml", lambda file: file.write(text.encode()))


def _resumed_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The interrupted run's own configuration, with the overrides given now."""
    saved = _saved_config(Path(config.resume))
    OmegaConf.set_struct(saved, True)
    for override in overrides:
        key, _, _ = override.partition("=")
        key = key.lstrip("+")
        if key in (*_GROUPS, "experiment") or override.startswith("~"):
            raise SettingError(
                "resume", override, "a resumed run keeps its groups; change single settings"
            )
        OmegaConf.update(saved, key, OmegaConf.select(config, key))
    return saved


def _test_reports(trainer: MetaTrainer, count: int) -> dict[str, TestReport]:
    return {"transductive": trainer.test(count)} if count else {}


def _finish(
    folder: Path,
    config: DictConfig,
    result: FitResult,
    reports: Mapping[str, TestReport],
    trainer: MetaTrainer,
) -> None:
    """results.json, and the row of the hyper-parameters tab."""
    write_json(
        folder / "results.json",
        {
            "steps": result.step,
            "reason": result.reason,
            "best_step": result.best_step,
            result.best_name: result.best_value,
            "seconds": result.seconds,
            "test": {name: _plain(report) for name, report in reports.items()},
        },
    )
    numbers = {f"best/{result.best_name.rsplit('/', 1)[-1]}": result.best_value}
    for report in reports.values():
        values = report.losses if report.accuracies is None else report.accuracies
        numbers[f"test/{'loss' if report.accuracies is None else 'accuracy'}"] = float(
            values[0, -1]
        )
    trainer.tracker.hparams(_flat(config), numbers)


def _flat(config: DictConfig) -> dict[str, bool | int | float | str]:
    """Settings as dotted names and plain values, for the comparison of runs."""

    def walk(prefix: str, value: Any) -> dict[str, bool | int | float | str]:
        if isinstance(value, dict):
            parts = [walk(f"{prefix}{k}.", v) for k, v in value.items()]
            return {k: v for part in parts for k, v in part.items()}
        name = prefix[:-1]
        return {name: value if isinstance(value, bool | int | float | str) else str(value)}

    values = OmegaConf.to_container(config, resolve=True)
    return {k: v for k, v in walk("", values).items() if k != "resume"}


def _plain(report: TestReport) -> dict[str, Any]:
    """A report as JSON: mean and half-width of the 95 % interval at each inner step."""
    plain: dict[str, Any] = {"tasks": report.tasks}
    for name, values in (("loss", report.losses), ("accuracy", report.accuracies)):
        if values is not None:
            plain[name] = [
                {"inner_step": k, "mean": float(m), "interval95": float(h)}
                for k, (m, h) in enumerate(values.T)
            ]
    return plain


def _table(reports: Mapping[str, TestReport]) -> str:
    """Mean ± 95 % interval over tasks at each inner step."""
    if not reports:
        return ""
    lines = []
    for name, report in reports.items():
        regression = report.accuracies is None
        values = report.losses if report.accuracies is None else report.accuracies
        unit = "loss" if regression else "accuracy"
        head = f"{name}: {unit} on {report.tasks} tasks, mean ± 95 % interval"
        lines.append(head)
        for k, (mean, half) in enumerate(values.T.tolist()):
            shown = f"{mean:.4f} ± {half:.4f}" if regression else f"{mean:7.2%} ± {half:.2%}"
            lines.append(f"  after {k} inner steps  {shown}")
    return "\n".join(lines)


def _one_sentence(error: BaseException) -> str:
    """A Hydra or OmegaConf error as one sentence, with the nearest known key for a misspelt one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SettingError | DataError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OverrideParseException):
        return f"{error.override}: this cannot be read as setting=value"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: there is no choice {choice!r}; known: {', '.join(error.options)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: this setting has to be given"
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown.group(1)}: there is no such setting{_suggestion(unknown.group(1))}"
    return text


def _suggestion(key: str) -> str:
    known: set[str] = set()
    for path in (Path(sys.argv[0]).resolve().parent.parent / "conf").rglob("*.yaml"):
        group = path.parent.name if path.parent.name != "conf" else ""
        node = OmegaConf.load(path)
        if isinstance(node, DictConfig):
            known |= {
                f"{group}.{k}" if group else k for k in map(str, node) if not k.startswith("_")
            }
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists all"


def _fail(sentence: str, code: int) -> None:
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(code)
