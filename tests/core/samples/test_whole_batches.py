"""Losses that are run on a whole batch at once, and those that must not be.

Axes: N samples, S positions.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from metalearn.core import clipped_gradient, functionalize, per_sample_norms
from metalearn.core.samples import structure
from metalearn.core.samples.layouts import Layout, layouts_of
from metalearn.core.samples.outer_products import norms_of_products
from metalearn.core.samples.whole_batch import BatchCalls
from tests.support.networks import CASES, Case, case, tiny_bert, tiny_gpt2
from tests.support.oracles import assert_trees, draw, generator
from tests.support.sample_oracles import noise

close = torch.testing.assert_close
Loss = Callable[[Any, Any], Tensor]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of samples that were taken at once, after a trial."""
    taken: list[int] = []
    plain = structure.collect_whole

    def spy(loss: Any, params: Any, batch: Any, *rest: Any) -> Any:
        found = plain(loss, params, batch, *rest)
        taken.append(len(found.losses))
        return found

    monkeypatch.setattr(structure, "collect_whole", spy)
    return taken


def assert_as_looped(loss: Loss, params: Any, batch: Any, max_norm: float = 0.3) -> None:
    exact = clipped_gradient(loss, params, batch, max_norm=max_norm, method="loop")
    found = clipped_gradient(loss, params, batch, max_norm=max_norm)
    close(found.losses, exact.losses, equal_nan=True)
    close(found.norms, exact.norms, equal_nan=True)
    if found.norms.isfinite().all():
        assert_trees(found.grads, exact.grads)
        close(per_sample_norms(loss, params, batch), exact.norms)


@pytest.mark.parametrize("name", list(CASES))
def test_networks_are_taken_at_once(name: str, at_once: list[int]) -> None:
    loss, params, batch, _ = case(name)
    assert_as_looped(loss, params, batch)
    assert at_once == [4, 4]
    assert_as_looped(loss, params, tuple(x[:3] for x in batch))


@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt2])
def test_transformers_are_taken_at_once(build: Callable[[], Case], at_once: list[int]) -> None:
    pytest.importorskip("transformers")
    loss, params, batch, _ = build()
    assert_as_looped(loss, params, batch)
    assert at_once == [3, 3]


class Written(nn.Module):
    """Activations that write into views, a table of positions, attention with samples inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.places = nn.Linear(3, 4), nn.ReLU(True), nn.Embedding(5, 4)
        self.mix, self.head = nn.MultiheadAttention(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x)) + self.places(torch.arange(x.shape[1])[None])
        x = x.transpose(0, 1)
        x = x + self.mix(x, x, x, need_weights=False)[0]
        return self.head(x.mean(0))


def _module_loss(module: nn.Module, criterion: Callable[..., Tensor]) -> tuple[Loss, Any]:
    apply, params, buffers = functionalize(draw(module))
    return lambda p, batch: criterion(apply(p, buffers, batch[0]), batch[1]), params


def test_what_writes_and_what_no_sample_changes(at_once: list[int]) -> None:
    loss, params = _module_loss(Written(), F.cross_entropy)
    assert_as_looped(loss, params, (noise(6, 5, 3), torch.arange(6) % 2))
    assert at_once == [6, 6]


PARAMS = {"w": noise(4, 3), "b": noise(4)}
X, LABELS = noise(6, 3, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
WEIGHTS = noise(4).abs()


def logits(params: Any, x: Tensor) -> Tensor:
    return F.linear(x, params["w"], params["b"])


def of_logits(criterion: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda params, batch: criterion(logits(params, batch[0]), batch[1])


MIXED: dict[str, Loss] = {
    "mean": of_logits(F.cross_entropy),
    "smoothed": of_logits(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1)),
    "sum": of_logits(lambda z, y: F.cross_entropy(z, y, reduction="sum")),
    "sum, class weights": of_logits(
        lambda z, y: F.cross_entropy(z, y, WEIGHTS, reduction="sum")),
    "probabilities": of_logits(lambda z, y: F.cross_entropy(z, F.one_hot(y, 4).double() * 0.9)),
    "nll": of_logits(lambda z, y: F.nll_loss(z.log_softmax(1), y)),
    "squares": of_logits(lambda z, y: F.mse_loss(z, F.one_hot(y, 4).double())),
    "huber and mean": of_logits(
        lambda z, y: F.huber_loss(z, 0.1 * z**2) + 0.1 * z.sin().mean() + z.logsumexp(1).sum()),
    "maximum": of_logits(lambda z, y: (z / z.max()).square().mean()),
    "less the mean": of_logits(lambda z, y: F.cross_entropy(z - z.mean(0), y)),
    "sums": of_logits(lambda z, y: (z + z.cumsum(0)).square().mean()),
    "others": of_logits(lambda z, y: (z + z.roll(1, 0)).square().mean()),
    "sorted": of_logits(lambda z, y: (z.sort(0).values * torch.arange(4)).sin().mean()),
    "pairs": of_logits(lambda z, y: (z @ z.T).square().mean()),
    "softmax over the batch": of_logits(lambda z, y: (z.softmax(0) + z).square().mean()),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_what_would_mix_samples_is_taken_of_each(name: str, at_once: list[int]) -> None:
    loss = MIXED[name]
    assert_as_looped(loss, PARAMS, (X, LABELS))
    assert_as_looped(loss, PARAMS, (X[1:].flip(0), LABELS[1:]))
    assert at_once == [6, 6, 5, 5]


def by_place(z: Tensor) -> Tensor:
    table = torch.linspace(0, 1, 6, dtype=z.dtype)
    return z * table[: len(z), None]


def in_two_ways(z: Tensor) -> Tensor:
    return z if len(z) < 4 else 2 * z


COUNTED: dict[str, Loss] = {
    "over their number": of_logits(lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(z)),
    "by place": of_logits(lambda z, y: F.cross_entropy(by_place(z), y)),
    "few otherwise": of_logits(lambda z, y: F.cross_entropy(in_two_ways(z), y)),
    "indexed": of_logits(lambda z, y: z.log_softmax(1)[torch.arange(len(z)), y].mean()),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_depends_on_number_or_place_is_not_taken_at_once(
    name: str, at_once: list[int]
) -> None:
    loss = COUNTED[name]
    for _ in range(3):
        assert_as_looped(loss, PARAMS, (X, LABELS))
    assert not at_once


def test_statistics_of_the_batch_are_not_taken_at_once(at_once: list[int]) -> None:
    loss, params = _module_loss(
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(),
            nn.Linear(8, 3),
        ),
        F.cross_entropy,
    )  # fmt: skip
    assert_as_looped(loss, params, (noise(5, 1, 4, 4), torch.arange(5) % 3))
    assert not at_once


def test_ignored_labels_that_the_trial_has_not_met(at_once: list[int]) -> None:
    """A mean over a batch's words is no mean over samples; each sample has its own."""

    def loss(params: Any, batch: Any) -> Tensor:
        z = logits(params, batch[0])
        return F.cross_entropy(z.flatten(0, 1), batch[1].flatten(), ignore_index=-1)

    x, labels = noise(6, 5, 3), torch.randint(4, (6, 5), generator=generator(0))
    assert_as_looped(loss, PARAMS, (x, labels))
    labels[0, 1:] = -1
    labels[2, :2] = -1
    assert_as_looped(loss, PARAMS, (x, labels))
    labels[4] = -1  # its loss is not a number
    assert_as_looped(loss, PARAMS, (x, labels))
    assert at_once == [6] * 6


