"""Closed forms, trees, models that vmap cannot take, and what is refused.

What holds for every method, optimiser and number of steps is in tests/contracts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import along_adaptation, functionalize, meta_gradient, sgd
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support import oracles
from tests.support.oracles import Problem, assert_trees

methods = pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
engines = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])


# --- closed forms ----------------------------------------------------------------------------


@engines
def test_one_step_of_w_squared_x(engine: str) -> None:
    """y = w² x: w' = w (1 − 2αx); dL/dw = 2w'x · dw'/dw, the last factor 1 in first order."""
    alpha, w = 0.1, 1.5
    x = torch.tensor([[0.5], [2.0], [-1.0]], dtype=torch.float64)
    slope = 1 - 2 * alpha * x.squeeze(1)
    closed = {
        "reverse": slope**2 * 2 * w * x.squeeze(1),
        "first_order": 2 * w * x.squeeze(1) * slope,
    }
    for method, expected in closed.items():
        for chosen in (slice(None), slice(0, 1)):
            grads = meta_gradient(
                lambda params, batch: (params["w"] ** 2 * batch).mean(),
                {"w": torch.tensor(w, dtype=torch.float64)}, TaskBatch(x[chosen], x[chosen]),
                optimizer=sgd(alpha), steps=1, method=method, engine=engine,
            ).grads  # fmt: skip
            assert float(grads["w"]) == pytest.approx(float(expected[chosen].mean()), abs=1e-6)


@engines
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_quadratic_bowls(engine: str, steps: int) -> None:
    """L = ½‖θ − c‖² with support centre s and query centre q.

    θ_K − s = r (θ − s) with r = (1 − α)^K, so the query gradient at θ_K is s − q + r (θ − s); the
    chain rule gives one more r. Support losses are ½ (1 − α)^{2k} ‖θ − s‖².
    """
    alpha, theta = 0.3, torch.tensor([1.0, -2.0], dtype=torch.float64)
    s = torch.randn(3, 2, generator=oracles.generator(1), dtype=torch.float64)
    q = torch.randn(3, 2, generator=oracles.generator(2), dtype=torch.float64)
    r = (1 - alpha) ** steps
    at_end = s - q + r * (theta - s)
    for method, factor in (("reverse", r), ("first_order", 1.0)):
        result = meta_gradient(
            lambda params, c: 0.5 * (params - c).square().sum(), theta, TaskBatch(s, q),
            optimizer=sgd(alpha), steps=steps, method=method, engine=engine,
        )  # fmt: skip
        torch.testing.assert_close(result.grads, (factor * at_end).mean(0))
        torch.testing.assert_close(result.query_losses, 0.5 * at_end.square().sum(1))
        powers = torch.tensor([(1 - alpha) ** (2 * k) for k in range(steps)], dtype=torch.float64)
        expected = 0.5 * (theta - s).square().sum(1, keepdim=True) * powers
        torch.testing.assert_close(result.support_losses, expected)


# --- trees -----------------------------------------------------------------------------------


class Affine(NamedTuple):
    scale: Tensor
    shift: Tensor


@methods
@engines
def test_nested_trees_keep_their_shape(method: str, engine: str) -> None:
    w, b, spare = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 1.0], 0.2, 3.0))
    nested = {"layers": [Affine(w, b), (spare,)]}
    x = torch.randn(2, 4, 2, generator=oracles.generator(0), dtype=torch.float64)

    def flat_loss(params: Any, batch: Tensor) -> Tensor:
        return ((batch * params["w"] + params["b"]).tanh() - 0.3).square().mean()

    def loss_fn(params: Any, batch: dict[str, list[Tensor]]) -> Tensor:
        layer = params["layers"][0]
        return flat_loss({"w": layer.scale, "b": layer.shift}, batch["inputs"][0])

    tasks = TaskBatch({"inputs": [x]}, {"inputs": [x + 1]})
    grads = meta_gradient(
        loss_fn, nested, tasks, optimizer=sgd(0.4), steps=2, method=method, engine=engine
    ).grads
    expected = oracles.maml(
        Problem(flat_loss, {"w": w, "b": b}, TaskBatch(x, x + 1)),
        oracles.sgd_rule(0.4), 2, first_order=method == "first_order",
    )[0]  # fmt: skip
    layer, (zero,) = grads["layers"]
    assert isinstance(layer, Affine) and float(zero) == 0.0
    assert_trees({"w": layer.scale, "b": layer.shift}, expected)


