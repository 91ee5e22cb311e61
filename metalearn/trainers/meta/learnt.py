"""What a learner learns beside the weights: hyperparameters of an inner optimiser, or other values.

They are entries ``learnt.lr``, ``learnt.lr.<parameter>``, ``learnt.momentum``, ``learnt.scale``, …
of the learner's parameters, beside those of the network; an entry of M members is ``[M, ...]``.

Axes: M members, K inner steps of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metalearn.core import InnerOptimizer
from metalearn.core.checks import check_number
from metalearn.core.meta.step_offsets import with_step_offsets
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.reprs import counted, network_in_words, one_line
from metalearn.trainers.members.trained import LEARNT
from metalearn.trainers.meta.settings import MAML
from metalearn.types import Params

__all__ = ["LearntValues", "learn_beside", "learn_in_adaptation", "learnt_values"]

OFFSET = "offset"
"""What entries are called that are added to a parameter of the network after an inner step."""


class LearntValues(nn.Module):
    """Hyperparameters of an inner optimiser, and others, as parameters of a module.

    Args:
        values: by hyperparameter, a tensor, or one for each parameter that adapts, by its name.
        vectors: names of parameters with one axis, whose step sizes ``[K]`` have to be told from
            those of their elements.
        by_step: whether step sizes have K in front.
        offsets: by the name of a parameter of the network, `with_step_offsets` of it.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        vectors: frozenset[str] = frozenset(),
        *,
        by_step: bool = False,
        offsets: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.by_step = by_step
        values = values or {}
        self._vectors = vectors
        self._parameters_of = {n: list(v) for n, v in values.items() if isinstance(v, dict)}
        self._names = list(values)
        for name, value in values.items():
            if name not in self._parameters_of:
                _register(self, name, value)
                continue
            for parameter, rate in value.items():
                _register(self, f"{name}.{parameter}", rate)
        self._offsets = list(offsets or ())
        for parameter, offset in (offsets or {}).items():
            _register(self, f"{OFFSET}.{parameter}", offset)
        self._others: list[str] = []

    def add(self, name: str, value: Tensor) -> None:
        """Have a value that is no hyperparameter of the inner optimiser."""
        _register(self, name, value)
        self._others.append(name)

    @property
    def hyperparameters(self) -> list[str]:
        """Names of those of the inner optimiser."""
        return [*self._names, *([OFFSET] if self._offsets else ())]

    @property
    def others(self) -> list[str]:
        """The entries that are no hyperparameters of the inner optimiser."""
        return [f"{LEARNT}{name}" for name in self._others]

    def entries(self) -> dict[str, Tensor]:
        """The values, without a graph, under the names that they have among the parameters."""
        return {f"{LEARNT}{name}": value.detach() for name, value in self.named_parameters()}

    def without(self, params: Params) -> dict[str, Tensor]:
        """The others of a learner's parameters: those of its network."""
        return {name: value for name, value in params.items() if not name.startswith(LEARNT)}

    def adaptable(self, params: Params) -> dict[str, Tensor]:
        """A learner's parameters without hyperparameters: the network's, and `others`."""
        others = self.others
        found = params.items()
        return {n: value for n, value in found if not n.startswith(LEARNT) or n in others}

    @property
    def rates(self) -> list[str]:
        """The entries that are step sizes."""
        names = [name for name, _ in self.named_parameters()]
        return [f"{LEARNT}{name}" for name in names if name.partition(".")[0] == "lr"]

    def rates_of(self, names: Iterable[str]) -> list[str]:
        """The entries that are step sizes of these parameters of the network alone."""
        own = self._parameters_of.get("lr", [])
        return [f"{LEARNT}lr.{name}" for name in names if name in own]

    def tree(self, params: Params) -> Any:
        """Entries of a learner's parameters, of one network or of M, for an inner optimiser.

        They are a tree like `metalearn.core.InnerOptimizer.learnt`.
        """
        found = self.by_hyperparameter(params)
        own = found["lr"] if self._names == ["lr"] else found
        return (own or (), self.offsets(params)) if self._offsets else own

    def offsets(self, params: Params) -> dict[str, Tensor]:
        """Those of parameters of the network, by their names."""
        return {name: params[f"{LEARNT}{OFFSET}.{name}"] for name in self._offsets}

    def by_hyperparameter(self, params: Params) -> dict[str, Any]:
        """The same by name, also where there are step sizes alone."""
        found: dict[str, Any] = {}
        for name in self._names:
            if name not in self._parameters_of:
                found[name] = params[f"{LEARNT}{name}"]
                continue
            rates = {p: params[f"{LEARNT}{name}.{p}"] for p in self._parameters_of[name]}
            found[name] = {
                p: rate[..., None] if p in self._vectors else rate for p, rate in rates.items()
            }
        return found

    def gradients(self, tree: Any) -> dict[str, Tensor]:
        """The gradient of a `tree` as entries of a learner's gradient."""
        found: dict[str, Tensor] = {}
        if self._offsets:
            tree, offsets = tree
            found |= {f"{LEARNT}{OFFSET}.{name}": grad for name, grad in offsets.items()}
        given = {"lr": tree} if self._names == ["lr"] else tree
        for name in self._names:
            if name not in self._parameters_of:
                found[f"{LEARNT}{name}"] = given[name]
                continue
            for p, rate in given[name].items():
                found[f"{LEARNT}{name}.{p}"] = rate.squeeze(-1) if p in self._vectors else rate
        return found


