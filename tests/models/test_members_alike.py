"""What makes networks one network: all but the values of their tensors."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from metalearn import Ensemble
from metalearn.errors import SettingError
from tests.support.leaky_networks import REFUSED, RIGHT, Centre, Net
from tests.support.member_networks import close
from tests.support.oracles import generator

ENGINES = ("batched", "vmap", "loop")


def x(seed: int = 0) -> Tensor:
    return torch.randn(6, 3, generator=generator(seed), dtype=torch.float64)


class Told(Net):
    """Its outputs depend on a private attribute, a generator's state and a layer's mode."""

    def __init__(self) -> None:
        super().__init__()
        self._scale: Any = 1.0
        self.generator = torch.Generator().manual_seed(0)
        self.lock = threading.Lock()
        self.norm = nn.BatchNorm1d(3, dtype=torch.float64)
        self.register_buffer("shift", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        factor = 1 + self.generator.initial_seed()
        return super().forward(self.norm(x) + self.shift) * self._scale * factor


class Other(Told):
    def forward(self, x: Tensor) -> Any:
        return -super().forward(x)


def changed(change: Callable[[Told], object]) -> Callable[[], Told]:
    def make() -> Told:
        net = Told()
        change(net)
        return net

    return make


def tie(net: Told) -> None:
    net.norm.bias = net.inner.bias


DIFFERENT: dict[str, Callable[[], nn.Module]] = {
    "a hook": changed(lambda n: n.inner.register_forward_hook(lambda m, i, o: 2 * o)),
    "a pre-hook": changed(lambda n: n.inner.register_forward_pre_hook(lambda m, i: (2 * i[0],))),
    "a private attribute": changed(lambda n: setattr(n, "_scale", 2.0)),
    "a private array": changed(lambda n: setattr(n, "_scale", torch.full((2,), 3.0))),
    "a generator": changed(lambda n: n.generator.manual_seed(5)),
    "a layer's mode": changed(lambda n: n.norm.eval()),
    "a class": Other,
    "a closure": changed(lambda n: setattr(n, "forward", lambda x, n=n: Net.forward(n, x))),
    "what is trained": changed(lambda n: n.head.requires_grad_(False)),
    "tied weights": changed(tie),
    "what is saved": changed(lambda n: n._non_persistent_buffers_set.add("shift")),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_networks_that_differ_are_stacked_apart(kind: str) -> None:
    nets = [Told(), DIFFERENT[kind](), Told()]
    ensemble = Ensemble.from_modules(nets)
    assert [stack.indices for stack in ensemble.stacks] == [(0, 2), (1,)]
    close(ensemble(x()), torch.stack([net(x()) for net in nets]))
    for member, net in zip(ensemble.members(), nets):
        assert member.state_dict().keys() == net.state_dict().keys()
        close(member.eval()(x()), net.eval()(x()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", RIGHT)
def test_networks_that_do_more_than_compute_are_one_stack(
    kind: str, engine: Any, training: bool
) -> None:
    nets = [RIGHT[kind]() for _ in range(2)]
    for seed, net in enumerate(nets):
        with torch.no_grad():
            for value in net.parameters():
                value.add_(torch.randn(value.shape, generator=generator(seed), dtype=value.dtype))
    if training and not kind.endswith("eval"):
        nets = [net.train() for net in nets]
    ensemble = Ensemble.from_modules(nets)
    assert len(ensemble.stacks) == (2 if kind == "what cannot be copied" else 1)
    for seed in range(2):
        close(ensemble(x(seed), engine=engine), torch.stack([net(x(seed)) for net in nets]))
    ensemble(x(), engine=engine).square().mean().backward()
    for index, net in enumerate(nets):
        close(ensemble.member(index)(x()), net(x()))
    if kind != "what cannot be copied":  # iterators are the user's to copy
        close(copy.deepcopy(ensemble)(x(), engine=engine), ensemble(x(), engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_that_forward_writes_are_each_members_own(in_place: bool, engine: Any) -> None:
    nets = [Centre(in_place) for _ in range(2)]
    nets[1].mean.add_(1.0)
    ensemble = Ensemble.from_modules(nets)
    for seed in range(3):
        close(ensemble(x(seed), engine=engine), torch.stack([net(x(seed)) for net in nets]))
    for member, net in zip(ensemble.members(), nets):
        close(member.get_buffer("mean"), net.mean)
    ensemble.eval()
    close(ensemble(x(), engine=engine), torch.stack([net.eval()(x()) for net in nets]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["spectral norm", "old spectral norm"])
def test_spectral_norm_in_training_is_carried_or_refused(kind: str, engine: Any) -> None:
    nets = [REFUSED[kind][0]() for _ in range(2)]
    ensemble = Ensemble.from_modules(nets)
    if engine != "loop":
        with pytest.raises(SettingError, match="engine='loop'"):
            ensemble(x(), engine=engine)
        return
    close(ensemble(x(), engine=engine), torch.stack([net(x()) for net in nets]))
    for member, net in zip(ensemble.members(), nets):
        for one, other in zip(member.buffers(), net.buffers()):
            close(one, other)


@pytest.mark.parametrize(
    "kind", ["a counter", "a running mean", "a growing list", "global random numbers"]
)
def test_what_cannot_be_carried_is_refused(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(SettingError, match=message):
        Ensemble.from_modules([make(), make()])(x())


def test_parametrised_layers_have_classes_of_their_own_and_are_stacked() -> None:
    nets = [parametrizations.weight_norm(nn.Linear(3, 2).double()) for _ in range(2)]
    ensemble = Ensemble.from_modules(nets)
    assert len(ensemble.stacks) == 1
    close(ensemble(x()), torch.stack([net(x()) for net in nets]))


def test_devices_that_differ_are_refused() -> None:
    message = r"members\[1\]='meta': all tensors on cpu are needed, where members\[0\] is"
    with pytest.raises(SettingError, match=message):
        Ensemble.from_modules([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])


def test_an_ensemble_is_pickled_after_it_was_called() -> None:
    ensemble = Ensemble.from_modules([Net(), Net()])
    expected = ensemble(x())
    close(pickle.loads(pickle.dumps(ensemble))(x()), expected)


@pytest.mark.parametrize("kind", ["shape", "names", "number"])
def test_members_of_other_architectures_need_outputs_of_one_form(kind: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return {"y": self.layer(x)} if kind == "names" else (self.layer(x), x.sum())

    other = nn.Linear(3, 4) if kind == "shape" else Named()
    ensemble = Ensemble.from_modules([nn.Linear(3, 2), other, nn.Linear(3, 2)])
    with pytest.raises(
        SettingError, match=r"^members\[1\]=.*outputs like those of the others, \[5, 2\]"
    ):
        ensemble(torch.ones(5, 3))
