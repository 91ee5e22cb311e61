"""CAVIA: a task is a context vector; the network that reads it is shared by all tasks.

Axes: M members, K inner steps, D entries of a context.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalearn.core import Engine, MetaGradient
from metalearn.core.tree import leaves
from metalearn.errors import SettingError, check_whole
from metalearn.models import WithContext
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.network import LearnerNetwork, network_of
from metalearn.trainers.meta.settings import MAML
from metalearn.trainers.meta.wrapping import wrapped
from metalearn.types import Params, TaskBatch

__all__ = ["CAVIA", "FixedContext"]

CONTEXT = "context"
"""The entry of a task's parameters that adapts; no parameter of a network has this name."""


class CAVIA(MetaLearner):
    """A `MetaLearner` of which the inner loop changes a context c ``[D]`` alone.

    c_0 = 0 for every task and c_{k+1} = c_k − α ∇_c L(θ, c_k; support); what is learnt is θ, by
    ∇_θ L(θ, c_K; query), with second derivatives unless ``maml.first_order``. The network reads c
    as `metalearn.models.WithContext` does, which is put around it: `learner.module`.

    Args:
        module: as for `MetaLearner`; a `WithContext`, or an `Ensemble` of them, is taken as it is.
        maml: as for `MetaLearner`, without ``frozen`` and the implicit method.
        kind: as for `MetaLearner`.
        context_size: D.
        layer: that reads the context, by name; see `WithContext`.
        seed: of the weights of the context; members add their number.

    Raises:
        SettingError: as `MetaLearner` and `WithContext`; settings that are fixed here.

    Source: Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, "Fast Context Adaptation via
    Meta-Learning", ICML 2019. The paper's FiLM layer is linear with biases, which is where its
    scales start; here scales start at 1 and shifts at 0, so that c = 0 is the bare network.
    """

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        context_size: int = 5,
        layer: str | None = None,
        seed: int = 0,
    ) -> None:
        check_whole("context_size", context_size, 1)
        check_seed(seed)
        maml = maml or MAML()
        _check_free(maml)

        def around(network: nn.Module, index: int) -> WithContext:
            try:
                return WithContext(network, context_size, layer=layer, seed=seed + index)
            except SettingError as error:  # a network's, which the command line may not have yet
                raise type(error)("learner.layer", error.value, error.accepted) from error

        super().__init__(wrapped(module, WithContext, around), maml, kind=kind)

    @staticmethod
    def network_for(module: nn.Module, engine: Engine) -> LearnerNetwork:
        """The network, of which a task's parameters have a context among them."""
        found: Any = _Contextual(network_of(module, engine))
        network: LearnerNetwork = found
        return network

    @property
    def frozen(self) -> str | Sequence[str] | None:
        """All but the context."""
        own = self.network.own(self.network.rows()[0])
        return [glob.escape(name) for name in own if name != CONTEXT]

    def task_gradients(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> Params:
        """As of `MetaLearner`, without that of the start of the context."""
        return _without(super().task_gradients(params, tasks, step=step))

    def as_module(self, module: nn.Module, state: Params) -> FixedContext:
        """The network in the context of a state."""
        assert isinstance(module, WithContext)
        return FixedContext(module, state[CONTEXT].detach().clone())


class FixedContext(nn.Module):
    """A `WithContext` in one context, ``[D]``: ``module(x)`` gives outputs ``[N, ...]``."""

    context: Tensor

    @checked
    def __init__(self, network: WithContext, context: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer(CONTEXT, context)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of inputs ``[N, ...]``."""
        outputs: Tensor = self.network(inputs, self.context)
        return outputs


class _Contextual:
    """A network of `WithContext`: `own` parameters have a context of zeros, which is not learnt."""

    def __init__(self, network: LearnerNetwork) -> None:
        self._network = network
        found: Any = network.module.stacks[0].network if network.count else network.module  # type: ignore[index, union-attr]
        self.size = int(found.size)  # type: ignore[union-attr, arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "_network":  # while it is copied
            raise AttributeError(name)
        return getattr(self._network, name)

    @property
    def apply(self) -> Callable[..., Any]:
        """``apply(params, buffers, inputs)``, in the context among the parameters, if there."""
        call = self._network.apply

        def in_context(params: Params, buffers: Params, inputs: Any) -> Any:
            if CONTEXT not in params:
                return call(params, buffers, inputs)
            return call(_without(params), buffers, inputs, params[CONTEXT])

        return in_context

    def own(self, params: Params, *lead: int) -> Params:
        """The parameters of one network that a task has, with where its context starts."""
        like = leaves(params)[0]
        start = torch.zeros(*lead, self.size, dtype=like.dtype, device=like.device)
        return {**self._network.own(params), CONTEXT: start}

    def adaptation_gradient(
        self, loss: Any, params: Params, tasks: TaskBatch, **how: Any
    ) -> MetaGradient:
        """`metalearn.core.meta_gradient`, of every network, without that of the start."""
        count = self._network.count
        own = {**params, CONTEXT: self.own(params, *(() if count is None else (count,)))[CONTEXT]}
        found: MetaGradient = self._network.adaptation_gradient(loss, own, tasks, **how)
        return found._replace(grads=_without(found.grads))


def _without(params: Mapping[str, Any]) -> dict[str, Any]:
    """All but the context."""
    return {name: value for name, value in params.items() if name != CONTEXT}


def _check_free(maml: MAML) -> None:
    """Refuse settings of the inner loop that are fixed, or are of a starting point."""
    if maml.frozen is not None:
        accepted = "null is needed: cavia adapts a context and nothing else"
        raise SettingError("maml.frozen", maml.frozen, accepted)
    if maml.of_the_end:
        accepted = "auto, reverse, mixed or first_order is needed: cavia learns no starting point"
        raise SettingError("maml.method", maml.method, accepted)
