"""A transformer that reads a support set as a sequence and answers queries without gradients.

Axes: N support samples, B queries, W features (width), H heads, C classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core.targets import is_label
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["InContextTransformer"]

_EPSILON = 1e-5
_NOTHING = -1e9  # the attention score of padding: a weight of zero


class InContextTransformer(nn.Module):
    """``module(x, inputs, targets)`` answers queries x ``[B, ...]`` from a support set of N.

    A token of the support set is n(e(x_i) − m) + L(y_i), of a query n(e(x) − m) + q: e is the
    network given, m the mean of e over the support set and n an RMS normalisation, L a row for
    each class, or a linear map of real targets, and q is learnt. In each of ``depth``
    blocks support tokens attend to each other, a query to the support tokens and itself and to no
    other query; then a multilayer perceptron, both after RMS normalisation and beside the token
    they change. A linear layer of a query's last token gives logits ``[B, classes]`` or values
    ``[B, values]``. There is no code of positions, so the order of the support set is of no
    matter. ``module(x)`` gives e(x).

    At the start a query is compared to support samples by the dot product of features (projections
    of queries and keys are equal and orthogonal), what it attends to is passed on as it is, and the
    last layer is the transpose of L: a kernel smoother of the labels, without which training stays
    at chance for long.

    Args:
        network: e, from ``[N, ...]`` to ``[N, W]``.
        width: W, a multiple of ``heads``.
        kind: of the tasks.
        classes: C, the most that a task of classification may have.
        values: of a target of regression.
        depth: blocks.
        heads: H.
        seed: of the weights but those of the network.

    Raises:
        SettingError: a value out of range.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, for a block.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        width: int,
        *,
        kind: Literal["classification", "regression"] = "classification",
        classes: int = 20,
        values: int = 1,
        depth: int = 2,
        heads: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given = {"classes": classes, "values": values, "depth": depth, "heads": heads}
        for name, value in {"features": width, **given}.items():
            check_whole(name, value, 1)
        check_seed(seed)
        if width % heads:
            raise SettingError("heads", heads, f"a divisor of the {width} features is needed")
        draws = torch.Generator().manual_seed(seed)
        size = classes if kind == "classification" else values
        like = next(network.parameters(), torch.zeros(()))
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            self.targets = nn.Linear(size, width, bias=False)
            self.query = nn.Parameter(0.1 * torch.randn(width, generator=draws))
            self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
            self.embedded = nn.RMSNorm(width, eps=_EPSILON)
            self.norm = nn.RMSNorm(width, eps=_EPSILON)
            self.head = nn.Linear(width, size)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=draws)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            if isinstance(layer, _Block):
                layer.start(draws)
        nn.init.normal_(self.targets.weight, generator=draws)
        with torch.no_grad():
            self.head.weight.copy_(self.targets.weight.mT / width)
        self.to(like)
        self.network, self.width = network, width

    def forward(
        self, queries: Tensor, inputs: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, classes]`` or values ``[B, values]``.

        Args:
            queries: ``[B, ...]``.
            inputs: of the support set, ``[N, ...]``.
            targets: labels ``[N]`` with −100 for padding, which nothing attends to;
                probabilities ``[N, classes]``; or values ``[N, values]``.
        """
        asked: Tensor = self.network(queries)
        if inputs is None or targets is None:
            return asked
        support, padding = self.network(inputs), None
        real = torch.ones_like(support[:, :1])
        if is_label(targets):
            real = (targets >= 0)[:, None].to(support)
            every = torch.arange(self.targets.in_features, device=targets.device)
            padding = torch.where(targets < 0, _NOTHING, 0.0).to(support)
            targets = (targets[:, None] == every).to(support)
        short = self.targets.in_features - targets.shape[-1]
        centre = (real * support).sum(0) / real.sum(0).clamp_min(1)
        support = self.embedded(support - centre) + self.targets(F.pad(targets, (0, short)))
        asked = self.embedded(asked - centre) + self.query
        for block in self.blocks:
            support, asked = block(support, asked, padding)
        outputs: Tensor = self.head(self.norm(asked))
        return outputs


class _Block(nn.Module):
    """Attention and a multilayer perceptron of support tokens and queries, as written above."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = (nn.RMSNorm(width, eps=_EPSILON) for _ in range(2))
        self.project = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    @torch.no_grad()
    def start(self, draws: torch.Generator) -> None:
        """Have attention compare tokens by their dot product, and pass on what is attended to."""
        queries, keys, values = self.project.weight.chunk(3)
        for part in (keys, values):
            nn.init.orthogonal_(part, generator=draws)
        queries.copy_(keys)
        self.joined.weight.copy_(values.mT)
        nn.init.zeros_(self.narrow.weight)

    def forward(
        self, support: Tensor, asked: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens of the support set ``[N, W]`` and of queries ``[B, W]``, each after the block.

        Args:
            support: tokens.
            asked: tokens of queries.
            padding: what is added to scores of support tokens, ``[N]``, or None.
        """
        q, k, v = self._heads(support)
        asked_q, asked_k, asked_v = self._heads(asked)
        scale = 1 / math.sqrt(q.shape[-1])
        seen = 0 if padding is None else padding
        weights = (scale * q @ k.mT + seen).softmax(-1)
        support = self._finish(support, weights @ v)
        own = scale * (asked_q * asked_k).sum(-1, keepdim=True)
        weights = torch.cat([scale * asked_q @ k.mT + seen, own], -1).softmax(-1)
        return support, self._finish(asked, weights[..., :-1] @ v + weights[..., -1:] * asked_v)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``[H, N, W / H]``."""
        parts = self.project(self.before(tokens)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(1, 2, 0, 3).unbind(0)
        return q, k, v

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Tokens after what was attended to, ``[H, N, W / H]``, and the perceptron."""
        tokens = tokens + self.joined(attended.movedim(0, 1).flatten(1))
        changed: Tensor = self.narrow(F.gelu(self.wide(self.between(tokens))))
        return tokens + changed
