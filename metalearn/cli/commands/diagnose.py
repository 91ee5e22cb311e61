"""``metalearn diagnose``: gradients, Fisher matrix and curvature of a trained run."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metalearn.cli.building import AnyTrainer, device_of
from metalearn.cli.determinism import determinism
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.loading import trainer_of
from metalearn.cli.run_config import saved_config
from metalearn.cli.run_folders import claimed, existing_run, writing_to
from metalearn.core.memory import check_room
from metalearn.core.tree import leaves
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_split
from metalearn.tracking import (
    RunTracker,
    layers_figure,
    matrix_figure,
    provenance,
    spectrum_figure,
    write_json,
)
from metalearn.trainers import MetaTrainer, PerSampleTrainer
from metalearn.trainers.diagnosis import (
    QUANTITIES,
    Curvature,
    Finding,
    diagnose_models,
    diagnose_units,
)
from metalearn.trainers.diagnostics import Predictive
from metalearn.trainers.diagnostics.sources import mixing
from metalearn.trainers.ensemble_watch import member_sources, sample_predictive
from metalearn.trainers.meta_watch import task_predictive, task_units

__all__ = ["check", "diagnose"]

_SAMPLE_WISE = ("gradient_norms", "noise_scale", "fisher")
_TITLES = {"fisher": "Fisher matrix", "noise_scale": "gradient noise"}
_CURVATURE = ("eigenvalues", "iterations", "probes", "products", "models_at_once", "seed")
_USERS = {
    "eigenvalues": ("eigenvalues",),
    "iterations": ("eigenvalues", "density"),
    "probes": ("density",),
    "products": ("traces",),
}
"""Settings that are those of single quantities."""
_PLACES = ("initial", "adapted")

Findings = dict[str, dict[str, Finding]]
"""Of what (``"members"``, ``"initial/shots"``, …) and which quantity."""


@one_sentence_errors()
def diagnose(config: DictConfig) -> None:
    """Compute what is asked for of a run; prints a table, writes JSON and TensorBoard records.

    Raises:
        SettingError, DataError: what a user can mend.
        StorageError: the run's folder cannot be written to.
    """
    check(config, given_settings(HydraConfig.get()))
    folder = existing_run(config.run, "run")
    saved = saved_config(folder, trust=config.trust)
    with claimed(folder, "run"), determinism(saved), writing_to(folder):
        _diagnose(folder, config, saved)


def _diagnose(folder: Path, config: DictConfig, saved: DictConfig) -> None:
    curvature = Curvature(**{name: config[name] for name in _CURVATURE})
    # torch's own, at its first forward-mode derivative
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    trainer = trainer_of(folder, saved, config.checkpoint, config.device)
    started = time.monotonic()
    findings: Findings = {}
    left_out: dict[str, str] = {}
    for name, model in _models(trainer, config):
        what = list(config.what)
        reason = mixing(trainer.module)
        if reason:
            left_out |= {f"{name}/{q}": reason for q in what if q in _SAMPLE_WISE}
            what = [q for q in what if q not in _SAMPLE_WISE]
        if len(leaves(model.batch)[0]) == 1 and "cosines" in what:
            left_out[f"{name}/cosines"] = "a single model has no others to be compared with"
            what = [q for q in what if q != "cosines"]
        findings[name] = diagnose_models(model, what, curvature)
    if isinstance(trainer, MetaTrainer):
        findings |= _of_tasks(trainer, config)
    _write(folder, config, trainer, findings, left_out, time.monotonic() - started)


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, or that the run or what is asked for has no use for.

    Raises:
        SettingError, DataError: the first of them, or a run that cannot be read.
    """
    saved = saved_config(existing_run(config.run, "run"), trust=plain_value(config.trust))
    if config.checkpoint not in ("best", "last"):
        raise SettingError("checkpoint", plain_value(config.checkpoint), "best or last is needed")
    check_split(plain_value(config.split))
    device_of(config.device)
    check_whole("samples", plain_value(config.samples), 1)
    check_whole("tasks", plain_value(config.tasks), 1)
    if config.inner_steps is not None:
        check_whole("inner_steps", plain_value(config.inner_steps), 0)
    for setting, known in (("what", tuple(QUANTITIES)), ("at", _PLACES)):
        value = plain_value(config[setting])
        if not isinstance(value, list) or not value:
            raise SettingError(setting, value, f"a list of {', '.join(known)} is needed")
        for name in value:
            if name not in known:
                raise SettingError(setting, name, f"known are {', '.join(known)}")
    Curvature(**{name: plain_value(config[name]) for name in _CURVATURE})
    vain = dict(_vain(config, meta="task" in saved))
    for entry in given:
        if entry.name in vain and entry.value is not None:
            raise entry.refusal(vain[entry.name])


def _vain(config: DictConfig, *, meta: bool) -> Iterator[tuple[str, str]]:
    """Settings without a use for this kind of run, or for what is asked of it."""
    if meta:
        yield "samples", "a run of trainer=meta takes tasks=..."
        if "adapted" not in config.at:
            yield "inner_steps", "at=[adapted] is needed for it"
    else:
        for name in ("tasks", "at", "inner_steps"):
            yield name, "the run has no tasks, so nothing is needed here"
    for name, quantities in _USERS.items():
        if not set(quantities) & set(config.what):
            yield name, f"what=[{' or '.join(quantities)}] is needed for it"


