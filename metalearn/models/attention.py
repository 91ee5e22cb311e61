"""A transformer's block, written in matrix products.

Axes: N samples, P tokens of a sample, D width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

__all__ = ["Block"]

_NOTHING = -1e9  # the attention score of padding: a weight of zero


class Block(nn.Module):
    """Attention and an MLP, each of the normalised tokens ``[N, P, D]`` and added to them.

    Attention is written as torch's MATH backend has it, so that every derivative and vmap pass
    through it.

    Args:
        width: D, a multiple of ``heads``.
        heads: of attention.
        hidden: width of the MLP, as a multiple of D.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden * width),
            nn.GELU(),
            nn.Linear(hidden * width, width),
        )

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """``[N, P, D]`` to the same.

        Args:
            x: tokens.
            padding: bool ``[N, P]``, tokens that no other attends to; None: there are none.
        """
        projected = self.queries_keys_values(self.attention_norm(x))
        x = x + self.mixed(self.attended(projected, padding))
        y: Tensor = x + self.mlp(x)
        return y

    def attended(self, projected: Tensor, padding: Tensor | None = None) -> Tensor:
        """From ``[N, P, 3 D]`` to ``[N, P, D]``."""
        samples, tokens, width = projected.shape
        split = projected.view(samples, tokens, 3, self.heads, width // 3 // self.heads)
        queries, keys, values = (part.transpose(1, 2) for part in split.unbind(2))
        scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], _NOTHING)
        mixed: Tensor = scores.softmax(-1) @ values
        return mixed.transpose(1, 2).flatten(2)
