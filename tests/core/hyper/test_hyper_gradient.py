"""Gradients through runs: against one backward pass by hand, in float64, and closed forms.

Axes: K steps, R outer losses, N samples, M members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import HyperGradient, adam, adamw, functionalize, hyper_gradient, sgd
from metalearn.errors import SettingError
from metalearn.models import Conv4
from tests.support import hyper_oracles as by_hand
from tests.support.oracles import assert_trees
from tests.support.weighted_run import (
    HYPER,
    OUTER,
    K,
    N,
    X,
    Y,
    batch,
    each,
    found_by,
    inner,
    network,
    noise,
    outer,
    start,
)

METHODS = ["reverse", "mixed"]
methods = pytest.mark.parametrize("method", METHODS)


def unrolled(
    update: by_hand.Update, learnt: list[Tensor], outer_loss: Any = outer, steps: int = K
) -> Any:
    """Value and gradients of θ_0, h and what is learnt, by autograd through the whole loop."""
    params = {n: v.clone().requires_grad_() for n, v in start().items()}
    hyper = {n: v.clone().requires_grad_() for n, v in HYPER.items()}
    values, memory = dict(params), {}
    for k in range(steps):
        moving = [n for n in values if n != "unmoved"]
        grads = torch.autograd.grad(
            inner(values, hyper, batch(k)), [values[n] for n in moving], create_graph=True
        )
        moved = {n: update(n, k, values[n], g, memory) for n, g in zip(moving, grads)}
        values = {**values, **moved}
    value = outer_loss(values, hyper, OUTER)
    inputs = [*params.values(), *hyper.values(), *learnt]
    rows = [
        torch.autograd.grad(v, inputs, retain_graph=True, materialize_grads=True)
        for v in value.reshape(-1)
    ]
    found = [torch.stack(row) for row in zip(*rows)]
    found = found if value.dim() else [row[0] for row in found]
    ends = {n: v.detach() for n, v in values.items()}
    return value.detach(), dict(zip(params, found)), dict(zip(hyper, found[4:])), found[6:], ends


def learnt(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def optimizers() -> dict[str, Callable[[], tuple[Any, by_hand.Update, list[Tensor]]]]:
    def momentum(nesterov: bool) -> Any:
        rate, m = learnt(0.3), learnt(0.8)
        rule = by_hand.sgd(lambda n, k: rate, momentum=m, nesterov=nesterov)
        return sgd(rate, momentum=m, nesterov=nesterov), rule, [rate, m]

    def schedule() -> Any:
        rates = learnt([0.4 / (k + 1) for k in range(K)])
        return sgd(rates), by_hand.sgd(lambda n, k: rates[k]), [rates]

    def moments(make: Any, decoupled: bool) -> Any:
        rate, first, decay = learnt(0.05), learnt(0.8), learnt(0.02)
        found = make(rate, betas=(first, 0.95), weight_decay=decay)
        rule = by_hand.adam(
            lambda n, k: rate, beta1=first, beta2=0.95, weight_decay=decay, decoupled=decoupled
        )
        return found, rule, [rate, first, decay]

    return {
        "sgd": lambda: (sgd(0.3), by_hand.sgd(lambda n, k: 0.3), []),
        "momentum": lambda: momentum(False),
        "nesterov": lambda: momentum(True),
        "schedule": schedule,
        "adam": lambda: moments(adam, False),
        "adamw": lambda: moments(adamw, True),
    }


@methods
@pytest.mark.parametrize("name", list(optimizers()))
@pytest.mark.parametrize("outer_loss", [outer, each], ids=["one", "many"])
def test_it_is_one_backward_pass_through_the_run(method: str, name: str, outer_loss: Any) -> None:
    optimizer, update, values = optimizers()[name]()
    found = found_by(method, outer_loss, optimizer=optimizer)
    value, grads, hyper_grads, rates, ends = unrolled(update, values, outer_loss)
    torch.testing.assert_close(found.loss, value)
    assert_trees(found.params, ends, 1e-10)
    assert_trees(found.grads, grads, 1e-8)
    assert_trees(found.hyper_grads, hyper_grads, 1e-8)
    got = found.optimizer_grads
    got = list(got.values()) if isinstance(got, dict) else [got] if values else []
    for one, other in zip(got, rates, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert found.inner_losses.shape == (K,) and not found.loss.requires_grad


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 30])
@pytest.mark.parametrize("states", [1, 2, 3, 5, 100])
def test_however_few_states_are_kept(steps: int, states: int) -> None:
    """The same bit for bit: a step that is taken again is the same step."""
    optimizer = adam(0.05)
    each_state = 8 * 3 * sum(v.numel() for n, v in start().items() if n != "unmoved")
    few = found_by(steps=steps, optimizer=optimizer, memory=states * each_state)
    every = found_by(steps=steps, optimizer=optimizer, memory="1GB")
    assert_trees(few.hyper_grads, every.hyper_grads, 0)
    assert_trees(few.grads, every.grads, 0)


def test_a_run_that_goes_on_is_one_run() -> None:
    for optimizer in (sgd(0.3, momentum=0.9), adam(0.05)):
        whole = found_by(optimizer=optimizer)
        first = found_by(optimizer=optimizer, steps=3)
        later = hyper_gradient(
            inner, outer, first.params, HYPER, lambda k: batch(k + 3), OUTER,
            optimizer=optimizer, steps=K - 3, frozen="unmoved", state=first.state,
        )  # fmt: skip
        assert_trees(later.params, whole.params, 0)
        torch.testing.assert_close(later.loss, whole.loss, rtol=0, atol=0)


def test_a_sequence_of_batches_is_a_function_of_the_step() -> None:
    one = found_by(batches=[batch(k) for k in range(K)], steps=None)
    assert_trees(one.hyper_grads, found_by().hyper_grads, 0)


@methods
def test_many_outer_losses_are_as_many_runs(method: str) -> None:
    several = found_by(method, each)
    for r in range(9):
        alone = found_by(method, lambda p, h, b, r=r: each(p, h, b)[r])
        assert_trees({n: v[r] for n, v in several.hyper_grads.items()}, alone.hyper_grads, 1e-10)
        assert_trees({n: v[r] for n, v in several.grads.items()}, alone.grads, 1e-10)


@methods
def test_two_examples_and_a_quadratic(method: str) -> None:
    """θ' = θ − η Σ_i w_i (θ − t_i): θ_K and its derivatives in closed form."""
    t, w = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.3, 0.6]).double()
    theta, rate = torch.tensor(0.7).double(), 0.1

    def closed(w: Tensor, theta: Tensor) -> Tensor:
        total, centre = w.sum(), (w * t).sum() / w.sum()
        return 0.5 * (centre + (1 - rate * total) ** K * (theta - centre)) ** 2

    found = hyper_gradient(
        lambda p, h, b: 0.5 * (h * (p - t) ** 2).sum(), lambda p, h, b: 0.5 * p**2, theta, w,
        [None] * K, None, optimizer=sgd(rate), method=method,  # type: ignore[arg-type]
    )  # fmt: skip
    expected = torch.func.grad(closed, argnums=(0, 1))(w, theta)
    torch.testing.assert_close(found.hyper_grads, expected[0])
    torch.testing.assert_close(found.grads, expected[1])