@methods
@engines
def test_parameters_that_only_the_support_or_only_the_query_uses(method: str, engine: str) -> None:
    params = {name: torch.tensor(v, dtype=torch.float64) for name, v in (("a", 1.0), ("b", 2.0))}
    side = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def loss_fn(p: Any, is_support: Tensor) -> Tensor:
        return is_support * p["a"] ** 2 + (1 - is_support) * p["b"] ** 2

    grads = meta_gradient(
        loss_fn, params, TaskBatch(side[:1], side[1:]),
        optimizer=sgd(0.1), steps=1, method=method, engine=engine,
    ).grads  # fmt: skip
    assert float(grads["a"]) == 0.0 and float(grads["b"]) == pytest.approx(4.0)


class Tied(nn.Module):
    """Encoder and decoder are one weight; a buffer scales the code; a keyword shifts it."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decode.weight = self.encode.weight
        self.register_buffer("gain", torch.tensor(1.5))

    def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)) * self.gain + shift)


@methods
@engines
def test_tied_weights_buffers_and_keywords(method: str, engine: str) -> None:
    apply, params, buffers = functionalize(oracles.draw(Tied()), vectorize=engine != "loop")
    x = torch.randn(2, 2, 4, 3, generator=oracles.generator(0), dtype=torch.float64)

    def loss_fn(p: Any, batch: Tensor) -> Tensor:
        return (apply(p, buffers, batch, shift=0.5) - batch).square().mean()

    def by_hand(p: Any, batch: Tensor) -> Tensor:
        code = (batch @ p["encode.weight"].T + p["encode.bias"]).tanh() * 1.5 + 0.5
        return (code @ p["encode.weight"].T + p["decode.bias"] - batch).square().mean()

    tasks = TaskBatch(x[0], x[1])
    grads = meta_gradient(
        loss_fn, params, tasks, optimizer=sgd(0.2), steps=2, method=method, engine=engine
    ).grads
    expected = oracles.maml(
        Problem(by_hand, params, tasks), oracles.sgd_rule(0.2), 2,
        first_order=method == "first_order",
    )[0]  # fmt: skip
    assert set(params) == {"encode.weight", "encode.bias", "decode.bias"}
    assert_trees(grads, expected)


@methods
@engines
def test_a_learning_rate_that_requires_gradients_still_gives_detached_results(
    method: str, engine: str
) -> None:
    case = oracles.classification(oracles.mlp(), (2,))
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    settings = {"steps": 2, "method": method, "engine": engine}
    result = meta_gradient(*case, optimizer=sgd(lr), **settings)
    plain = meta_gradient(*case, optimizer=sgd(0.3), **settings)
    assert_trees({k: v.detach() for k, v in result.grads.items()}, plain.grads, 1e-12)
    assert [name for name, value in result.grads.items() if value.requires_grad] == []
    assert not result.loss.requires_grad and not result.support_losses.requires_grad


# --- models that vmap cannot take ------------------------------------------------------------


class Cube(torch.autograd.Function):
    """The old style, with ``ctx`` in forward and no setup_context: torch.func refuses it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return upstream * 3 * x**2


def branching(z: Tensor) -> Tensor:
    return z.tanh() if z.sum() > 0 else z**2


def reading(z: Tensor) -> Tensor:
    return z.tanh() * (1 + abs(z[0].detach().item()))


def recurrent() -> Problem:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    return oracles.classification(oracles.draw(Net()), (3, 2), vectorize=False)


def plain(function: Any) -> Problem:
    x = torch.randn(2, 3, 4, generator=oracles.generator(0), dtype=torch.float64)
    w = torch.tensor([0.5, -0.3, 0.8, 0.1], dtype=torch.float64)
    return Problem(lambda p, batch: function(batch @ p["w"]).mean(), {"w": w}, TaskBatch(x, x + 1))


AWKWARD = {
    "python_branch": lambda: plain(branching),
    "item": lambda: plain(reading),
    "old_style_function": lambda: plain(Cube.apply),
    "lstm": recurrent,
}


