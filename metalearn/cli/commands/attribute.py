"""``metalearn attribute``: which training examples made a run's network what it is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metalearn.attribution.attributing import Attributed, attribute
from metalearn.attribution.exact import run_curvature
from metalearn.attribution.findings import Findings
from metalearn.attribution.findings_figures import track_findings
from metalearn.attribution.findings_file import save_findings
from metalearn.attribution.found_samples import TargetSamples, TrainingExamples
from metalearn.attribution.report_page import write_page
from metalearn.attribution.retraining import retrain_subsets
from metalearn.attribution.retraining_settings import retraining_settings
from metalearn.attribution.scored_network import (
    METHODS,
    SELF_METHODS,
    ScoredNetwork,
    ScoreSettings,
)
from metalearn.attribution.subset_outcomes import SubsetOutcomes, subset_outcomes
from metalearn.cli.attributed_runs import (
    AttributedNetwork,
    members_of,
    network_of,
    targets_of,
)
from metalearn.cli.building import build
from metalearn.cli.determinism import determinism
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.loading import trainer_of
from metalearn.cli.networks import kept_weights
from metalearn.cli.run_config import config_to_read, saved_config
from metalearn.cli.run_folders import claimed, existing_run, writing_to
from metalearn.core import HyperProgress
from metalearn.core.checks import check_number
from metalearn.core.memory import parse_bytes
from metalearn.errors import SettingError, check_whole
from metalearn.near_names import check_known
from metalearn.tracking import RunTracker, provenance, write_json
from metalearn.tracking.progress import Progress
from metalearn.trainers import Trainer
from metalearn.trainers.supervised.member_weights import random_subsets

__all__ = ["attribute_run", "check"]

_USERS = {
    "damping": ("influence", "kronecker", "trak", "self_influence"),
    "projection": ("trak",),
    "checkpoints": ("tracin", "tracin_self", "el2n", "grand"),
} | dict.fromkeys(("memory", "spill", "check", "progress"), ("exact",))
_SETTINGS = tuple(field.name for field in fields(ScoreSettings))


@one_sentence_errors()
def attribute_run(config: DictConfig) -> None:
    """Score examples by every method that is asked for; prints a table, writes files and a page.

    Raises:
        SettingError, DataError: what a user can mend.
        StorageError: the run's folder cannot be written to.
    """
    check(config, given_settings(HydraConfig.get()))
    folder = existing_run(config.run, "run")
    saved = saved_config(folder, trust=config.trust)
    with claimed(folder, "run"), determinism(saved), writing_to(folder):
        _attribute(folder, config, saved)


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, or that the run has no use for.

    Raises:
        SettingError, DataError: the first of them, or a run that cannot be read.
    """
    saved = config_to_read(config)
    if config.split == "train":
        raise SettingError("split", "train", "validation or test is needed")
    if "task" in saved:
        accepted = "a run on labelled data is needed (trainer=ensemble or per_sample)"
        raise SettingError("run", plain_value(config.run), accepted)
    if saved.get("init_from") is not None:
        accepted = "a run that began with weights of its own is needed, without init_from"
        raise SettingError("run", plain_value(config.run), accepted)
    for setting, known in (("methods", METHODS), ("self_methods", SELF_METHODS)):
        names = plain_value(config[setting])
        if not isinstance(names, list):
            raise SettingError(setting, names, f"a list of {', '.join(known)} is needed")
        for name in names:
            check_known(setting, name, tuple(known))
    if not config.methods:
        raise SettingError("methods", [], f"at least one of {', '.join(METHODS)} is needed")
    ScoreSettings(**{name: plain_value(config[name]) for name in _SETTINGS})
    if config.memory is not None:
        parse_bytes(config.memory)
    check_whole("subsets", plain_value(config.subsets), 0)
    check_whole("top", plain_value(config.top), 1)
    _check_shares(plain_value(config.leave_out))
    for name in ("spill", "progress"):
        value = plain_value(config[name])
        if not (isinstance(value, bool) or (name == "progress" and value is None)):
            raise SettingError(name, value, "true or false is needed")
    if config.subsets == 1:
        raise SettingError("subsets", 1, "0, or at least 2, are needed for a correlation")
    for name in ("targets", "members"):
        _check_numbers(name, plain_value(config[name]))
    unused = _unused(config)
    for entry in given:
        if entry.name in unused:
            raise entry.refusal(unused[entry.name])


def _unused(config: DictConfig) -> dict[str, str]:
    """Settings that nothing that is asked for has a use for, and why."""
    asked = {*config.methods, *config.self_methods}
    found = {
        name: f"one of {', '.join(users)} is needed for it"
        for name, users in _USERS.items()
        if not asked & set(users)
    }
    return found if config.subsets else found | {"leave_out": "subsets=64 is needed for it"}


def _check_shares(shares: Any) -> None:
    if not isinstance(shares, list) or not shares:
        raise SettingError("leave_out", shares, "a list of shares in (0, 1) is needed")
    for share in shares:
        check_number("leave_out", share, above=0, below=1)


def _check_numbers(name: str, value: Any) -> None:
    """A number or a list of numbers; members may be null."""
    if name == "targets" and not isinstance(value, list):
        check_whole(name, value, 1)
        return
    if name == "members" and value is None:
        return
    if not isinstance(value, list) or not value:
        raise SettingError(name, value, "a list of whole numbers is needed")
    for number in value:
        check_whole(name, number, 0)
    if len(set(value)) < len(value):
        raise SettingError(name, value, "each number once is needed")