def test_a_loss_that_does_otherwise_after_the_trial(at_once: list[int]) -> None:
    """Other numbers, other operations, statistics of the batch in the place of given ones."""
    state = {"slope": 1.0, "square": False, "training": False}
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()

    def loss(params: Any, batch: Any) -> Tensor:
        z = F.leaky_relu(logits(params, batch[0]), state["slope"])[:, :, None].expand(-1, -1, 2)
        given = (None, None) if state["training"] else (mean, variance)
        z = F.batch_norm(z * torch.tensor([1.0, 2.0]), *given, training=state["training"])[..., 0]
        return F.cross_entropy(z.square() if state["square"] else z, batch[1])

    assert_as_looped(loss, PARAMS, (X, LABELS))
    assert at_once.pop() == 6
    for change in ({"slope": 0.1}, {"square": True}, {"training": True}):
        state.update(change)
        at_once.clear()
        assert_as_looped(loss, PARAMS, (X, LABELS))


def test_samples_that_could_be_taken_for_each_other_are_not_tried(at_once: list[int]) -> None:
    loss = of_logits(lambda z, y: (z + z.flip(0)).square().mean())
    assert_as_looped(loss, PARAMS, (X[:1].expand(6, 3), LABELS[:1].expand(6)))
    assert not at_once
    assert_as_looped(loss, PARAMS, (X, LABELS))
    assert at_once == [6, 6]


def test_transforms_and_further_derivatives_go_by_vmap(at_once: list[int]) -> None:
    loss, batch = of_logits(F.cross_entropy), (X, LABELS)
    members = {k: torch.stack([v, 2 * v]) for k, v in PARAMS.items()}
    norms = vmap(lambda p: per_sample_norms(loss, p, batch))(members)
    graph = {k: v.clone().requires_grad_() for k, v in PARAMS.items()}
    assert per_sample_norms(loss, graph, batch).requires_grad and not at_once
    close(norms[0], per_sample_norms(loss, PARAMS, batch))
    assert at_once == [6]


def test_nothing_waits_for_the_garbage_collector() -> None:
    loss, params, batch, _ = case("attention")
    gc.collect()
    gc.disable()
    try:
        clipped_gradient(loss, params, batch, max_norm=1.0)
        assert not any(type(x) is BatchCalls for x in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize("layout", [Layout(None), Layout(0), Layout(1), Layout(1, inner=True)])
def test_where_samples_are(layout: Layout) -> None:
    one = torch.arange(3 * 2 * 5).view(3, 2, 5)
    if layout.axis is None:
        batch = one
    elif layout.inner:
        batch = one.permute(1, 2, 0).reshape(2, 15)
    else:
        batch = torch.cat(list(one), layout.axis)
    assert tuple(batch.shape) == layout.shape((2, 5), 3)
    assert torch.equal(layout.by_sample(batch, 3), one)
    assert layouts_of(batch, one) == [layout]
    assert layouts_of(batch + 1, one) == []


def test_norms_of_keys_of_tokens_that_are_nearly_the_same() -> None:
    """Gram matrices in float32, where the gradients of a sample's positions cancel."""
    left, right = noise(8, 16, 64), noise(8, 1, 64, seed=1) + 1e-3 * noise(8, 16, 64, seed=2)
    left = (left - left.mean(1, keepdim=True)).float()
    right = right.float()
    exact = (left.double().mT @ right.double()).flatten(1).square().sum(1)
    close(norms_of_products(left, right).double(), exact, rtol=1e-3, atol=0)