def test_ridge_regression_has_the_influence_of_its_minimum() -> None:
    """Many steps of descent come to the minimum: −∂L_out/∂θ·(XᵀWX + λI)⁻¹·x_i (x_iᵀθ − y_i)."""
    x, y, w, ridge = noise(6, 2, seed=4), noise(6, seed=5), torch.ones(6).double(), 0.5
    q, target = noise(2, seed=6), 0.3

    def loss(p: Tensor, h: Tensor, b: Any) -> Tensor:
        return 0.5 * (h * (x @ p - y) ** 2).sum() + 0.5 * ridge * (p * p).sum()

    found = hyper_gradient(
        loss, lambda p, h, b: 0.5 * (q @ p - target) ** 2, torch.zeros(2).double(), w,
        lambda k: None, None, optimizer=sgd(0.05), steps=600,
    )  # fmt: skip
    hessian = x.T @ x + ridge * torch.eye(2)
    theta = torch.linalg.solve(hessian, x.T @ y)
    slope = q * (q @ theta - target)
    each_grad = x * (x @ theta - y)[:, None]
    expected = -each_grad @ torch.linalg.solve(hessian, slope)
    torch.testing.assert_close(found.hyper_grads, expected, rtol=1e-8, atol=1e-10)
    assert float(found.grads.abs().max()) < 1e-8


