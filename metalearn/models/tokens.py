"""Networks of texts: the mean of learnt vectors, and a small transformer.

Axes: N texts, L tokens of a text (0 is padding), V numbers of tokens, D width, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models.attention import Block
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["AveragedEmbeddings", "TextTransformer", "check_tokens"]

_SMALL = 0.02  # standard deviation of a transformer's vectors and positions


class AveragedEmbeddings(nn.Module):
    """The mean of a text's token vectors, linear layers with ReLU, and a last one.

    Maps tokens ``[N, L]`` to logits ``[N, outputs]``, or without the last layer to features, of the
    last hidden width, or D where there are none. The order of tokens is of no matter, and padding
    takes no part. The weights are drawn from a generator of their own, seeded by ``seed`` (vectors
    N(0, 1), He normal of hidden layers, Glorot normal of the last, biases 0).

    Args:
        input_shape: ``(L,)``.
        outputs: C; of no concern without ``head``.
        vocabulary: V.
        width: D.
        hidden: widths of hidden layers; none are needed.
        head: False leaves out the last layer, for learners that need features.
        seed: of the weights.

    Raises:
        SettingError: a value out of range, or inputs that are no tokens.

    Source: Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text
    Classification", ACL 2015.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        vocabulary: int,
        width: int = 64,
        hidden: Sequence[int] = (64,),
        head: bool = True,
        seed: int = 0,
    ) -> None:
        check_tokens("AveragedEmbeddings", input_shape, outputs)
        for name, size in (("vocabulary", vocabulary), ("width", width)):
            check_whole(name, size, 1)
        for size in hidden:
            check_whole("hidden", size, 1)
        check_seed(seed)
        check_memory("vocabulary", vocabulary, 4 * vocabulary * width)
        super().__init__()
        widths = [width, *hidden]
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            self.embedding = nn.Embedding(vocabulary, width)
            layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
            self.hidden = nn.Sequential(*itertools.chain(*layers))
            self.head = nn.Linear(widths[-1], outputs) if head else nn.Identity()
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.embedding.weight, generator=generator)
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        if isinstance(self.head, nn.Linear):
            nn.init.xavier_normal_(self.head.weight, generator=generator)
            nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, L]`` to ``[N, outputs]``."""
        logits: Tensor = self.head(self.hidden(_mean(self.embedding(tokens), tokens == 0)))
        return logits


class TextTransformer(nn.Module):
    """Token vectors with learnt positions, pre-norm blocks, the mean over tokens, a last layer.

    Maps tokens ``[N, L]`` to logits ``[N, outputs]``, or without the last layer to features
    ``[N, D]``. No token attends to padding, which is left out of the mean too. Attention is written
    in matrix products, so that every derivative and vmap pass through it. The weights are drawn
    from a generator of their own, seeded by ``seed`` (Glorot uniform, biases 0, vectors and
    positions N(0, 0.02²)).

    Args:
        input_shape: ``(L,)``.
        outputs: C; of no concern without ``head``.
        vocabulary: V.
        width: D, a multiple of ``heads``.
        depth: number of blocks.
        heads: of the attention of each block.
        hidden: width of the MLP of each block, as a multiple of D.
        head: False leaves out the last layer, for learners that need features.
        seed: of the weights.

    Raises:
        SettingError: a value out of range, or inputs that are no tokens.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        vocabulary: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 2,
        head: bool = True,
        seed: int = 0,
    ) -> None:
        check_tokens("TextTransformer", input_shape, outputs)
        sizes = {"vocabulary": vocabulary, "width": width, "depth": depth}
        for name, size in (sizes | {"heads": heads, "hidden": hidden}).items():
            check_whole(name, size, 1)
        check_seed(seed)
        if width % heads:
            raise SettingError("width", width, f"a multiple of heads={heads} is needed")
        (length,) = input_shape
        rows = vocabulary + length + depth * width * (4 + 2 * hidden)
        check_memory("width", width, 4 * width * rows)
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            self.embedding = nn.Embedding(vocabulary, width)
            self.positions = nn.Parameter(torch.empty(length, width))
            self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, outputs) if head else nn.Identity()
        generator = torch.Generator().manual_seed(seed)
        for vectors in (self.embedding.weight, self.positions):
            nn.init.normal_(vectors, std=_SMALL, generator=generator)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, L]`` to ``[N, outputs]``."""
        padding = tokens == 0
        states = self.embedding(tokens) + self.positions
        for block in self.blocks:
            states = block(states, padding)
        logits: Tensor = self.head(_mean(self.norm(states), padding))
        return logits


def check_tokens(network: str, input_shape: Sequence[int], outputs: int) -> None:
    """Refuse a shape that is not ``(length,)``, and sizes below 1."""
    if len(input_shape) != 1:
        accepted = f"{network} takes the tokens of a text, (length,)"
        raise SettingError("input_shape", tuple(input_shape), accepted)
    check_whole("input_shape", input_shape[0], 1)
    check_whole("outputs", outputs, 1)


def _mean(states: Tensor, padding: Tensor) -> Tensor:
    """``[N, D]``, the mean of ``[N, L, D]`` over tokens; zeros of a text that has none."""
    there = (~padding).to(states.dtype)
    return (states * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
