"""Adapted networks that answer each query as if it were the only one.

Axes: N support samples, B queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.diagnostics import batch_dependence

__all__ = ["InductiveModule", "answers_depend", "beside_support", "depends_on_batch"]

QUERIES_AT_A_TIME = 16
_ROUNDING = 100  # of the type's resolution, relative to the largest output


class InductiveModule(nn.Module):
    """A network that normalises with the batch at hand, and the support set it stands beside.

    ``module(x)`` predicts each of the B queries in a batch with the support set and no other query,
    as `MetaLearner.score` with ``inductive=True`` does: an answer does not depend on what else is
    asked, and a single query has one. The support inputs are a buffer: they are saved, loaded
    (whatever their number) and moved with the module.

    Args:
        network: adapted; maps inputs ``[n, ...]`` to outputs ``[n, ...]``.
        support: the inputs it was adapted to, ``[N, ...]``.
        vectorize: whether ``vmap`` takes the network; else queries go one after another.
    """

    support: Tensor

    @checked
    def __init__(self, network: nn.Module, support: Tensor, *, vectorize: bool = True) -> None:
        super().__init__()
        self.network = network
        self.vectorize = vectorize
        self.register_buffer("support", support.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``[B, ...]`` of queries ``[B, ...]``."""
        return each_beside(self._together, self.support, inputs, vectorize=self.vectorize)

    def _together(self, batch: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            outputs: Tensor = self.network(batch)
        return outputs

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take a support set of another size as well."""
        saved = state_dict.get(f"{prefix}support")
        if isinstance(saved, Tensor) and saved.dim() == self.support.dim():
            self.support = self.support.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def each_beside(together: Any, support: Tensor, inputs: Tensor, *, vectorize: bool) -> Tensor:
    """Outputs ``[B, ...]`` of queries ``[B, ...]``, each beside the support set ``[N, ...]`` alone.

    Args:
        together: outputs of a batch.
        support: inputs.
        inputs: of the queries.
        vectorize: whether vmap takes ``together``.
    """

    def alone(query: Tensor) -> Tensor:
        outputs: Tensor = together(torch.cat([support, query[None]]))[-1]
        return outputs

    if not len(inputs):
        nothing: Tensor = together(support)[:0]
        return nothing
    if vectorize:
        return torch.vmap(alone, chunk_size=QUERIES_AT_A_TIME)(inputs)
    return torch.stack([alone(query) for query in inputs])


def beside_support(network: nn.Module, support: Tensor, *, vectorize: bool) -> nn.Module:
    """The network as an `InductiveModule` where its answers depend on their batch; else bare.

    Raises:
        SettingError: inputs that cannot be put beside each other, for such a network.
    """
    if not isinstance(support, Tensor):
        if batch_dependence(network):
            accepted = "inputs in one tensor are needed, or transductive=True"
            raise SettingError("support", type(support).__name__, accepted)
        return network
    if not depends_on_batch(network, support):
        return network
    return InductiveModule(network, support, vectorize=vectorize).eval()


@torch.no_grad()
def depends_on_batch(network: nn.Module, inputs: Tensor) -> bool:
    """Whether the answer to a sample depends on the others of its batch.

    Known of layers with statistics of the batch; others are tried: the first of ``inputs``
    ``[N, ...]`` is shown beside the rest and beside copies of itself.
    """
    return bool(batch_dependence(network)) or answers_depend(network, inputs)


def answers_depend(call: Callable[[Tensor], Tensor], inputs: Tensor) -> bool:
    """Whether ``call`` has another answer to the first of ``inputs`` beside copies of itself.

    ``call`` gives outputs ``[n, ...]`` for inputs ``[n, ...]``.
    """
    first = inputs[:1]
    others = inputs[1:] if len(inputs) > 1 else torch.zeros_like(first)
    alone = torch.cat([first, first.expand_as(others)])
    one, other = call(torch.cat([first, others]))[0], call(alone)[0]
    size = torch.finfo(one.dtype).eps * _ROUNDING * float(one.abs().max())
    return bool(((one - other).abs() > size).any())
