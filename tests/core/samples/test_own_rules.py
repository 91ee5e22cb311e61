"""Rules of one's own, what is refused of them, and what is kept of a loss between steps.

Axes: N samples.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import (
    FormedGradients,
    LayerCall,
    OuterProducts,
    SampleGradients,
    check_per_sample,
    clipped_gradient,
    ghost_parameters,
    per_sample_norms,
    register_layer_rule,
)
from metalearn.core.samples import structure
from metalearn.errors import SettingError
from tests.support.sample_oracles import looped, noise, norms_of

close = torch.testing.assert_close
PARAMS, X = {"w": noise(4, 3)}, noise(5, 6, 3, seed=1)


def rule_of_scaled(x: Tensor, weight: Tensor, scale: float = 1.0) -> LayerCall:
    def of_weight(dz: Tensor, x: Tensor) -> SampleGradients:
        return OuterProducts(scale * dz, x)

    return LayerCall(lambda weight: scale * (x @ weight.T), (x,), (weight,), (of_weight,))


def loss_of(operation: Callable[..., Tensor]) -> Any:
    return lambda params, batch: (
        operation(batch[0], params["w"], scale=0.3).sin().sum((1, 2)).mean()
    )


@pytest.fixture
def registered() -> Any:
    """A rule for this test alone: of a function made anew."""

    def operation(x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
        return scale * torch.einsum("nsi,oi->nso", x, weight)

    return lambda rule: register_layer_rule(operation, rule)


def test_an_operation_of_ones_own(registered: Any) -> None:
    def plain(x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
        return scale * torch.einsum("nsi,oi->nso", x, weight)

    assert not any(ghost_parameters(loss_of(plain), PARAMS, (X,)).values())
    loss = loss_of(registered(rule_of_scaled))
    assert ghost_parameters(loss, PARAMS, (X,)) == {"w": True}
    wanted = norms_of(looped(loss, PARAMS, (X,)))["w"]
    close(per_sample_norms(loss, PARAMS, (X,)), wanted, rtol=0, atol=1e-12)
    found = check_per_sample(loss, PARAMS, (X,))
    assert max(found.norms, *found.layers.values(), *found.batch.values()) < 1e-12
    clipped = clipped_gradient(loss, PARAMS, (X,), max_norm=0.1)
    close(clipped.grads, clipped_gradient(loss, PARAMS, (X,), max_norm=0.1, method="loop").grads)


def test_an_operation_that_calls_as_before_outside(registered: Any) -> None:
    seen = registered(rule_of_scaled)
    close(seen(X, PARAMS["w"], scale=2.0), 2 * X @ PARAMS["w"].T)
    assert seen.__name__ == "operation" and register_layer_rule(seen, rule_of_scaled) is seen


def test_a_function_of_torch_is_itself_and_its_rule_makes_it_covered() -> None:
    def loss(params: Any, batch: Any) -> Tensor:
        return torch.addcmul(batch[0], batch[0], params["w"]).sin().sum() / len(batch[0])

    def rule(input: Tensor, tensor1: Tensor, tensor2: Tensor) -> LayerCall:
        def of_factor(dz: Tensor, x: Tensor) -> SampleGradients:
            return FormedGradients((dz * x).sum(1))

        run = lambda factor: torch.addcmul(input, tensor1, factor)  # noqa: E731
        return LayerCall(run, (tensor1,), (tensor2,), (of_factor,))

    params, x = {"w": noise(3)}, (noise(5, 3, seed=1),)
    before = per_sample_norms(loss, params, x)
    assert ghost_parameters(loss, params, x) == {"w": False}
    assert register_layer_rule(torch.addcmul, rule) is torch.addcmul
    try:
        assert ghost_parameters(loss, params, x) == {"w": True}
        close(per_sample_norms(loss, params, x), before)
    finally:
        register_layer_rule(torch.addcmul, lambda *args: None)
    assert ghost_parameters(loss, params, x) == {"w": False}


def with_gradient(gradient: Any) -> Any:
    return lambda x, w, scale: LayerCall(lambda w: scale * (x @ w.T), (x,), (w,), (gradient,))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (lambda x, w, scale: (x, w), "layer rule of operation='tuple': a LayerCall or None"),
        (with_gradient(lambda dz, x: dz.sum((1, 2))), "='Tensor': SampleGradients of a kind"),
        (with_gradient(lambda dz, x: OuterProducts(x, dz)),
         r"layer rule of operation=\(1, 3, 4\): gradients \(1, 4, 3\) of a parameter are needed"),
        (with_gradient(lambda dz, x: OuterProducts(dz[:, :, :2], x)),
         r"right=.*: samples and positions like those of left"),
        (lambda x, w, scale: LayerCall(w, (x,), (w,), (OuterProducts,)), "run=.*a function of the"),
        (lambda x, w, scale: LayerCall(abs, x, (w,), (OuterProducts,)), "inputs=.*a tuple of"),
        (lambda x, w, scale: LayerCall(abs, (x,), (w,), ()),
         "gradients='0 for 1 parameters': one for each"),
    ],
)  # fmt: skip
def test_a_rule_that_gives_something_else(rule: Any, sentence: str, registered: Any) -> None:
    loss = loss_of(registered(rule))
    with pytest.raises(SettingError, match=sentence):
        per_sample_norms(loss, PARAMS, (X,))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((None, rule_of_scaled), "operation=None: a function is needed"),
        ((torch.nn.Linear(2, 2), rule_of_scaled), "operation=.*a function is needed"),
        ((noise, {}), r"rule=\{\}: a function is needed"),
    ],
)
def test_what_cannot_be_registered(given: Any, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        register_layer_rule(*given)


class Counted:
    """A loss that counts its calls, as a function and as a method; it may be changed."""

    def __init__(self) -> None:
        self.calls, self.power = 0, 1

    def __call__(self, params: Any, batch: Any) -> Tensor:
        self.calls += 1
        z = batch[0]
        for _ in range(self.power):
            z = F.linear(z, params["w"]).sin()
        return z.square().sum() / len(z) + 0.0 * params["b"].sum() * (self.power - 1)

    def method(self, params: Any, batch: Any) -> Tensor:
        return self(params, batch)


SQUARE = {"w": noise(3, 3), "b": noise(2)}


@pytest.mark.parametrize("by", ["function", "method", "closure"])
@pytest.mark.parametrize("take", [per_sample_norms, clipped_gradient])
def test_a_loss_is_looked_at_once(by: str, take: Any) -> None:
    """By one forward pass of one sample; a step is one more."""
    counted = Counted()
    closure = lambda params, batch: counted(params, batch)  # noqa: E731
    settings = {"max_norm": 1.0} if take is clipped_gradient else {}
    for _ in range(3):
        loss = {"function": counted, "method": counted.method, "closure": closure}[by]
        take(loss, SQUARE, (X,), **settings)
    assert counted.calls == 1 + 3
    take(loss, SQUARE, (X[:2],), **settings)  # another N is the same structure
    assert counted.calls == 1 + 4
    take(loss, SQUARE, (X[:, :2],), **settings)  # another shape is looked at
    assert counted.calls == 1 + 4 + 2


def test_a_loss_that_does_otherwise_is_looked_at_again() -> None:
    """The norms are those of what it does now, and so are those of the next step."""
    counted = Counted()
    for power in (1, 2, 2, 3, 1):
        counted.power = power
        wanted = torch.stack(list(norms_of(looped(counted, SQUARE, (X,))).values())).norm(dim=0)
        close(per_sample_norms(counted, SQUARE, (X,)), wanted)
        close(clipped_gradient(counted, SQUARE, (X,), max_norm=1.0).norms, wanted)


def test_what_is_kept_goes_with_the_loss() -> None:
    gc.collect()
    before = len(structure._memory)
    counted = Counted()
    per_sample_norms(counted, SQUARE, (X,))
    assert len(structure._memory) == before + 1
    del counted
    gc.collect()
    assert len(structure._memory) == before
