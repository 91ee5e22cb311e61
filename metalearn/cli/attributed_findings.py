"""What ``attribute`` finds of a run on labelled data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metalearn.attribution.attributing import Attributed, attribute
from metalearn.attribution.exact import run_curvature
from metalearn.attribution.findings import Findings
from metalearn.attribution.found_samples import TargetSamples, TrainingExamples
from metalearn.attribution.leaving_out import LeaveKOut, leave_k_out
from metalearn.attribution.retraining import Retrained, retrain_subsets
from metalearn.attribution.retraining_settings import retraining_settings
from metalearn.attribution.scored_network import ScoredNetwork
from metalearn.attribution.subset_outcomes import SubsetOutcomes, subset_outcomes
from metalearn.cli.attributed_runs import (
    AttributedNetwork,
    members_of,
    network_of,
    state_of,
    targets_of,
)
from metalearn.cli.building import build
from metalearn.cli.given_settings import plain_value
from metalearn.cli.loading import trainer_of
from metalearn.cli.networks import kept_weights
from metalearn.core import HyperProgress
from metalearn.errors import check_whole
from metalearn.tracking import provenance
from metalearn.tracking.progress import Progress
from metalearn.trainers import Trainer
from metalearn.trainers.supervised.member_weights import random_subsets

__all__ = ["findings_of_run"]

Retraining = Callable[[Tensor], Retrained]
"""From weights ``[M, N]`` to what became of the targets."""


def findings_of_run(
    folder: Path, config: DictConfig, saved: DictConfig
) -> tuple[Findings, Attributed, int]:
    """Findings, what members make of it, and after how many steps the networks stood, at most."""
    loaded = trainer_of(folder, saved, config.checkpoint, config.device)
    fresh = build(kept_weights(saved), folder=None)
    targets, rows = targets_of(loaded, config)
    members = members_of(loaded, config)
    _check_left_out(config, loaded.data.size("train"))  # type: ignore[attr-defined]
    runs = [network_of(fresh, loaded, config, m, targets, folder) for m in members]
    networks = [run.network for run in runs]
    with _watched(config, runs):
        found = attribute(networks, list(config.methods), list(config.self_methods))
    found.warnings += [run.warning for run in runs if run.warning]
    retrained, left_out = [], None
    if config.subsets or config.leave_k_out:
        retrain = _retraining(fresh, members[0], networks[0], found)
        retrained = _subsets(config, networks[0], found, retrain)
        left_out = _leave_k_out(config, networks[0], found, retrain)
    steps = [network.run.steps for network in networks]
    parts = _parts(networks, found) | {"retrained": retrained, "leave_k_out": left_out}
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    findings = Findings(
        run=str(folder),
        state=state_of(members, steps),
        split=config.split,
        targets=_target_samples(networks, rows),
        settings={str(name): value for name, value in settings.items()},
        provenance=provenance(),
        **parts,
    )
    shutil.rmtree(folder / "attribution", ignore_errors=True)
    return findings, found, max(steps)


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


def _check_left_out(config: DictConfig, examples: int) -> None:
    """Refuse what leaves out too much or nothing, before anything is computed."""
    for count in config.leave_k_out:
        check_whole("leave_k_out", count, 1, examples - 1)
    for share in config.leave_out if config.subsets else ():
        random_subsets(1, examples, leave_out=share, seed=config.seed)


def _retraining(
    fresh: Trainer, member: int, network: ScoredNetwork, found: Attributed
) -> Retraining:
    """How subsets are trained as a network was, up to the step that is explained."""
    how = retraining_settings(fresh, member=member)
    start, data, steps = how.pop("network"), how.pop("data"), network.run.steps
    if steps < how["steps"]:
        if how["schedule"] == "constant" and how["warmup"] < steps:
            how["steps"] = steps
        else:
            found.warnings.append(
                f"the network that is explained stood at step {steps}, subsets are trained for all "
                f"{how['steps']} steps: their schedule goes on to the end"
            )
    return lambda weights: retrain_subsets(start, data, weights, network.targets, **how)


def _subsets(
    config: DictConfig, network: ScoredNetwork, found: Attributed, retrain: Retraining
) -> list[SubsetOutcomes]:
    """Subsets drawn by chance, for each share that is left out."""
    outcomes = []
    for share in config.leave_out if config.subsets else ():
        weights = random_subsets(
            config.subsets, len(network.run.weights), leave_out=share, seed=config.seed
        )
        losses = retrain(weights).losses.cpu()
        outcomes.append(subset_outcomes(found.scores, weights, losses))
    return outcomes


def _leave_k_out(
    config: DictConfig, network: ScoredNetwork, found: Attributed, retrain: Retraining
) -> LeaveKOut | None:
    if not config.leave_k_out:
        return None
    classes = network.run.data.kind == "classification"
    counts = list(config.leave_k_out)
    return leave_k_out(found.scores, counts, retrain, classes=classes, seed=config.seed)


def _target_samples(networks: Sequence[ScoredNetwork], rows: Tensor) -> TargetSamples:
    """Targets, with mean losses and probabilities of the networks."""
    run = networks[0].run
    x, y = run.placed(networks[0].targets)
    with torch.no_grad():
        losses = torch.stack([n.run.target_losses(n.params, None, (x, y)) for n in networks])
        outputs = torch.stack([n.run.outputs(n.params, x) for n in networks])
    classes = run.data.kind == "classification"
    probabilities = outputs.softmax(-1).mean(0).cpu() if classes else None
    return TargetSamples(y.cpu(), losses.mean(0).cpu(), rows, x.cpu(), probabilities)


def _parts(networks: Sequence[ScoredNetwork], found: Attributed) -> dict[str, Any]:
    """What is the same whatever was retrained."""
    first = networks[0]
    exact = "exact" in found.by_member
    norms = first.exact.gradient.diagnostics["walk_norms"].cpu() if exact else None
    left_out = [f"left out: {name}: {reason}" for name, reason in found.left_out.items()]
    return {
        "examples": TrainingExamples(*(part.cpu() for part in reversed(first.examples))),
        "scores": found.scores,
        "self_scores": found.self_scores,
        "seconds": found.seconds,
        "class_names": getattr(first.run.data, "class_names", None),
        "curvature": run_curvature(first.run) if exact else None,
        "walk_norms": norms,
        "warnings": [*found.warnings, *left_out],
    }