def _models(trainer: AnyTrainer, config: DictConfig) -> Iterator[tuple[str, Predictive]]:
    """Models of a run with data of the split, by the name of their table."""
    if isinstance(trainer, MetaTrainer):
        tasks = _tasks(trainer, config)
        for place in config.at:
            steps = trainer.learner.maml.eval_steps
            steps = steps if config.inner_steps is None else config.inner_steps
            found = list(
                task_predictive(trainer.learner, tasks, steps=0 if place == "initial" else steps)
            )
            for number, model in enumerate(found):
                suffix = f"/member_{number:02d}" if len(found) > 1 else ""
                yield f"{place}{suffix}", model
        return
    indices = trainer.data.splits[config.split][: config.samples]
    batch = trainer.data.take(indices, device=trainer.device)
    trainer.module.eval()
    if isinstance(trainer, PerSampleTrainer):
        yield "network", trainer.alone(batch)
        return
    every = torch.ones(len(trainer.ensemble), dtype=torch.bool)
    reason = member_sources(trainer.ensemble)["predictive"]
    if reason and not mixing(trainer.module):  # what mixes samples has curvature all the same
        raise SettingError("run", config.run, reason)
    (model,) = sample_predictive(trainer.ensemble, batch, every)
    yield "members", model


def _tasks(trainer: MetaTrainer, config: DictConfig) -> Any:
    one = leaves(trainer.tasks.sample(config.split, [0], device=trainer.device))
    size = sum(part.numel() * part.element_size() for part in one)
    check_room("tasks", config.tasks, size * config.tasks, trainer.device)
    return trainer.tasks.sample(config.split, range(config.tasks), device=trainer.device)


def _of_tasks(trainer: MetaTrainer, config: DictConfig) -> Findings:
    """Meta-gradients of single tasks."""
    wanted = [q for q in config.what if q in ("gradient_norms", "noise_scale", "cosines")]
    if not wanted:
        return {}
    tasks = _tasks(trainer, config)
    labels = [str(i) for i in range(config.tasks)]
    units = task_units(trainer.learner, tasks, limit=math.inf, labels=labels)
    return {"meta_gradients": diagnose_units(units, wanted)}


def _write(
    folder: Path,
    config: DictConfig,
    trainer: AnyTrainer,
    findings: Findings,
    left_out: Mapping[str, str],
    seconds: float,
) -> None:
    name = f"diagnosis-{config.split}" + ("" if config.checkpoint == "best" else "-last")
    path = folder / f"{name}.json"
    plain = {place: {q: _plain(f) for q, f in found.items()} for place, found in findings.items()}
    write_json(
        path,
        {
            "checkpoint": config.checkpoint,
            "step": trainer.step,
            "settings": OmegaConf.to_container(config, resolve=True),
            "seconds": seconds,
            "findings": plain,
            "left_out": dict(left_out),
            "provenance": provenance(),
        },
    )
    tracker = RunTracker(folder)
    try:
        _record(tracker, trainer.step, config.split, findings)
    finally:
        tracker.close()
    print(f"{folder}, step {trainer.step}, {config.split}\n")
    print(_table(findings))
    for what, reason in left_out.items():
        print(f"left out: {what}: {reason}")
    print(f"written: {path}, and to {folder / 'tensorboard'} under diagnosis_{config.split}")


def _plain(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    plain: dict[str, Any] = {
        name: values.tolist() if values.ndim else float(values)
        for name, values in finding.values.items()
    }
    if finding.layers:
        plain["by_layer"] = finding.layers
    if finding.matrix is not None:
        plain["matrix"] = finding.matrix.tolist()
    if finding.density is not None:
        grid, density = finding.density
        plain["density"] = {"eigenvalue": grid.tolist(), "density": density.tolist()}
    return plain


def _table(findings: Findings) -> str:
    """Markdown: a row for each number, its median and extremes over models."""
    lines = ["| of | quantity | median | lowest | highest |", "|---|---|---:|---:|---:|"]
    for place, found in findings.items():
        for quantity, finding in found.items():
            for name, values in {**finding.values, **_of_pairs(finding)}.items():
                ends = (values.median(), values.min(), values.max())
                shown = [f"{float(end):.4g}" for end in ends]
                if not values.ndim or len(values) == 1:
                    shown[1:] = ["", ""]
                lines.append(f"| {place} | {quantity}: {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _of_pairs(finding: Finding) -> dict[str, Tensor]:
    if finding.matrix is None or len(finding.matrix) < 2:
        return {}
    size = len(finding.matrix)
    rows, columns = torch.triu_indices(size, size, offset=1)
    return {"pairs": finding.matrix[rows, columns]}


def _record(tracker: RunTracker, step: int, split: str, findings: Findings) -> None:
    """Scalars, histograms and figures."""
    for place, found in findings.items():
        for quantity, finding in found.items():
            tag, title = f"diagnosis_{split}/{place}/{quantity}", f"{place}, {split}, step {step}"
            rows = {**finding.values, **_of_pairs(finding)}
            tracker.scalars(step, {f"{tag}/{k}": float(v.median()) for k, v in rows.items()})
            if finding.norms is not None:
                tracker.histograms(step, f"diagnosis_{split}/{place}", {quantity: finding.norms})
            if finding.matrix is not None:
                figure = matrix_figure(finding.matrix, title=f"gradients, {title}", label="cosine")
                tracker.figure(step, tag, figure)
            if finding.density is not None:
                figure = spectrum_figure(*finding.density, title=f"Hessian, {title}")
                tracker.figure(step, tag, figure)
            for name, layers in finding.layers.items():
                figure = layers_figure(
                    list(layers),
                    torch.tensor(list(layers.values())),
                    label=name.replace("_", " "),
                    title=f"{_TITLES.get(quantity, quantity)}, {title}",
                )
                tracker.figure(step, f"{tag}/{name}", figure)