def test_a_convolution_with_norm_against_finite_differences() -> None:
    net = Conv4((1, 8, 8), 2, filters=2).double()
    apply, params, buffers = functionalize(net)
    x, y = noise(4, 1, 8, 8, seed=1), torch.tensor([0, 1, 0, 1])
    weights, along = torch.ones(4).double(), noise(4, seed=3)

    def loss(p: Any, h: Any, b: Any) -> Tensor:
        return (h * F.cross_entropy(apply(p, buffers, x), y, reduction="none")).mean()

    def test(p: Any, h: Any, b: Any) -> Tensor:
        return F.cross_entropy(apply(p, buffers, x.flip(-1)), y)

    def run(h: Tensor) -> HyperGradient:
        return hyper_gradient(
            loss, test, params, h, lambda k: None, None, optimizer=adam(0.02), steps=5
        )

    size = 1e-5
    ends = [run(weights + s * size * along).loss for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * size)
    torch.testing.assert_close(run(weights).hyper_grads @ along, expected, rtol=1e-6, atol=1e-9)


def test_inside_a_vmap_over_members_it_is_a_loop() -> None:
    params = [start(seed) for seed in (0, 20, 40)]
    stacked = {n: torch.stack([p[n] for p in params]) for n in params[0]}

    def of(p: Any) -> HyperGradient:
        return hyper_gradient(
            inner, each, p, HYPER, batch, OUTER,
            optimizer=adam(0.05), steps=4, frozen="unmoved",
        )  # fmt: skip

    found = torch.vmap(of)(stacked)
    for m, one in enumerate(params):
        alone = of(one)
        assert_trees({n: v[m] for n, v in found.grads.items()}, alone.grads, 1e-9)
        assert_trees({n: v[m] for n, v in found.hyper_grads.items()}, alone.hyper_grads, 1e-9)
        torch.testing.assert_close(found.loss[m], alone.loss)


def test_removing_an_example_is_a_weight_of_zero_where_the_loss_is_a_sum() -> None:
    def total(p: Any, h: Any, which: Tensor) -> Tensor:
        losses = F.cross_entropy(network(p, X[which]), Y[which], reduction="none")
        return (h[which] * losses).sum()

    weights = torch.ones(N).double()
    without = weights.clone()
    without[5] = 0
    settings: dict[str, Any] = {"optimizer": sgd(0.05), "steps": 4}
    kept = torch.tensor([i for i in range(N) if i != 5])
    everything = torch.arange(N)
    by_weight = hyper_gradient(
        total, outer_alone, start(), without, lambda k: everything, OUTER, **settings
    )
    removed = hyper_gradient(
        total, outer_alone, start(), weights, lambda k: kept, OUTER, **settings
    )
    assert_trees(by_weight.params, removed.params, 1e-12)
    torch.testing.assert_close(by_weight.hyper_grads[kept], removed.hyper_grads[kept])
    assert removed.hyper_grads[5] == 0 and by_weight.hyper_grads[5] != 0


def outer_alone(params: Any, hyper: Any, test: Any) -> Tensor:
    return F.cross_entropy(network(params, test[0]), test[1])


def test_truncated_to_the_whole_run_is_exact_and_less_is_a_part_of_it() -> None:
    exact = found_by()
    whole = found_by("truncated", truncation=K)
    assert_trees(whole.hyper_grads, exact.hyper_grads, 0)
    last = found_by("truncated", truncation=1)
    before = found_by(steps=K - 1)
    one = hyper_gradient(
        inner, outer, before.params, HYPER, lambda k: batch(K - 1), OUTER,
        optimizer=sgd(0.3), steps=1, frozen="unmoved",
    )  # fmt: skip
    assert_trees(last.hyper_grads, one.hyper_grads, 1e-12)
    assert_trees(last.grads, one.grads, 1e-12)


