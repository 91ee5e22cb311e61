"""Recurrent networks made of cells, which vmap takes.

Axes: N samples, L steps of a sequence, D numbers of a step, H hidden units, C outputs; V numbers
of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models.settings import check_choice
from metalearn.models.tokens import check_tokens
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["Recurrent"]

Cell = Literal["gru", "lstm"]
_CELLS: dict[str, type[nn.GRUCell] | type[nn.LSTMCell]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Recurrent(nn.Module):
    """Layers of GRU or LSTM cells over a sequence, then one linear layer of the last hidden state.

    Maps sequences ``[N, L, D]`` to ``[N, outputs]``; pictures ``[N, channels, height, width]`` are
    read row by row, L their height and D channels times width. With a vocabulary tokens ``[N, L]``
    are read as learnt vectors of D numbers, and the state stays as it is over padding (0). Without
    the linear layer the last hidden state is given, features ``[N, H]``. The weights are drawn from
    a generator of their own, seeded by ``seed`` (Glorot uniform from the input, orthogonal from the
    state, for each gate;
    biases 0, but 1 for an LSTM's forget gate; vectors of tokens N(0, 1)).

    Args:
        input_shape: ``(L, D)``, ``(channels, height, width)``, or of tokens ``(L,)``.
        outputs: C; of no concern without ``head``.
        cell: ``"gru"`` or ``"lstm"``.
        hidden: H of each layer.
        layers: how many, each reading the states of the one before.
        vocabulary: V, where inputs are tokens.
        embedding: D of tokens; None is ``hidden``.
        head: False leaves out the linear layer, for learners that need features.
        seed: of the weights.

    Raises:
        SettingError: a value out of range.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014;
    Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; the forget gate's bias: Jozefowicz,
    Zaremba and Sutskever, "An Empirical Exploration of Recurrent Network Architectures", 2015.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        cell: Cell = "gru",
        hidden: int = 64,
        layers: int = 1,
        vocabulary: int | None = None,
        embedding: int | None = None,
        head: bool = True,
        seed: int = 0,
    ) -> None:
        _check_inputs(input_shape, outputs, vocabulary, embedding)
        for name, size in (("hidden", hidden), ("layers", layers)):
            check_whole(name, size, 1)
        check_choice("cell", cell, Cell)
        check_seed(seed)
        if vocabulary is None:
            numbers = input_shape[-1] * (input_shape[0] if len(input_shape) == 3 else 1)
        else:
            numbers = hidden if embedding is None else embedding
            check_memory("vocabulary", vocabulary, 4 * vocabulary * numbers)
        check_memory("hidden", hidden, 16 * hidden * (numbers + 2 * layers * hidden))
        super().__init__()
        make = _CELLS[cell]
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            self.embedding = None if vocabulary is None else nn.Embedding(vocabulary, numbers)
            sizes = [numbers] + [hidden] * (layers - 1)
            self.cells = nn.ModuleList(make(size, hidden) for size in sizes)
            self.head = nn.Linear(hidden, outputs) if head else nn.Identity()
        _initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, L, D]``, ``[N, channels, height, width]`` or ``[N, L]`` to ``[N, outputs]``."""
        there: Sequence[Tensor] | None = None
        if self.embedding is not None:
            there = (x != 0)[..., None].unbind(1)
            x = self.embedding(x)
        elif x.dim() == 4:
            x = x.transpose(1, 2).flatten(2)
        steps = list(x.unbind(1))
        for cell in self.cells:
            steps = _states(cell, steps, there)
        outputs: Tensor = self.head(steps[-1])
        return outputs


def _states(
    cell: nn.Module, steps: Sequence[Tensor], there: Sequence[Tensor] | None
) -> list[Tensor]:
    """The hidden states ``[N, H]`` of one layer after each step, from zero.

    ``there`` says for each step in which samples ``[N, 1]`` it counts; None: in all.
    """
    zero = steps[0].new_zeros(len(steps[0]), cell.hidden_size)  # type: ignore[call-overload]
    states, long = [], isinstance(cell, nn.LSTMCell)
    state = (zero, zero) if long else zero
    for number, step in enumerate(steps):
        new = cell(step, state)
        if there is not None:
            new = _where(there[number], new, state)
        state = new
        states.append(state[0] if long else state)
    return states


def _where(there: Tensor, new: Any, old: Any) -> Any:
    """A cell's new state where a step counts, the old one elsewhere."""
    if isinstance(new, tuple):
        return tuple(torch.where(there, a, b) for a, b in zip(new, old))
    return torch.where(there, new, old)


def _check_inputs(
    input_shape: Sequence[int], outputs: int, vocabulary: int | None, embedding: int | None
) -> None:
    if vocabulary is not None:
        check_whole("vocabulary", vocabulary, 1)
        if embedding is not None:
            check_whole("embedding", embedding, 1)
        check_tokens("Recurrent with a vocabulary", input_shape, outputs)
        return
    if embedding is not None:
        accepted = "null is needed where inputs are no tokens, which have a vocabulary"
        raise SettingError("embedding", embedding, accepted)
    if len(input_shape) not in (2, 3):
        accepted = "(length, numbers) or pictures (channels, height, width) are needed"
        raise SettingError("input_shape", tuple(input_shape), accepted)
    for size in input_shape:
        check_whole("input_shape", size, 1)
    check_whole("outputs", outputs, 1)


def _initialise(module: Recurrent, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    if module.embedding is not None:
        nn.init.normal_(module.embedding.weight, generator=generator)
    for cell in module.cells:
        assert isinstance(cell, nn.GRUCell | nn.LSTMCell)
        size = cell.hidden_size
        for gate in torch.split(cell.weight_ih.data, size):
            nn.init.xavier_uniform_(gate, generator=generator)
        for gate in torch.split(cell.weight_hh.data, size):
            nn.init.orthogonal_(gate, generator=generator)
        nn.init.zeros_(cell.bias_ih)
        nn.init.zeros_(cell.bias_hh)
        if isinstance(cell, nn.LSTMCell):
            nn.init.ones_(cell.bias_ih.data[size : 2 * size])
    if isinstance(module.head, nn.Linear):
        nn.init.xavier_uniform_(module.head.weight, generator=generator)
        nn.init.zeros_(module.head.bias)
