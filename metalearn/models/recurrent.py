"""Recurrent networks made of cells, which vmap takes.

Axes: N samples, L steps of a sequence, D numbers of a step, H hidden units, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.core.memory import check_memory
from metalearn.errors import SettingError, check_whole
from metalearn.models.settings import check_choice
from metalearn.random_streams import check_seed
from metalearn.signatures import checked

__all__ = ["Recurrent"]

Cell = Literal["gru", "lstm"]
_CELLS: dict[str, type[nn.GRUCell] | type[nn.LSTMCell]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Recurrent(nn.Module):
    """Layers of GRU or LSTM cells over a sequence, then one linear layer of the last hidden state.

    Maps sequences ``[N, L, D]`` to ``[N, outputs]``; pictures ``[N, channels, height, width]`` are
    read row by row, L their height and D channels times width. Without the linear layer the last
    hidden state is given, features ``[N, H]``. The weights are drawn from a generator of their own,
    seeded by ``seed`` (Glorot uniform from the input, orthogonal from the state, for each gate;
    biases 0, but 1 for an LSTM's forget gate).

    Args:
        input_shape: ``(L, D)`` or ``(channels, height, width)``.
        outputs: C; of no concern without ``head``.
        cell: ``"gru"`` or ``"lstm"``.
        hidden: H of each layer.
        layers: how many, each reading the states of the one before.
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
        head: bool = True,
        seed: int = 0,
    ) -> None:
        if len(input_shape) not in (2, 3):
            accepted = "(length, numbers) or pictures (channels, height, width) are needed"
            raise SettingError("input_shape", tuple(input_shape), accepted)
        for size in input_shape:
            check_whole("input_shape", size, 1)
        for name, size in (("outputs", outputs), ("hidden", hidden), ("layers", layers)):
            check_whole(name, size, 1)
        check_choice("cell", cell, Cell)
        check_seed(seed)
        numbers = input_shape[-1] * (input_shape[0] if len(input_shape) == 3 else 1)
        check_memory("hidden", hidden, 16 * hidden * (numbers + 2 * layers * hidden))
        super().__init__()
        make = _CELLS[cell]
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, overwritten below
            sizes = [numbers] + [hidden] * (layers - 1)
            self.cells = nn.ModuleList(make(size, hidden) for size in sizes)
            self.head = nn.Linear(hidden, outputs) if head else nn.Identity()
        _initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, L, D]`` or ``[N, channels, height, width]`` to ``[N, outputs]``."""
        if x.dim() == 4:
            x = x.transpose(1, 2).flatten(2)
        steps = list(x.unbind(1))
        for cell in self.cells:
            steps = _states(cell, steps)
        outputs: Tensor = self.head(steps[-1])
        return outputs


def _states(cell: nn.Module, steps: Sequence[Tensor]) -> list[Tensor]:
    """The hidden states ``[N, H]`` of one layer after each step, from zero."""
    zero = steps[0].new_zeros(len(steps[0]), cell.hidden_size)  # type: ignore[call-overload]
    states, long = [], isinstance(cell, nn.LSTMCell)
    state = (zero, zero) if long else zero
    for step in steps:
        state = cell(step, state)
        states.append(state[0] if long else state)
    return states


def _initialise(module: Recurrent, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
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
