"""A trained network whose examples are scored, by every method that there is.

A method is a function of a `ScoredNetwork`; what is registered in `METHODS` or `SELF_METHODS` has a
name for the command line, a row in the table and a place in the page.
Axes: N training examples, R targets, C outputs, K steps of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.attribution.curvature_choice import Curvature
from metalearn.attribution.exact import ExactScores, exact_scores, spread_steps
from metalearn.attribution.influence import Influence, conjugate_gradient_influence
from metalearn.attribution.kronecker import kronecker_influence, kronecker_self_influence
from metalearn.attribution.pruning import el2n_scores, grand_scores
from metalearn.attribution.similarity import gradient_similarity, representation_similarity
from metalearn.attribution.tracin import tracin_scores, tracin_self_influence
from metalearn.attribution.training_run import TrainingRun
from metalearn.attribution.trak import trak_scores
from metalearn.core import KroneckerFisher, fisher_kfac
from metalearn.core.checks import check_number
from metalearn.core.module.copying import copy_module
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_seed
from metalearn.types import Params

__all__ = ["DOUBTS", "METHODS", "SELF_METHODS", "ScoreSettings", "ScoredNetwork"]


@dataclass(frozen=True)
class ScoreSettings:
    """What methods are told.

    Attributes:
        damping: λ beside the curvature of the mean loss, for influence functions, above 0.
        projection: k, of TRAK; at most N.
        checkpoints: states along the run that TracIn sums over; EL2N and GraNd take the first.
        seed: of projections and of the exactness check's direction.
        memory: of the states that exact scores keep; see `metalearn.core.hyper_gradient`.
        check: hold exact scores against two runs.
    """

    damping: float = 0.01
    projection: int = 512
    checkpoints: int = 8
    seed: int = 0
    memory: str | int | None = None
    check: bool = True

    def __post_init__(self) -> None:
        check_number("damping", self.damping, above=0)
        check_whole("projection", self.projection, 1)
        check_whole("checkpoints", self.checkpoints, 1)
        check_seed(self.seed)
        if not isinstance(self.check, bool):
            raise SettingError("check", self.check, "true or false is needed")


@dataclass(frozen=True)
class ScoredNetwork:
    """One network, the run that made it, and the targets that are to be explained.

    Attributes:
        run: from `metalearn.attribution.training_run`.
        params: of the state that is explained.
        targets: inputs ``[R, ...]`` and targets.
        settings: of the methods.
        walk: arguments of `exact_scores` for a walk that is watched, kept on a disk, or resumed.
    """

    run: TrainingRun
    params: Params
    targets: tuple[Tensor, Tensor]
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    walk: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def examples(self) -> tuple[Tensor, Tensor]:
        """All N, as they are without augmentation."""
        return self.run.placed(self.run.data.part("train"))

    @cached_property
    def exact(self) -> ExactScores:
        """Through the run, with what speaks for and against it."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed)
        how: Any = {"memory": settings.memory, "check": settings.check, "generator": generator}
        return exact_scores(self.run, self.targets, **how, **self.walk)

    @cached_property
    def influence(self) -> Influence:
        """By conjugate gradients, with how well their equations were solved."""
        loss = self.run.loss
        if loss.likelihood is None:
            raise SettingError("loss", loss.name, "a loss that is a likelihood is needed")
        curvature = Curvature("ggn", self.run.outputs, output_loss=loss.mean)
        how: Any = {"damping": self.settings.damping, "curvature": curvature, **self._weights}
        return conjugate_gradient_influence(self.run.sample_loss, self.params, **self.pair, **how)

    @cached_property
    def checkpoints(self) -> tuple[list[Params], list[float]]:
        """States along the run, and for each the sum of the rates of the steps up to the next."""
        places = spread_steps(self.run.steps, self.settings.checkpoints + 1)[1:]
        states = [params for _, params in self.run.states(places)]
        ends = zip([0, *places[:-1]], places)
        return states, [float(self.run.rates[a:b].sum()) for a, b in ends]

    @cached_property
    def fisher(self) -> KroneckerFisher:
        """Eigenvalue-corrected Kronecker factors on all examples."""
        if self.run.loss.likelihood is None:
            raise SettingError("loss", self.run.loss.name, "a loss that is a likelihood is needed")
        how: Any = {"likelihood": self.run.loss.likelihood, "kind": "exact", **self._variance}
        how |= {"corrected": True, "chunk_size": 1024, **self._weights}
        return fisher_kfac(self.explained, self.params, self.examples, **how)

    @property
    def explained(self) -> nn.Module:
        """The network in evaluation mode, in the state that is explained."""
        module = copy_module(self.run.network, self.params).eval()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.params)
        return module

    @property
    def _weights(self) -> dict[str, Any]:
        """Those of the examples, where the run had others than 1: the loss that was descended.

        An example that a bootstrap drew twice counts twice.
        """
        weights = self.run.weights * self.run.counts
        return {} if bool((weights == 1).all()) else {"weights": weights}

    @property
    def _variance(self) -> dict[str, Any]:
        loss = self.run.loss
        return {"variance": loss.variance} if loss.likelihood == "gaussian" else {}

    @property
    def pair(self) -> dict[str, Any]:
        """Targets and examples, as all functions of scores take them."""
        return {"targets": self.run.placed(self.targets), "examples": self.examples}

    def features(self, params: Params, inputs: Tensor) -> Tensor:
        """What the last linear layer is given, ``[N, D]``."""
        module = self.explained
        last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1:]
        if not last:
            raise SettingError("model", type(module).__name__, "a linear last layer is needed")
        seen: list[Tensor] = []
        last[0].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
        with torch.no_grad():
            module(inputs)
        return seen[-1].flatten(1)


