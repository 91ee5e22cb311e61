"""ProtoMAML: an inner loop that starts as a prototypical network.

Axes: T tasks, K inner steps, N samples, C classes (way), D features.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import Adaptation, Eager, InnerOptimizer
from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Functional
from metalearn.core.checks import check_pair
from metalearn.core.tree import flatten, match_names, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.absent_classes import NOTHING, absent
from metalearn.trainers.meta.feature_learner import class_probabilities
from metalearn.trainers.meta.learnt import learn_in_adaptation
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.protonet import class_means
from metalearn.trainers.meta.settings import MAML
from metalearn.types import Batch, Params

__all__ = ["ProtoMAML"]

WEIGHT, BIAS = "classifier.weight", "classifier.bias"
"""Entries of a task's parameters that are its head, ``[C, D]`` and ``[C]``."""


class ProtoMAML(Learner):
    """MAML with a linear head that starts as weights 2c_k and biases −‖c_k‖² in every task.

    c_k is the mean feature of class k in the support set at θ_0, so that the first logits are those
    of a prototypical network, −‖f(x) − c_k‖² + ‖f(x)‖². The inner loop changes the network and the
    head, each by its own slope; classes may be of any number in any split. The gradient is that of
    the query loss after K steps with respect to the network. It flows through the start of the
    head, as in the paper, in first order too, which leaves out derivatives of inner gradients.

    Args:
        module: maps inputs ``[N, ...]`` to features ``[N, D]``; or an `Ensemble` of such modules.
        maml: the inner loop. ``frozen`` is of the network's parameters; ``lr_per`` is all or step,
            for a head is another in every task; ``method`` is reverse or first_order.
        kind: ``"classification"``.
        adapt_body: False has the inner loop change the head alone.
        features: D, which a trainer holds the module to; None takes what it gives.

    Raises:
        SettingError: a module that cannot work, settings of ``maml`` that do not fit, tasks of
            regression.

    Source: Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from
    Few Examples", ICLR 2020, whose experiments are of first order.
    """

    needs = "features"

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        adapt_body: bool = True,
        features: int | None = None,
    ) -> None:
        if kind == "regression":
            raise SettingError("kind", kind, "protomaml needs tasks of classification")
        self.maml, self.adapt_body = maml or MAML(), adapt_body
        _check_inner(self.maml, adapt_body)
        how: Any = {"engine": self.maml.engine, "norm": self.maml.norm, "features": features}
        super().__init__(module, kind=kind, chunk_size=self.maml.chunk_size, **how)
        own = self.network.own(self.network.rows()[0])
        fixed = match_names(own, self.maml.frozen, "maml.frozen")
        self.frozen = [glob.escape(n) for n, still in zip(own, fixed) if still or not adapt_body]
        self.optimizer = learn_in_adaptation(self, self.maml, list(own))
        self.inner_steps, self.eval_steps = self.maml.inner_steps, self.maml.eval_steps

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Parameters of network and head after 0, 1, … K inner steps."""
        count = self.count_steps(steps)
        start = self.start(params, support)
        adaptation = Adaptation(self.inner_loss, self.optimizer_at(params), count, self.frozen)
        mapped = transforms_active()
        loop = adaptation.loop(start, Functional() if mapped else Eager())
        values, spec = flatten(start)
        state = loop.start(values)
        yield start
        exact = self.maml.wanted_method != "first_order"
        for k in range(count):
            differentiable = exact and (mapped or any(v.requires_grad for v in values))
            at = values if differentiable else [v.detach() for v in values]
            slope, _ = loop.slope(at, loop.batch(support, k), differentiable=differentiable)
            values, state = loop.advance(values, state, slope)
            yield unflatten(values, spec)

    def predict(self, state: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        network = {name: value for name, value in state.items() if name not in (WEIGHT, BIAS)}
        features: Tensor = self.apply(network, self.buffers, inputs)
        return F.linear(features, state[WEIGHT], state[BIAS])

    def start(self, params: Params, support: Batch) -> dict[str, Tensor]:
        """The network's parameters, and the head that the support set makes."""
        inputs, targets = check_pair(support, "support")
        features = self.apply(params, self.buffers, inputs)
        classes = self.criterion.classes_of(targets)
        probabilities = class_probabilities(targets, classes, features)
        means = class_means(features, probabilities)
        biases = (-means.square().sum(-1)).masked_fill(absent(probabilities), NOTHING)
        head = {WEIGHT: 2 * means, BIAS: biases}
        own = {n: v.view_as(v) for n, v in self.network.own(params).items()}  # apart from the head
        return {**own, **head}

    def inner_loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean loss of a batch ``(inputs, targets)`` of one task, a scalar."""
        inputs, targets = check_pair(batch)
        return self.criterion(self.predict(params, inputs), targets)

    def optimizer_at(self, params: Params) -> InnerOptimizer:
        """The inner optimiser with what is learnt of it among the parameters."""
        learnt = self.network.learnt
        return self.optimizer if learnt is None else self.optimizer.with_learnt(learnt.tree(params))


def _check_inner(maml: MAML, adapt_body: bool) -> None:
    """Refuse settings of the inner loop that need one start for all tasks, or have no use."""
    if maml.wanted_method not in ("auto", "reverse", "first_order"):
        accepted = "auto, reverse or first_order is needed: the inner loop starts elsewhere in each"
        raise SettingError("maml.method", maml.method, f"{accepted} task")
    if maml.memory is not None:
        accepted = "null is needed: protomaml plans no method; maml.chunk_size limits memory"
        raise SettingError("maml.memory", maml.memory, accepted)
    if maml.lr_per not in ("all", "step"):
        accepted = "all or step is needed: the head is another in every task"
        raise SettingError("maml.lr_per", maml.lr_per, accepted)
    if maml.frozen is not None and not adapt_body:
        accepted = "null is needed beside learner.adapt_body=false"
        raise SettingError("maml.frozen", maml.frozen, accepted)
