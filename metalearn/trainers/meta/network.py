"""A module, or an `Ensemble` of modules, as a pure function of parameters, for learners.

A learner is written for one network; what it asks of the gradient is taken here for one network or
for M stacked ones.

Axes: M members, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, get_args

from torch import Tensor, nn

from metalearn.core import (
    Engine,
    MetaGradient,
    convert_norm,
    functionalize,
    member_meta_gradient,
    member_task_gradient,
    meta_gradient,
    task_gradient,
)
from metalearn.core.ensemble.stacking import unstack
from metalearn.core.module.copying import copy_module
from metalearn.core.module.norms import Norm
from metalearn.errors import SettingError
from metalearn.models import Ensemble, Stack
from metalearn.trainers.members.trained import LEARNT
from metalearn.trainers.meta.learnt import LearntValues
from metalearn.types import LossFn, Params, TaskBatch, TaskLoss

__all__ = ["LearnerNetwork", "OneNetwork", "StackedNetworks", "network_of", "normalized"]


class LearnerNetwork(Protocol):
    """The network of a learner, or the networks of M learners."""

    @property
    def module(self) -> nn.Module:
        """What holds the parameters."""

    @property
    def count(self) -> int | None:
        """M; None for a single network."""

    params: dict[str, Tensor]
    """Those that are trained, by name, what is learnt beside them too; of members, ``[M, ...]``."""
    buffers: dict[str, Tensor]
    apply: Callable[..., Any]
    """``apply(params, buffers, inputs)`` of one network."""
    only_loop: str
    """Why vmap cannot take the network; empty where it can."""
    names: dict[str, str]
    """By the name of a parameter, what it is called in the module."""
    learnt: LearntValues | None
    """What is learnt beside the module; None where nothing is."""

    def learn(self, values: LearntValues) -> None:
        """Have values learnt beside the module, or further ones beside those that are."""

    def own(self, params: Params) -> Params:
        """The parameters without hyperparameters of an inner optimiser that are learnt."""

    def rows(self) -> list[dict[str, Tensor]]:
        """The parameters of each network."""

    def copies(self) -> list[nn.Module]:
        """A copy of each network, as a module."""

    def joined(self, modules: Sequence[nn.Module]) -> nn.Module:
        """One module of as many as `copies` gives."""

    def adaptation_gradient(
        self, loss: LossFn, params: Params, tasks: TaskBatch, **how: Any
    ) -> Any:
        """`metalearn.core.meta_gradient`, of every network."""

    def task_gradient(
        self, loss: TaskLoss, params: Params, tasks: TaskBatch, **how: Any
    ) -> MetaGradient:
        """`metalearn.core.task_gradient`, of every network."""


class OneNetwork:
    """A module that is one network.

    Raises:
        SettingError: a layer that cannot work, by name.
    """

    count = None

    def __init__(self, module: nn.Module, engine: Engine) -> None:
        self.module, self.only_loop = module, ""
        if engine == "auto":
            try:
                functionalize(module)
            except SettingError as error:
                functionalize(module, vectorize=False)  # or is refused altogether
                self.only_loop = str(error)
        vectorize = engine != "loop" and not self.only_loop
        self.apply, self.params, self.buffers = functionalize(module, vectorize=vectorize)
        self.names = {name: name for name in self.params}
        self.learnt: LearntValues | None = None

    def learn(self, values: LearntValues) -> None:
        """Have values learnt beside the module."""
        _learn(self, values)

    def own(self, params: Params) -> Params:
        """The parameters without hyperparameters of an inner optimiser that are learnt."""
        return params if self.learnt is None else self.learnt.adaptable(params)

    def rows(self) -> list[dict[str, Tensor]]:
        """The parameters."""
        return [self.params]

    def copies(self) -> list[nn.Module]:
        """One copy."""
        return [copy_module(self.module)]

    def joined(self, modules: Sequence[nn.Module]) -> nn.Module:
        """The one module."""
        (module,) = modules
        return module

    def adaptation_gradient(
        self, loss: LossFn, params: Params, tasks: TaskBatch, **how: Any
    ) -> MetaGradient:
        """`metalearn.core.meta_gradient`."""
        if self.learnt is None or not self.learnt.hyperparameters:
            return meta_gradient(loss, params, tasks, **how)
        optimizer = how.pop("optimizer").with_learnt(self.learnt.tree(params))
        found = meta_gradient(loss, self.own(params), tasks, optimizer=optimizer, **how)
        return _with_learnt(found, self.learnt)

    def task_gradient(
        self, loss: TaskLoss, params: Params, tasks: TaskBatch, **how: Any
    ) -> MetaGradient:
        """`metalearn.core.task_gradient`."""
        return task_gradient(loss, params, tasks, **how)


class StackedNetworks:
    """An `Ensemble` of M networks of one architecture; parameters are ``[M, ...]``.

    Buffers, and parameters that are fixed, such as those of a body with adapters, are the same for
    all members, and are none of ``[M, ...]``.

    Raises:
        SettingError: several architectures, buffers that differ or that calls write.
    """

    only_loop = ""

    def __init__(self, module: Ensemble) -> None:
        self.module, self.count = module, len(module)
        if len(module.stacks) != 1:
            found = f"{len(module.stacks)} architectures"
            raise SettingError("model", found, "members need to share one")
        (stack,) = module.stacks
        assert isinstance(stack, Stack)
        params, buffers = stack.state()
        self.buffers = _shared(buffers) if params else {}  # else it is refused for that
        if self.buffers:
            functionalize(module.member(0))  # or what its calls write is refused
        self.apply = stack.call
        self.params = {name: p.detach() for name, p in params.items()}
        self.names = {name: f"stacks.0.network.{name}" for name in params}
        self.learnt: LearntValues | None = None

    def learn(self, values: LearntValues) -> None:
        """Have values learnt beside the module."""
        _learn(self, values)

    def own(self, params: Params) -> Params:
        """The parameters without hyperparameters of an inner optimiser that are learnt."""
        return params if self.learnt is None else self.learnt.adaptable(params)

    def rows(self) -> list[dict[str, Tensor]]:
        """The parameters of each member."""
        found: list[dict[str, Tensor]] = unstack(self.params)
        return found

    def copies(self) -> list[nn.Module]:
        """A copy of each member."""
        return [self.module.member(index) for index in range(self.count)]

    def joined(self, modules: Sequence[nn.Module]) -> nn.Module:
        """An `Ensemble`."""
        return Ensemble.from_modules(list(modules)).eval()

    def adaptation_gradient(
        self, loss: LossFn, params: Params, tasks: TaskBatch, **how: Any
    ) -> MetaGradient:
        """`metalearn.core.member_meta_gradient`."""
        if self.learnt is None or not self.learnt.hyperparameters:
            return member_meta_gradient(loss, params, tasks, **how)
        values = self.learnt.tree(params)
        found = member_meta_gradient(loss, self.own(params), tasks, learnt=values, **how)
        return _with_learnt(found, self.learnt)

    def task_gradient(
        self, loss: TaskLoss, params: Params, tasks: TaskBatch, **how: Any
    ) -> MetaGradient:
        """`metalearn.core.member_task_gradient`."""
        return member_task_gradient(loss, params, tasks, **how)


def network_of(module: nn.Module, engine: Engine) -> LearnerNetwork:
    """The network of a module, or the networks of an `Ensemble`.

    Raises:
        SettingError: an unknown engine, a module that cannot work, or without parameters to learn.
    """
    if engine not in get_args(Engine):
        accepted = f"one of {', '.join(get_args(Engine))} is needed"
        raise SettingError("engine", engine, accepted)
    found: Any = None
    found = StackedNetworks(module) if isinstance(module, Ensemble) else OneNetwork(module, engine)
    if not found.params:
        accepted = "a parameter to learn is needed (requires_grad=True)"
        raise SettingError("module", type(module).__name__, accepted)
    network: LearnerNetwork = found
    return network


def normalized(module: nn.Module, norm: Norm | None) -> nn.Module:
    """A module with its norms converted; None leaves it as it is.

    Raises:
        SettingError: see `metalearn.core.convert_norm`; running statistics of members.
    """
    if norm == "running" and isinstance(module, Ensemble):
        accepted = "one network is needed for norm='running': members that adapt keep no statistics"
        raise SettingError("module", type(module).__name__, accepted)
    return module if norm is None else convert_norm(module, norm)


def _shared(stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of tensors ``[M, ...]`` that are the same for all members, one.

    Raises:
        SettingError: names those that differ.
    """
    rows = {name: value.detach() for name, value in stacked.items()}
    other = [name for name, value in rows.items() if not value.eq(value[:1]).all()]
    if other:
        accepted = "buffers and fixed parameters of members that adapt have to be the same for all"
        shown = ", ".join(other[:3]) + ", …" * (len(other) > 3)
        raise SettingError("model", shown, f"{accepted} (init_from=… starts them from one network)")
    return {name: value[0] for name, value in rows.items()}


def _learn(network: OneNetwork | StackedNetworks, values: LearntValues) -> None:
    """Put values among a network's parameters; calls of the network pass over them."""
    taken = [name for name in network.module.state_dict() if name.startswith(LEARNT)]
    if taken:
        accepted = f"names that do not begin with {LEARNT} are needed where more is learnt"
        raise SettingError("module", taken[0], accepted)
    if network.learnt is None:
        call = network.apply
        network.apply = lambda params, *rest: call(values.without(params), *rest)
    network.learnt, own = values, values.entries()
    network.params = {**network.params, **own}
    network.names = {**network.names, **{name: name for name in own}}


def _with_learnt(found: MetaGradient, learnt: LearntValues) -> MetaGradient:
    """With the gradients of what is learnt among those of the parameters."""
    return found._replace(grads={**found.grads, **learnt.gradients(found.optimizer_grads)})