@methods
@pytest.mark.parametrize("kind", AWKWARD)
def test_the_plain_loop_takes_what_vmap_cannot(method: str, kind: str) -> None:
    case = AWKWARD[kind]()
    result = meta_gradient(*case, optimizer=sgd(0.1), steps=2, method=method, engine="loop")
    grads, queries, supports = oracles.maml(
        case, oracles.sgd_rule(0.1), 2, first_order=method == "first_order"
    )
    assert_trees(result.grads, grads)
    torch.testing.assert_close(result.query_losses, queries)
    torch.testing.assert_close(result.support_losses, supports)
    if kind != "lstm":
        with pytest.raises(RuntimeError):
            meta_gradient(*case, optimizer=sgd(0.1), steps=2, method=method)


@pytest.mark.parametrize("steps", [1, 2])
def test_attention_in_second_order_equals_finite_differences(steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0].mean(1)

    for mode in (True, False):
        case = oracles.classification(oracles.draw(Net()).train(mode), (3, 2))
        grads = meta_gradient(*case, optimizer=sgd(0.5), steps=steps).grads
        expected = oracles.finite_difference_maml(case, oracles.sgd_rule(0.5), steps)
        assert_trees(grads, expected, 1e-7)


# --- along_adaptation -------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 9])
@pytest.mark.parametrize("steps", [0, 2])
def test_along_adaptation_visits_every_point(
    engine: str, chunk_size: int | None, steps: int
) -> None:
    """θ ← θ − α·(θ − s) on L = ½‖θ − s‖²: θ_k − s = (1 − α)^k (θ − s)."""
    support, query = torch.arange(6.0).reshape(3, 2), torch.arange(3.0).reshape(3, 1)
    theta = torch.tensor([2.0, -1.0])
    found = along_adaptation(
        lambda p, s, q: {"point": p * 1, "pair": (s, q[0])},
        lambda p, c: 0.5 * (p - c).square().sum(), theta, TaskBatch(support, query),
        optimizer=sgd(0.25), steps=steps, engine=engine, chunk_size=chunk_size,
    )  # fmt: skip
    powers = torch.tensor([0.75**k for k in range(steps + 1)])[None, :, None]
    expected = support[:, None] + powers * (theta - support)[:, None]
    torch.testing.assert_close(found["point"], expected)
    assert torch.equal(found["pair"][0], support[:, None].expand(-1, steps + 1, -1))
    assert torch.equal(found["pair"][1], query.expand(-1, steps + 1))
    assert not found["point"].requires_grad


# --- what is refused -------------------------------------------------------------------------

ONE, TWO, NONE = torch.ones(1, 3), torch.ones(2, 3), torch.ones(0, 3)


@engines
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": TaskBatch(ONE, TWO)}, r"^tasks=\[1, 2\]: every leaf of support and query"),
        ({"tasks": TaskBatch((TWO, ONE), TWO)}, r"^tasks=\[1, 2\]: every leaf"),
        ({"tasks": TaskBatch(NONE, NONE)}, r"^tasks=\[0\]: .*leading task axis of at least 1"),
        ({"tasks": TaskBatch(torch.ones(()), ONE)}, r"^tasks=.*leading task axis"),
        ({"params": {"w": torch.ones(2).long()}}, r"^params\[w\]=torch\.int64: a floating-point"),
        ({"steps": -1}, r"^steps=-1: a whole number of at least 0"),
        (
            {"method": "fomaml"},
            r"^method='fomaml': one of auto, reverse, mixed, first_order, implicit, reptile ",
        ),
        ({"chunk_size": 0}, r"^chunk_size=0: a whole number of at least 1"),
        ({"chunk_size": -2}, r"^chunk_size=-2: a whole number of at least 1"),
        ({"chunk_size": 1.5}, r"^chunk_size=1\.5: a whole number of at least 1"),
        ({"frozen": "head.*"}, r"^frozen='head\.\*': a pattern that matches a parameter of w"),
        ({"frozen": ["w", "v"]}, r"^frozen='v': a pattern that matches a parameter of w"),
        ({"frozen": "head.*", "steps": 0}, r"^frozen='head\.\*': a pattern that matches"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str, engine: str) -> None:
    settings = {
        "params": {"w": torch.ones(3)}, "tasks": TaskBatch(ONE, ONE), "steps": 1,
        "optimizer": sgd(0.1), "engine": engine, **changes,
    }  # fmt: skip
    with pytest.raises(SettingError, match=message):
        meta_gradient(lambda p, x: (p["w"] * x).sum(), **settings)
