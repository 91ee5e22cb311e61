"""What ``attribute`` finds of a run on labelled data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metalearn.attribution.attributing import Attributed, attribute_by_ranks
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
from metalearn.cli.loading import trainer_of
from metalearn.cli.networks import kept_weights
from metalearn.cli.processes import ranks_of_command
from metalearn.cli.same_run import check_same_data, check_same_settings
from metalearn.data.regression import SupervisedData
from metalearn.errors import SubsetsDivergedError, check_whole
from metalearn.ranks import Ranks
from metalearn.stretches import stretch
from metalearn.tracking import provenance
from metalearn.trainers import Trainer
from metalearn.trainers.supervised.member_weights import random_subsets

__all__ = ["findings_of_run", "retrained_by_ranks"]

Retraining = Callable[[Tensor], Retrained]
"""From weights ``[M, N]`` to what became of the targets."""


def findings_of_run(
    folder: Path, config: DictConfig, saved: DictConfig
) -> tuple[Findings, Attributed, int] | None:
    """Findings, what members make of it, and after how many steps the networks stood, at most.

    Ranks divide the members, and the subsets that are trained anew; the first has the findings.
    """
    ranks = ranks_of_command()
    check_same_settings(ranks, saved)
    loaded: Any = trainer_of(folder, saved, config.checkpoint, config.device)
    check_same_data(ranks, loaded)
    fresh = build(kept_weights(saved), folder=None)
    targets, rows = targets_of(loaded, config)
    members = members_of(loaded, config)
    _check_left_out(config, loaded.data.size("train"))
    own = ranks.share.of(members)
    place = Path(HydraConfig.get().runtime.output_dir) if ranks.rank else folder  # of walks
    runs = []
    with stretch("training again", len(own), "networks") as tell:
        for member in own:
            runs.append(network_of(fresh, loaded, config, member, targets, place))
            tell(1)
    networks = [run.network for run in runs]
    named = {"numbers": own} if len(members) > 1 else {}
    with _watched(config, runs):
        found = attribute_by_ranks(
            networks, list(config.methods), list(config.self_methods), ranks, **named
        )
    found.warnings += _of_all(ranks, [run.warning for run in runs if run.warning])
    steps = _of_all(ranks, [network.run.steps for network in networks])
    outcomes = _of_all(ranks, [_outcomes(network) for network in networks])
    retrained, left_out = [], None
    if config.subsets or config.leave_k_out:
        retrain = _retraining(fresh, members[0], steps[0], targets, found, ranks)
        retrained = _subsets(config, loaded.data, found, retrain)
        left_out = _leave_k_out(config, loaded.data, found, retrain)
    if ranks.rank:
        return None
    parts = _parts(networks[0], found) | {"retrained": retrained, "leave_k_out": left_out}
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    findings = Findings(
        run=str(folder),
        state=state_of(members, steps),
        split=config.split,
        targets=_target_samples(networks[0], outcomes, rows),
        settings={str(name): value for name, value in settings.items()},
        provenance=provenance(),
        **parts,
    )
    shutil.rmtree(folder / "attribution", ignore_errors=True)
    return findings, found, max(steps)


@contextmanager
def _watched(config: DictConfig, runs: Sequence[AttributedNetwork]) -> Iterator[None]:
    """A block that tells how far the walks forward and back are."""
    steps = sum(2 * run.network.run.steps for run in runs) if "exact" in config.methods else 0
    with stretch("exact", steps, "steps forward and back") as tell:
        for run in runs:
            run.saver.tell = lambda _: tell(1)
        yield


def _check_left_out(config: DictConfig, examples: int) -> None:
    """Refuse what leaves out too much or nothing, before anything is computed."""
    for count in config.leave_k_out:
        check_whole("leave_k_out", count, 1, examples - 1)
    for share in config.leave_out if config.subsets else ():
        random_subsets(1, examples, leave_out=share, seed=config.seed)


def _retraining(
    fresh: Trainer,
    member: int,
    steps: int,
    targets: tuple[Tensor, Tensor],
    found: Attributed,
    ranks: Ranks,
) -> Retraining:
    """How subsets are trained as a network was, up to the step that is explained."""
    how = retraining_settings(fresh, member=member)
    start, data = how.pop("network"), how.pop("data")
    if steps < how["steps"]:
        if how["schedule"] == "constant" and how["warmup"] < steps:
            how["steps"] = steps
        else:
            found.warnings.append(
                f"the network that is explained stood at step {steps}, subsets are trained for all "
                f"{how['steps']} steps: their schedule goes on to the end"
            )

    def trained(rows: Tensor) -> Retrained:
        return retrain_subsets(start, data, rows, targets, **how)

    return partial(retrained_by_ranks, trained=trained, ranks=ranks)


def retrained_by_ranks(weights: Tensor, trained: Retraining, ranks: Ranks) -> Retrained:
    """What becomes of the targets under weights ``[M, N]``, whose rows ranks divide.

    Fewer rows than ranks are trained by each.

    Raises:
        SubsetsDivergedError: on all ranks, with numbers among the M.
    """
    share, parts, lost = ranks.share, None, list[int]()
    if len(weights) < ranks.count or ranks.count == 1:
        return trained(weights)
    try:
        parts = trained(share.of(weights))
    except SubsetsDivergedError as error:
        lost = [share.bounds(len(weights))[0] + subset for subset in error.subsets]
    ranks.gather()
    every = _of_all(ranks, lost)
    if parts is None or every:
        raise SubsetsDivergedError(every)
    sizes = share.sizes(len(weights))
    return Retrained(*(ranks.joined(part.contiguous(), sizes) for part in parts))


def _subsets(
    config: DictConfig, data: SupervisedData, found: Attributed, retrain: Retraining
) -> list[SubsetOutcomes]:
    """Subsets drawn by chance, for each share that is left out."""
    outcomes = []
    for share in config.leave_out if config.subsets else ():
        examples = data.size("train")
        weights = random_subsets(config.subsets, examples, leave_out=share, seed=config.seed)
        losses = retrain(weights).losses.cpu()
        outcomes.append(subset_outcomes(found.scores, weights, losses))
    return outcomes


def _leave_k_out(
    config: DictConfig, data: SupervisedData, found: Attributed, retrain: Retraining
) -> LeaveKOut | None:
    if not config.leave_k_out:
        return None
    classes = data.kind == "classification"
    counts = list(config.leave_k_out)
    return leave_k_out(found.scores, counts, retrain, classes=classes, seed=config.seed)


def _of_all(ranks: Ranks, own: list[Any]) -> list[Any]:
    """What ranks have of members, in their order."""
    return [value for part in ranks.of_each(own) for value in part]


def _outcomes(network: ScoredNetwork) -> list[Tensor]:
    """Losses ``[R]`` and outputs ``[R, C]`` of the targets."""
    run, params = network.run, network.params
    x, y = run.placed(network.targets)
    with torch.no_grad():
        return [run.target_losses(params, None, (x, y)), run.outputs(params, x)]


def _target_samples(
    first: ScoredNetwork, outcomes: Sequence[Sequence[Tensor]], rows: Tensor
) -> TargetSamples:
    """Targets, with mean losses and probabilities of all networks."""
    losses, outputs = (torch.stack(parts) for parts in zip(*outcomes))
    classes = first.run.data.kind == "classification"
    probabilities = outputs.softmax(-1).mean(0).cpu() if classes else None
    x, y = first.run.placed(first.targets)
    return TargetSamples(y.cpu(), losses.mean(0).cpu(), rows, x.cpu(), probabilities)


def _parts(first: ScoredNetwork, found: Attributed) -> dict[str, Any]:
    """What is the same whatever was retrained; curvature and walk are those of the first."""
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