class HasNetwork(Protocol):
    """What `learn_beside` asks of a learner."""

    network: Any
    params: dict[str, Tensor]
    apply: Any


def learner_line(learner: Any) -> str:
    """A learner in one line: its network and how it is told to adapt."""
    steps = f"{counted(learner.inner_steps, 'inner step')}" if learner.inner_steps else ""
    return one_line(learner, network_in_words(learner.module), learner.kind, steps)


def learn_beside(learner: HasNetwork, name: str, value: Tensor | float) -> None:
    """Have a value learnt beside the network, an entry ``learnt.<name>`` of ``params``.

    To be called where a learner is made. Each member of an `Ensemble` has its own, which starts as
    the others do. The outer optimiser trains it as it trains the weights, and it is saved, clipped
    and shown in TensorBoard with them; an inner loop does not change it.

    Args:
        learner: that reads ``params[f"learnt.{name}"]`` in what it does with one network.
        name: an identifier.
        value: where it starts, a number or a tensor of the shape that one network needs.

    Raises:
        SettingError: a name that is taken or no identifier, a value that is not finite.
    """
    network = learner.network
    values = network.learnt or LearntValues()
    if not (isinstance(name, str) and name.isidentifier()) or hasattr(values, name):
        raise SettingError("name", name, "an identifier that is not taken is needed")
    check_number("value", value, shape=None)
    like = leaves(network.params)[0]
    start = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()
    lead = () if network.count is None else (network.count,)
    values.add(name, start.expand((*lead, *start.shape)).clone())
    network.learn(values)
    learner.params, learner.apply = network.params, network.apply


def learn_in_adaptation(
    learner: HasNetwork, maml: MAML, adapting: Sequence[str], stepwise: Sequence[str] = ()
) -> InnerOptimizer:
    """The inner optimiser; what settings have learnt of it is put among a learner's parameters.

    Args:
        learner: whose inner loop it is.
        maml: says what is learnt.
        adapting: names of the parameters that the inner loop changes.
        stepwise: those of them that it does not adapt: they have a learnt value in each inner step.
    """
    if not maml.learnt_names and not stepwise:
        return maml.optimizer()
    network = learner.network
    row = network.own(network.rows()[0])
    moving = {name: row[name] for name in adapting if name not in stepwise}
    values = learnt_values(maml, moving, network.count, {name: row[name] for name in stepwise})
    network.learn(values)
    learner.params, learner.apply = network.params, network.apply
    first = network.rows()[0]
    optimizer = maml.optimizer(values.by_hyperparameter(first))
    return with_step_offsets(optimizer, values.offsets(first)) if stepwise else optimizer


def learnt_values(
    maml: MAML,
    adapting: Mapping[str, Tensor],
    count: int | None,
    stepwise: Mapping[str, Tensor] | None = None,
) -> LearntValues:
    """The values that settings have learnt, where they start.

    Args:
        maml: says what is learnt.
        adapting: parameters of one network that the inner loop changes.
        count: M; None for a single network.
        stepwise: parameters of one network that have a learnt value in each inner step.
    """
    numbers, first = maml.hyperparameters, next(iter(adapting.values()))
    by_step, by_element = "step" in maml.rate_axes, "element" in maml.rate_axes
    steps = (maml.inner_steps,) if by_step else ()

    def start(name: str, like: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        lead = () if count is None else (count,)
        return torch.full((*lead, *shape), numbers[name], dtype=like.dtype, device=like.device)

    values: dict[str, Any] = {name: start(name, first) for name in maml.learnt_names}
    vectors: frozenset[str] = frozenset()
    if "lr" in values:
        values["lr"] = start("lr", first, steps)
        if by_element:
            values["lr"] = {n: start("lr", p, (*steps, *p.shape)) for n, p in adapting.items()}
        elif "parameter" in maml.rate_axes:
            values["lr"] = {name: start("lr", p, steps) for name, p in adapting.items()}
            vectors = frozenset(n for n, p in adapting.items() if steps and p.dim() == 1)
    lead = (maml.inner_steps,) if count is None else (count, maml.inner_steps)
    offsets = {name: p.new_zeros(*lead, *p.shape) for name, p in (stepwise or {}).items()}
    return LearntValues(values, vectors, by_step=by_step, offsets=offsets)


def _register(module: nn.Module, dotted: str, value: Tensor) -> None:
    """Have a value as a parameter under a dotted name."""
    *path, last = dotted.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, nn.Parameter(value))
