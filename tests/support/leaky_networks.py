"""Networks whose forward pass does more than to compute outputs, all ``[N, 3]`` to ``[N, 2]``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


class Net(nn.Module):
    """tanh between two layers, in float64, the same weights each time it is made."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.inner = nn.Linear(3, 3, dtype=torch.float64)
        self.head = nn.Linear(3, 2, dtype=torch.float64)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.inner(x)))


class Twice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.inner
        self.layers = nn.ModuleList([self.inner, self.head])

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.again(torch.tanh(self.layers[0](x)))))


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = Net().inner
        self.other.weight = self.inner.weight
        self.kept = [self.inner.weight, {"head": self.head.weight}]

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(F.linear(self.other(torch.tanh(self.inner(x))), self.kept[0]))
        return F.linear(h, self.kept[1]["head"])


class TiedPlainly(Tied):
    """The same without containers, which torch's functional_call would pass over."""

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(F.linear(self.other(torch.tanh(self.inner(x))), self.inner.weight))
        return F.linear(h, self.head.weight)


class NormedPlainly(Net):
    """Weight norm in plain arithmetic: torch's own has a wrong second derivative."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.inner.weight
        del self.inner.weight
        self.inner.weight_g = nn.Parameter(weight.detach().norm(dim=1, keepdim=True))
        self.inner.weight_v = nn.Parameter(weight.detach())

    def forward(self, x: Tensor) -> Any:
        v: Any = self.inner.weight_v
        weight = self.inner.weight_g * v / v.norm(dim=1, keepdim=True)
        return self.head(torch.tanh(F.linear(x, weight, self.inner.bias)))


class Keeps(Net):
    def forward(self, x: Tensor) -> Any:
        self.features = torch.tanh(self.inner(x))
        self.seen = []
        self.seen.append(self.features)
        return self.head(self.features)


class Caches(Net):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        if "scale" not in self.cache:
            self.cache["scale"] = torch.arange(3, dtype=x.dtype)
        self.cache["last"] = self.inner(x) * self.cache["scale"]
        return self.head(torch.tanh(self.cache["last"]))


class Holds(Net):
    """What cannot be copied, and a layer that is in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.generator = threading.Lock(), torch.Generator()
        self.lines: Iterator[int] = (i for i in range(3))
        self.act: Callable[[Tensor], Tensor] = lambda x: torch.tanh(x)
        self.aside = [nn.BatchNorm1d(3, dtype=torch.float64).eval()]

    def forward(self, x: Tensor) -> Any:
        with self.lock:
            return self.head(self.act(self.aside[0](self.inner(x))))


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return super().forward(x)


class Remembers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mean: Any = 0.0
        self.list: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return super().forward(x - self.mean)


class Grows(Remembers):
    def forward(self, x: Tensor) -> Any:
        self.list.append(x)
        return Net.forward(self, x)


class Centre(Net):
    """A running mean in a buffer, assigned anew or written in place, in training alone."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        if self.training and self.in_place:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        elif self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return super().forward(x - self.mean)


class Clamps(Net):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.inner.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class Draws(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(F.dropout(x, 0.5, self.training))


class DrawsItself(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * torch.rand((), generator=self.generator, dtype=x.dtype)


class MakesLayers(Net):
    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "late"):
            self.late = nn.Linear(3, 3, dtype=torch.float64)
        return super().forward(self.late(x))


def hooked(hook: Callable[..., Any]) -> Net:
    net = Net()
    net.inner.register_forward_hook(hook)
    return net


def counting() -> Net:
    """The hook's output depends on how often it was called."""
    calls: list[int] = []

    def hook(layer: nn.Module, x: Any, y: Tensor) -> Tensor:
        calls.append(1)
        return y * len(calls)

    return hooked(hook)


def recording() -> Net:
    records: list[torch.Size] = []
    return hooked(lambda layer, x, y: records.append(y.shape))


def patched() -> Net:
    """Its forward is an attribute that encloses the network."""
    net = Net()

    def forward(self: Net, x: Tensor) -> Any:
        net.features = net.inner(x)
        return self.head(torch.tanh(net.features))

    net.forward = MethodType(forward, net)  # type: ignore[method-assign]
    return net


def old_norm(norm: Callable[[nn.Module], nn.Module]) -> Net:
    net = Net()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        norm(net.inner)
    return net


def parametrised(norm: Callable[[nn.Module], nn.Module]) -> Net:
    net = Net()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm(net.inner)
    return net


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled() -> Net:
    net = Net()
    parametrize.register_parametrization(net.inner, "weight", Doubled())
    return net


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "two names": Twice,
    "tied, and in containers": Tied,
    "stored activations": Keeps,
    "caches": Caches,
    "what cannot be copied": Holds,
    "a hook that sets an attribute": lambda: hooked(lambda m, x, y: setattr(m, "features", y)),
    "a hook that records": recording,
    "a patched forward": patched,
    "old weight norm": lambda: old_norm(nn.utils.weight_norm),
    "old spectral norm, eval": lambda: old_norm(nn.utils.spectral_norm).eval(),
    "spectral norm, eval": lambda: parametrised(parametrizations.spectral_norm).eval(),
    "a parametrisation": doubled,
    "a running mean, eval": lambda: Centre().eval(),
}
PLAIN: dict[str, Callable[[], nn.Module]] = {
    **RIGHT,
    "tied, and in containers": TiedPlainly,
    "old weight norm": NormedPlainly,
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layers made in forward": (MakesLayers, r"^module\[late\]='Linear': it is made in the forward"),
    "a counter": (Counts, r"^module\[\]='Counts': its forward pass changes 'calls' from call to"),
    "a running mean": (Remembers, r"^module\[\]='Remembers': its forward pass changes 'mean'"),
    "a growing list": (Grows, r"^module\[\]='Grows': its forward pass changes 'list'"),
    "an assigned buffer": (Centre, r"^module\[\]='Centre': its forward pass writes 'mean'.*eval"),
    "a written buffer": (lambda: Centre(True), r"^module\[\]='Centre': its forward .* 'mean'"),
    "a written weight": (Clamps, r"^module\[inner\]='Linear': its forward pass writes 'weight'"),
    "global random numbers": (Draws, r"^module\[\]='Draws': .* global random state"),
    "its own random numbers": (DrawsItself, r"^module\[\]='DrawsItself': .*'generator'"),
    "a hook that counts": (counting, r"^module\[inner\]='Linear': .* changes '_forward_hooks'"),
    "old spectral norm": (
        lambda: old_norm(nn.utils.spectral_norm),
        r"^module\[inner\]='Linear': its forward pass writes 'weight_u'",
    ),
    "spectral norm": (
        lambda: parametrised(parametrizations.spectral_norm),
        r"^module\[inner\.parametrizations\.weight\.0\]='_SpectralNorm': .* writes '_u'",
    ),
}