def _of_all_copies(net: ScoredNetwork, scores: Tensor) -> Tensor:
    """Scores ``[R, N]`` of the weight that all copies of an example in a bootstrap share."""
    return scores * net.run.counts


def _kronecker(net: ScoredNetwork) -> Tensor:
    found = kronecker_influence(
        net.run.sample_loss, net.params, **net.pair, fisher=net.fisher,
        damping=net.settings.damping,
    )  # fmt: skip
    return _of_all_copies(net, found)


def _tracin(net: ScoredNetwork) -> Tensor:
    states, rates = net.checkpoints
    found = tracin_scores(net.run.sample_loss, states, **net.pair, learning_rates=rates)
    return _of_all_copies(net, found)


def _trak(net: ScoredNetwork) -> Tensor:
    if net.run.data.kind != "classification":
        raise SettingError("methods", "trak", "classes are needed: TRAK explains their margins")
    size = min(net.settings.projection, len(net.examples[1]))
    return trak_scores(
        net.run.outputs, [net.params], **net.pair, size=size, seed=net.settings.seed,
        damping=net.settings.damping * len(net.examples[1]),
    )  # fmt: skip


def _representation(net: ScoredNetwork) -> Tensor:
    pair = {name: samples[0] for name, samples in net.pair.items()}
    return representation_similarity(net.features, net.params, **pair)


def _self_influence(net: ScoredNetwork) -> Tensor:
    return kronecker_self_influence(
        net.run.sample_loss, net.params, net.examples, fisher=net.fisher,
        damping=net.settings.damping,
    )  # fmt: skip


def _tracin_self(net: ScoredNetwork) -> Tensor:
    states, rates = net.checkpoints
    how: Any = {"learning_rates": rates}
    return tracin_self_influence(net.run.sample_loss, states, net.examples, **how)


def _el2n(net: ScoredNetwork) -> Tensor:
    if net.run.data.kind != "classification":
        raise SettingError("methods", "el2n", "classes are needed: EL2N is of probabilities")
    return el2n_scores(net.run.outputs, [_early(net)], net.examples)


def _grand(net: ScoredNetwork) -> Tensor:
    return grand_scores(net.run.sample_loss, [_early(net)], net.examples)


def _early(net: ScoredNetwork) -> Params:
    """The first of the states along the run: a network that fits everything tells little."""
    return net.checkpoints[0][0]


METHODS: dict[str, Callable[[ScoredNetwork], Tensor]] = {
    "exact": lambda net: net.exact.scores,
    "influence": lambda net: _of_all_copies(net, net.influence.scores),
    "kronecker": _kronecker,
    "tracin": _tracin,
    "trak": _trak,
    "cosine": lambda net: gradient_similarity(net.run.sample_loss, net.params, **net.pair),
    "representation": _representation,
}
"""Scores ``[R, N]`` of examples for targets."""

SELF_METHODS: dict[str, Callable[[ScoredNetwork], Tensor]] = {
    "self_influence": _self_influence,
    "tracin_self": _tracin_self,
    "el2n": _el2n,
    "grand": _grand,
}
"""Scores ``[N]`` of examples by themselves: the highest are suspected of wrong labels."""

DOUBTS: dict[str, Callable[[ScoredNetwork], str]] = {
    "exact": lambda net: net.exact.warning,
    "influence": lambda net: net.influence.warning,
}
"""By method, why the scores that it gave should not be trusted; empty where nothing speaks against
them."""
