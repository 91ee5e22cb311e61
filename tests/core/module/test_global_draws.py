"""A module is told from other threads where the global random state changes in its forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import functionalize, per_sample_gradients
from metalearn.core.module.global_draws import layer_that_draws
from metalearn.errors import SettingError
from tests.support import oracles


class Calls(nn.Module):
    """Passes its inputs through, and calls a function meanwhile."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def by_another_thread(x: Tensor) -> Tensor:
    thread = threading.Thread(target=torch.rand, args=(3,))
    thread.start()
    thread.join()
    return x


def by_itself_after_another(x: Tensor) -> Tensor:
    return by_another_thread(x) + torch.rand(3, dtype=x.dtype)


DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "numbers": lambda x: x + torch.rand_like(x),
    "in_place": lambda x: x + torch.empty_like(x).normal_(),
    "dropped": lambda x: nn.functional.dropout(x, 0.5),
    "pooled": lambda x: nn.functional.fractional_max_pool2d(x[:, None, None], 1, 1).flatten(1) + x,
    "sampled": lambda x: x + torch.distributions.Gamma(2.0, 1.0).sample(),
    "permuted": lambda x: x[:, torch.randperm(3)],
    "besides_another": by_itself_after_another,
}


def network(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(Calls(function), nn.Tanh())).double()


def inputs() -> Tensor:
    return torch.randn(4, 3, generator=oracles.generator(0), dtype=torch.float64)


@pytest.mark.parametrize("function", DRAWN.values(), ids=DRAWN)
def test_the_innermost_layer_that_draws_is_named(function: Callable[[Tensor], Tensor]) -> None:
    module = network(function)
    assert layer_that_draws(module, lambda: module(inputs())) == "1.0"
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    call, params, _ = functionalize(module)
    with pytest.raises(SettingError, match=r"^module\[1\.0\]='Calls': .* global random state"):
        call(params, {}, inputs())


def test_the_root_is_named_where_no_layer_of_it_draws() -> None:
    module = Calls(lambda x: x * torch.rand(()))
    assert layer_that_draws(module, lambda: module(inputs())) == ""


def test_an_own_generator_is_no_global_draw() -> None:
    def own(x: Tensor) -> Tensor:
        return x + torch.rand(3, generator=oracles.generator(1), dtype=x.dtype)

    module = network(own)
    assert layer_that_draws(module, lambda: module(inputs())) is None


def test_what_another_thread_draws_is_not_blamed_on_the_module() -> None:
    module = network(by_another_thread)
    call, params, buffers = functionalize(module)

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return (call(params, buffers, x) ** 2).mean()

    found = per_sample_gradients(loss, params, inputs())
    for row, x in enumerate(inputs()):
        module.zero_grad()
        (module(x[None]) ** 2).mean().backward()
        for name, value in module.named_parameters():
            torch.testing.assert_close(found[name][row], value.grad)