def _attribute(folder: Path, config: DictConfig, saved: DictConfig) -> None:
    started = time.monotonic()
    loaded = trainer_of(folder, saved, config.checkpoint, config.device)
    fresh = build(kept_weights(saved), folder=None)
    targets, rows = targets_of(loaded, config)
    members = members_of(loaded, config)
    runs = [network_of(fresh, loaded, config, m, targets, folder) for m in members]
    networks = [run.network for run in runs]
    with _watched(config, runs):
        found = attribute(networks, list(config.methods), list(config.self_methods))
    found.warnings += [run.warning for run in runs if run.warning]
    retrained = _retrained(fresh, config, members[0], networks[0], found)
    findings = _findings(folder, config, networks, found, retrained, rows)
    _write(folder, config, networks[0].run.steps, findings, found, time.monotonic() - started)
    shutil.rmtree(folder / "attribution", ignore_errors=True)


@contextmanager
def _watched(config: DictConfig, runs: Sequence[AttributedNetwork]) -> Iterator[None]:
    """A bar over the walks forward and back."""
    steps = sum(2 * run.network.run.steps for run in runs) if "exact" in config.methods else 0
    with Progress(steps, enabled=plain_value(config.progress) if steps else False) as bar:
        done = 0

        def told(progress: HyperProgress) -> None:
            nonlocal done
            done += 1
            bar.update(done)

        for run in runs:
            run.saver.tell = told
        yield


def _retrained(
    fresh: Trainer, config: DictConfig, member: int, network: ScoredNetwork, found: Attributed
) -> list[SubsetOutcomes]:
    """Subsets trained anew as one stack, for each share that is left out."""
    if not config.subsets:
        return []
    how = retraining_settings(fresh, member=member)
    start, data = how.pop("network"), how.pop("data")
    outcomes = []
    for share in config.leave_out:
        weights = random_subsets(
            config.subsets, len(network.run.weights), leave_out=share, seed=config.seed
        )
        losses = retrain_subsets(start, data, weights, network.targets, **how).losses
        outcomes.append(subset_outcomes(found.scores, weights, losses.cpu()))
    return outcomes


def _findings(
    folder: Path,
    config: DictConfig,
    networks: Sequence[ScoredNetwork],
    found: Attributed,
    retrained: Sequence[SubsetOutcomes],
    rows: Tensor,
) -> Findings:
    """All that was found, as one object."""
    first = networks[0]
    run, (x, y) = first.run, first.run.placed(first.targets)
    with torch.no_grad():
        outputs = run.outputs(first.params, x)
        losses = torch.stack([n.run.target_losses(n.params, None, (x, y)) for n in networks])
    classes = run.data.kind == "classification"
    exact = "exact" in found.by_member
    norms = first.exact.gradient.diagnostics["walk_norms"].cpu() if exact else None
    curvature = run_curvature(run) if exact else None
    several = f", the mean of {len(networks)} members" if len(networks) > 1 else ""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return Findings(
        run=str(folder),
        state=f"after step {run.steps}{several}",
        split=config.split,
        targets=TargetSamples(
            y.cpu(), losses.mean(0).cpu(), rows, x.cpu(),
            outputs.softmax(-1).cpu() if classes else None,
        ),
        examples=TrainingExamples(*(part.cpu() for part in reversed(first.examples))),
        scores=found.scores,
        self_scores=found.self_scores,
        seconds=found.seconds,
        class_names=getattr(run.data, "class_names", None),
        retrained=retrained,
        curvature=curvature,
        walk_norms=norms,
        warnings=[*found.warnings, *(f"left out: {n}: {r}" for n, r in found.left_out.items())],
        settings={str(name): value for name, value in settings.items()},
        provenance=provenance(),
    )  # fmt: skip


def _write(
    folder: Path, config: DictConfig, step: int, findings: Findings, found: Attributed,
    seconds: float,
) -> None:  # fmt: skip
    """The table on the screen; numbers, scores, page and figures in the run's folder."""
    path = folder / f"attribution-{config.split}"
    numbers = findings.as_json(top=max(config.top, 10))
    if found.disagreement:
        numbers["disagreement_of_members"] = found.disagreement
    write_json(path.with_suffix(".json"), {"step": step, "seconds": seconds, **numbers})
    save_findings(path.with_suffix(".npz"), findings)
    write_page(path.with_suffix(".html"), findings, top=config.top)
    tracker = RunTracker(folder)
    try:
        track_findings(tracker, findings, step=step, top=config.top)
    finally:
        tracker.close()
    print(f"{findings.run}, {findings.state}: {findings.target_count} targets of {config.split}, "
          f"{findings.example_count} examples\n")  # fmt: skip
    print(_table(findings, found))
    for warning in findings.warnings:
        print(f"warning: {warning}")
    print(f"written: {path}.json, .npz and .html, and figures to {folder / 'tensorboard'}")


def _table(findings: Findings, found: Attributed) -> str:
    """Markdown: what each method took, and how well it foretold retraining."""
    shares = [f"rank correlation without {100 * s.left_out:.2g} %" for s in findings.retrained]
    heads = ["method", "seconds", *shares]
    heads += ["disagreement of members"] if found.disagreement else []
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in findings.scores:
        row = [name, f"{findings.seconds[name]:.3g}"]
        for subsets in findings.retrained:
            score = subsets.lds.get(name)
            row.append("" if score is None else f"{score.mean:.3f} ± {score.interval95:.3f}")
        row += [f"{found.disagreement[name]:.3f}"] if found.disagreement else []
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