def test_first_order_takes_inner_gradients_as_constants() -> None:
    rates = learnt([0.4 / (k + 1) for k in range(K)])
    found = found_by("first_order", optimizer=sgd(rates))
    torch.testing.assert_close(found.hyper_grads["decay"], torch.tensor(0.1).double())
    assert not found.hyper_grads["weights"].any()
    ends = {n: v.clone().requires_grad_() for n, v in found.params.items()}
    direct = torch.autograd.grad(outer(ends, HYPER, OUTER), list(ends.values()))
    assert_trees(found.grads, dict(zip(ends, direct)), 1e-12)
    values = start()
    for k in range(K):  # ∂θ_K/∂η_k = −g_k
        own = {n: v.clone().requires_grad_() for n, v in values.items()}
        moving = [n for n in own if n != "unmoved"]
        grads = torch.autograd.grad(inner(own, HYPER, batch(k)), [own[n] for n in moving])
        expected = -sum((g * found.grads[n]).sum() for n, g in zip(moving, grads))
        torch.testing.assert_close(found.optimizer_grads[k], expected)
        moved = {n: values[n] - rates[k].detach() * g for n, g in zip(moving, grads)}
        values = {**values, **moved}


def test_the_optimiser_may_be_all_that_learns() -> None:
    rate = learnt(0.2)
    found = hyper_gradient(
        lambda p, h, b: ((p - b) ** 2).sum(), lambda p, h, b: (p**2).sum(), noise(3), (),
        [noise(3, seed=k) for k in range(4)], None, optimizer=sgd(rate),
    )  # fmt: skip
    assert found.hyper_grads == () and found.optimizer_grads.shape == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "exact"}, "method='exact': one of auto, reverse, mixed, truncated"),
        ({"steps": 0}, "steps=0: a whole number of at least 1"),
        ({"steps": None}, "steps=None: the number of steps is needed where batches are a functi"),
        ({"batches": [], "steps": None}, "inner_batches='no batch': at least one step"),
        ({"batches": [0, 1], "steps": 3}, "steps=3: None is needed, or 2, as many as batches"),
        ({"batches": iter([0])}, "inner_batches='list_iterator': a sequence of batches, or a"),
        ({"batches": lambda k: torch.rand(2)}, "inner_batches='another batch of step 0': a funct"),
        ({"batches": lambda: 0}, "inner_batches=.*a function that takes 1 such argument"),
        ({"memory": 3}, r"memory=3: at least \d+ bytes, those of one state"),
        ({"method": "reverse", "memory": "1GB"}, "memory='1GB': None is needed with method='rever"),
        ({"truncation": 3}, "truncation=3: method='truncated' is needed"),
        ({"method": "truncated"}, "truncation=None: a number of steps, 1 to 7"),
        ({"method": "truncated", "truncation": 8}, "truncation=8: a whole number of at most 7|8"),
        ({"outer_loss": lambda p, h, b: torch.ones(())}, "outer_loss='nothing of them in it'"),
        ({"outer_loss": lambda p, h, b: torch.ones(2, 2)}, r"outer_loss=\[2, 2\]: a scalar, or"),
        ({"outer_loss": lambda p, h, b: 1.0}, "outer_loss='float': a scalar, or a vector"),
        ({"state": ()}, "state=.*the state that a run with this optimiser"),
        ({"frozen": "nothing"}, "frozen='nothing'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"optimizer": sgd(0.3, momentum=0.9), **changes}
    with pytest.raises(SettingError, match=message):
        found_by(given.pop("method", "auto"), given.pop("outer_loss", outer), **given)


def test_an_inner_loss_without_the_parameters_is_refused() -> None:
    with pytest.raises(SettingError, match="loss_fn|inner_loss"):
        hyper_gradient(
            lambda p, h, b: h.sum(), lambda p, h, b: p.sum(), noise(3), noise(2), [None], None,
            optimizer=sgd(0.1),
        )  # fmt: skip
