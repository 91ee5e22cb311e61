"""Modules that change between calls: by their user, or by forward on later inputs alone."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import functionalize
from metalearn.errors import SettingError
from tests.support import oracles
from tests.support.leaky_networks import Net

_everywhere: dict[str, nn.Module] = {}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(0), dtype=torch.float64)


class Late(Net):
    """Keeps something from large batches alone, which the trial of a small one does not show."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.count, self.seen = where, 0, []
        self.by_name: dict[str, int] = {}
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.plain = torch.zeros((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        large = len(x) > 2
        if large and self.where == "an attribute":
            self.count += 1
        if large and self.where == "a list":
            self.seen.append(1)
        if large and self.where == "a mapping":
            self.by_name["n"] = self.by_name.get("n", 0) + 1
        if large and self.where == "a buffer":
            self.total.add_(1)
        if large and self.where == "a tensor":
            self.plain.add_(1)
        kept = self.count + len(self.seen) + self.by_name.get("n", 0) + self.total + self.plain
        return super().forward(x) * (1 + kept)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("an attribute", "changes 'count' from call to call"),
        ("a list", "changes 'seen' from call to call"),
        ("a mapping", "changes 'by_name' from call to call"),
        ("a buffer", "writes 'total', which a pure function cannot keep"),
        ("a tensor", "which a pure function cannot keep"),
    ],
)
def test_what_only_a_later_call_keeps_is_refused_then(where: str, message: str) -> None:
    net = Late(where).double()
    apply, params, buffers = functionalize(net)
    small, expected = drawn(2, 3), net(drawn(2, 3)).detach()
    torch.testing.assert_close(apply(params, buffers, small), expected)
    with pytest.raises(SettingError, match=f"module.*{message}"):
        apply(params, buffers, drawn(4, 3))
    assert (net.count, net.seen, net.by_name) == (0, [], {})


def test_a_list_that_a_later_call_fills_anew_is_dropped() -> None:
    class Fills(Net):
        seen: list[Any]

        def forward(self, x: Tensor) -> Any:
            if len(x) > 2:
                self.seen = [x]
            return super().forward(x)

    net = Fills()
    net.seen = []
    apply, params, buffers = functionalize(net)
    for size in (2, 4, 2, 4):
        x = drawn(size, 3)
        torch.testing.assert_close(apply(params, buffers, x), Net.forward(net, x).detach())
    assert net.seen == []


class Scaled(Net):
    """Multiplied by a number that stands somewhere."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.scale = where, 1.0
        self.nested = {"inner": [1.0, {"scale": 1.0}]}
        self.settings = SimpleNamespace(scale=1.0, inner=SimpleNamespace(scale=1.0))

    def held(self) -> Any:
        return {
            "attribute": (vars(self), "scale"),
            "nested list": (self.nested["inner"], 0),
            "nested mapping": (self.nested["inner"][1], "scale"),
            "object": (vars(self.settings), "scale"),
            "object in an object": (vars(self.settings.inner), "scale"),
        }[self.where]

    def forward(self, x: Tensor) -> Any:
        container, key = self.held()
        return super().forward(x) * container[key]


PLACES = ["attribute", "nested list", "nested mapping", "object", "object in an object"]


@pytest.mark.parametrize("where", PLACES)
def test_settings_that_change_later_are_followed_wherever_they_stand(where: str) -> None:
    net = Scaled(where)
    apply, params, buffers = functionalize(net)
    x = drawn(4, 3)
    for scale in (1.0, 3.0, 2.0):
        container, key = net.held()
        container[key] = scale
        torch.testing.assert_close(apply(params, buffers, x), scale * Net.forward(net, x).detach())


@pytest.mark.parametrize("where", PLACES)
def test_a_setting_that_only_a_later_call_changes_is_refused_then(where: str) -> None:
    class Counts(Scaled):
        def forward(self, x: Tensor) -> Any:
            if len(x) > 2:
                container, key = self.held()
                container[key] += 1
            return super().forward(x)

    net = Counts(where)
    apply, params, buffers = functionalize(net)
    apply(params, buffers, drawn(2, 3))
    with pytest.raises(SettingError, match="from call to call, which a pure function cannot keep"):
        apply(params, buffers, drawn(4, 3))
    container, key = net.held()
    assert container[key] == 1


def test_a_layer_may_refer_weakly_to_the_one_around_it() -> None:
    class Inner(nn.Module):
        def __init__(self, outer: nn.Module) -> None:
            super().__init__()
            self.outer = weakref.ref(outer)

        def forward(self, x: Tensor) -> Any:
            return x * self.outer().scale

    class Outer(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.part = Inner(self)

        def forward(self, x: Tensor) -> Any:
            return self.part(super().forward(x))

    net = Outer()
    apply, params, buffers = functionalize(net)
    x = drawn(4, 3)
    found = apply({**params, "scale": params["scale"] * 3}, buffers, x)
    torch.testing.assert_close(found, 3 * net(x).detach())


def test_a_layer_that_forward_reaches_by_a_global_variable_is_refused() -> None:
    class Global(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(torch.tanh(_everywhere["inner"](x)))

    net = Global()
    _everywhere["inner"] = net.inner
    apply, params, buffers = functionalize(net)
    with pytest.raises(
        SettingError, match=r"module\[inner\]='Linear': forward reaches it by a glo"
    ):
        apply(params, buffers, drawn(4, 3))
    _everywhere["inner"] = nn.Linear(3, 3, dtype=torch.float64)  # one that is not the module's
    torch.testing.assert_close(apply(params, buffers, drawn(4, 3)), net(drawn(4, 3)).detach())
