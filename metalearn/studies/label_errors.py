"""Planted label errors that scores of examples are to find.

Axes: N training examples, R validation samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.attribution import (
    METHODS,
    SELF_METHODS,
    ScoredNetwork,
    ScoreSettings,
    exact_scores,
    out_of_sample_probabilities,
    training_run,
    trak_scores,
)
from metalearn.data import ClassificationData, MislabelledData, mislabelled
from metalearn.evaluation import ood_scores
from metalearn.studies.rows import Rows
from metalearn.studies.stacks import made_network, sgd_of
from metalearn.trainers import PerSampleTrainer

__all__ = ["ScoredTraining", "find_label_errors"]

_BATCH = 64
_TARGETS = 25  # R
_RIGHT = 2  # right labels to a wrong one, of which exact scores are taken


@dataclass(frozen=True)
class ScoredTraining:
    """The network of a study and its run."""

    hidden: int
    steps: int

    def network(self, data: ClassificationData, seed: int) -> nn.Module:
        """A smooth MLP for the data."""
        return made_network(data, [self.hidden])(seed)

    def run(self) -> dict[str, Any]:
        """Arguments of a trainer."""
        return {
            "steps": self.steps, "batch_size": _BATCH, "optimizer": sgd_of(), "schedule": "cosine",
            "progress": False,
        }  # fmt: skip


def find_label_errors(
    source: Callable[[int], ClassificationData],
    training: ScoredTraining,
    seed: int,
    *,
    fraction: float = 0.1,
) -> Rows:
    """AUROC of telling wrong labels from right ones by each score; nothing is chosen here.

    Scores of an example by itself suspect what is large. Scores for targets are means over R
    validation samples, whose labels are right: suspected is what harms them.
    """
    data = mislabelled(source(seed), fraction=fraction, seed=seed)
    trainer = PerSampleTrainer(
        training.network(data, seed), data, seed=seed, max_norm=float("inf"), diagnostics=[],
        **training.run(),
    )  # fmt: skip
    run = training_run(trainer)
    ((_, end),) = run.states([run.steps])
    x, y = data.part("validation")
    settings = ScoreSettings(seed=seed, check=False)
    scored = ScoredNetwork(run, end, (x[:_TARGETS], y[:_TARGETS]), settings)
    rows = Rows()
    for name, score in _scores(scored, data, training, seed).items():
        with rows.timed(name):
            found = score()
        rows.add(name, auroc=_auroc(found, data.wrong))
    with torch.no_grad():
        hits = run.outputs(end, x).argmax(-1) == y
    rows.add("(the network)", accuracy=100 * float(hits.float().mean()))
    return rows


def _scores(
    net: ScoredNetwork, data: MislabelledData, training: ScoredTraining, seed: int
) -> dict[str, Callable[[], Tensor]]:
    """Suspicions ``[N]``, by name."""
    own: dict[str, Callable[[], Tensor]] = {
        "TracIn, self": partial(SELF_METHODS["tracin_self"], net),
        "EL2N": partial(SELF_METHODS["el2n"], net),
        "GraNd": partial(SELF_METHODS["grand"], net),
        "TRAK, self": partial(_trak_self, net),
        "Kronecker, self": partial(SELF_METHODS["self_influence"], net),
        "influence on validation": partial(_influence, net),
        "exact, self": partial(_exact_self, net, data.wrong),
        "loss at the end": partial(_losses, net),
        "loss out of sample": partial(_losses_out_of_sample, net, data, training, seed),
    }
    return own


def _influence(net: ScoredNetwork) -> Tensor:
    return -METHODS["influence"](net).mean(0)


def _trak_self(net: ScoredNetwork) -> Tensor:
    count = len(net.examples[1])
    return trak_scores(
        net.run.outputs, [net.params], net.examples, net.examples,
        size=min(net.settings.projection, count), seed=net.settings.seed,
        damping=net.settings.damping * count,
    ).diagonal()  # fmt: skip


def _exact_self(net: ScoredNetwork, wrong: Tensor) -> Tensor:
    """Of an example for itself, through the run; NaN of right ones beyond two to a wrong one.

    Targets cost time, and the area is estimated as well from some of the right ones.
    """
    x, y = net.examples
    right = torch.randperm(len(y), generator=torch.Generator().manual_seed(net.settings.seed))
    right = right[~wrong[right]][: _RIGHT * int(wrong.sum())]
    found = torch.full((len(y),), torch.nan)
    for rows in torch.split(torch.cat([wrong.nonzero().flatten(), right]), 256):
        scores = exact_scores(net.run, (x[rows], y[rows]), check=False).scores
        found[rows] = scores[torch.arange(len(rows)), rows]
    return found


@torch.no_grad()
def _losses(net: ScoredNetwork) -> Tensor:
    return net.run.target_losses(net.params, None, net.examples)


def _losses_out_of_sample(
    net: ScoredNetwork, data: ClassificationData, training: ScoredTraining, seed: int
) -> Tensor:
    probabilities = out_of_sample_probabilities(
        training.network(data, seed), data, seed=seed, clip=None, **training.run()
    )
    own = probabilities.gather(1, net.examples[1][:, None]).squeeze(1)
    return -own.double().log()


def _auroc(suspicion: Tensor, wrong: Tensor) -> float:
    """Of wrong labels above right ones, among the examples that have a score."""
    values, known = suspicion.detach().cpu(), ~suspicion.isnan()
    values, wrong = values[known], wrong[known]
    return float(ood_scores(values[~wrong], values[wrong], resamples=0).auroc)
