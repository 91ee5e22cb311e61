"""Networks with layers that torch runs in more than one way, each beside one in plain arithmetic.

Axes: N samples, S positions.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.support.oracles import generator


class Case(NamedTuple):
    """A network of inputs ``[N, ...]`` and its reference with the same parameters by name."""

    network: nn.Module
    reference: nn.Module
    inputs: Tensor

    def pair(self) -> tuple[nn.Module, nn.Module]:
        """Both in float64, with the same values."""
        network, reference = self.network.double(), self.reference.double()
        draws = generator(3)
        with torch.no_grad():
            for value in network.parameters():
                value.copy_(0.7 * torch.randn(value.shape, generator=draws, dtype=value.dtype))
        reference.load_state_dict(network.state_dict())
        return network, reference


class Normed(nn.Module):
    """What weight norm gives, in plain arithmetic and under its names."""

    def __init__(self, inputs: int, outputs: int, dim: int | None, names: tuple[str, str]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.axes = {0: [1], 1: [0], None: [0, 1]}[dim]
        scale = {0: (outputs, 1), 1: (1, inputs), None: ()}[dim]
        self.names = names
        holder: nn.Module = self
        *path, first = names[0].split(".")
        for part in path:
            holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.register_parameter(first, nn.Parameter(torch.ones(scale)))
        holder.register_parameter(
            names[1].split(".")[-1], nn.Parameter(torch.ones(outputs, inputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        scale, direction = (attrgetter(name)(self) for name in self.names)
        length = (direction * direction).sum(self.axes, keepdim=direction.dim() == scale.dim())
        return x @ (direction * scale / length**0.5).T + self.bias


def weight_normed(old: bool, dim: int | None) -> Case:
    def network(layer: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), layer, nn.Tanh(), nn.Linear(2, 2))

    names = ("weight_g", "weight_v")
    wrap: Any = nn.utils.weight_norm
    if not old:
        names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
        wrap = nn.utils.parametrizations.weight_norm
    inputs = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
    wrapped = wrap(nn.Linear(4, 2), dim=dim)
    return Case(network(wrapped), network(Normed(4, 2, dim, names)), inputs)


class Tokens(nn.Module):
    """Rows of a table, their mean or whatever the table makes of them, and a head."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.table(tokens)
        return self.head(torch.tanh(rows if rows.dim() == 2 else rows.mean(1)))


class Bags(nn.Module):
    """What an embedding bag gives, by a loop over bags and rows."""

    def __init__(self, mode: str, padding: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 3))
        self.mode, self.padding = mode, padding

    def forward(self, tokens: Tensor) -> Tensor:
        bags = []
        for bag in tokens:
            rows = [self.weight[t] for t in bag if int(t) != self.padding]
            if not rows:
                bags.append(0 * self.weight[0].detach())
            elif self.mode == "max":
                bags.append(torch.stack(rows).max(0).values)
            else:
                total = torch.stack(rows).sum(0)
                bags.append(total / len(rows) if self.mode == "mean" else total)
        return torch.stack(bags)


class Rows(nn.Module):
    """Rows by index; derivatives of each are divided by how often a call has its index."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.weight, self.padding = nn.Parameter(torch.zeros(6, 3)), padding

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.weight[tokens]
        counts = [[(tokens == t).sum() for t in line] for line in tokens]
        share = 1 / torch.tensor(counts, dtype=rows.dtype)[..., None]
        if self.padding is not None:
            share = share * (tokens != self.padding)[..., None]
        return share * rows + ((1 - share) * rows).detach()


def embedded(**settings: Any) -> Case:
    table, plain = nn.Embedding(6, 3, **settings), nn.Embedding(6, 3, **settings)
    if "scale_grad_by_freq" in settings:
        return Case(Tokens(table), Tokens(Rows(settings.get("padding_idx"))), tokens())
    return Case(Tokens(table), Tokens(plain), tokens())


def bagged(mode: str, padding: int | None) -> Case:
    table = nn.EmbeddingBag(6, 3, mode=mode, padding_idx=padding)
    return Case(Tokens(table), Tokens(Bags(mode, padding)), tokens())


def tokens() -> Tensor:
    drawn = torch.randint(1, 6, (5, 4), generator=generator(2))
    drawn[:3, 2:] = 0
    drawn[0] = 0  # nothing but padding
    drawn[4, 1] = drawn[4, 0]
    return drawn


class Steps(nn.Module):
    """A loop over a cell, from its default state or from zeros that are given."""

    def __init__(self, cell: nn.Module, given: bool) -> None:
        super().__init__()
        self.cell, self.head, self.given = cell, nn.Linear(4, 2), given

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        if self.given:
            state = x.new_zeros(len(x), 4)
            state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def recurrent(make: Callable[[], nn.Module]) -> Case:
    inputs = torch.randn(5, 3, 3, generator=generator(4), dtype=torch.float64)
    return Case(Steps(make(), given=False), Steps(make(), given=True), inputs)


class Attending(nn.Module):
    """An encoder in evaluation mode, its padding made from the inputs; in training mode too."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers) if layers else layer
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        padding = x[..., 0] > 100
        return self.head(self.encoder(x, src_key_padding_mask=padding).sum(1))


def attending(layers: int) -> Case:
    inputs = torch.randn(5, 3, 4, generator=generator(5), dtype=torch.float64)
    inputs[1:3, 2, 0] = 101.0
    return Case(Attending(layers).eval(), Attending(layers).train(), inputs)


CASES: dict[str, Callable[[], Case]] = {
    "weight_norm": lambda: weight_normed(old=False, dim=0),
    "weight_norm last": lambda: weight_normed(old=False, dim=1),
    "weight_norm whole": lambda: weight_normed(old=False, dim=None),
    "weight_norm of old": lambda: weight_normed(old=True, dim=0),
    "padding": lambda: embedded(padding_idx=0),
    "negative padding": lambda: embedded(padding_idx=-6),
    "by frequency": lambda: embedded(scale_grad_by_freq=True),
    "padding by frequency": lambda: embedded(padding_idx=0, scale_grad_by_freq=True),
    "bag sum": lambda: bagged("sum", None),
    "bag mean": lambda: bagged("mean", 0),
    "bag max": lambda: bagged("max", 0),
    "LSTMCell": lambda: recurrent(lambda: nn.LSTMCell(3, 4)),
    "GRUCell": lambda: recurrent(lambda: nn.GRUCell(3, 4)),
    "RNNCell": lambda: recurrent(lambda: nn.RNNCell(3, 4)),
    "RNNCell without bias": lambda: recurrent(
        lambda: nn.RNNCell(3, 4, bias=False, nonlinearity="relu")
    ),
    "encoder layer": lambda: attending(0),
    "encoder": lambda: attending(1),
}
