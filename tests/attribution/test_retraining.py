"""Subsets retrained as one stack are each subset retrained alone."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.attribution import (
    brittleness,
    leave_out_changes,
    leave_top_out,
    linear_datamodeling_score,
    random_subsets,
    retrain_subsets,
)
from metalearn.data import Augmentation
from metalearn.errors import NonFiniteError, SettingError
from metalearn.models import MLP, Dropout
from metalearn.trainers.loop.stop_signal import Stopped
from metalearn.trainers.supervised.member_weights import ExampleWeights
from tests.support.alone import Precise, conv_network, mlp_network, train_alone
from tests.support.builders import assert_same, samples
from tests.support.small_data import waves

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
HOW: dict[str, Any] = {
    "steps": 9, "batch_size": 8, "schedule": "constant", "clip": None, "optimizer": SGD,
    "progress": False, "engine": "batched",
}  # fmt: skip


def targets_of(data: Any, count: int = 4) -> tuple[Tensor, Tensor]:
    x, y = data.part("test")
    return x[:count], y[:count]


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("make", [conv_network, mlp_network])
def test_every_subset_is_trained_as_if_alone(make: Any, engine: str) -> None:
    data = samples()
    weights = random_subsets(3, data.size("train"), leave_out=0.2).double()
    weights[1] *= 0.5
    network, (x, y) = make(3, dropout=0.3), targets_of(data)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = retrain_subsets(
        network, data, weights, (x, y), seeds=5, max_shift=1, **{**HOW, "engine": engine}
    )
    assert_same(dict(network.state_dict()), before)
    assert found.losses.shape == (3, 4) and found.outputs.shape == (3, 4, 3)
    for row in range(3):
        alone = make(3, dropout=0.3)
        for layer in alone.modules():
            if isinstance(layer, Dropout):
                layer.key.fill_(5 * 65537)
        train_alone(
            alone, data, 5, SGD, steps=9, weights=weights[row],
            augmentation=Augmentation(max_shift=1),
        )  # fmt: skip
        with torch.no_grad():
            outputs = alone.eval()(x)
        losses = F.cross_entropy(outputs, y, reduction="none")
        torch.testing.assert_close(found.outputs[row], outputs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.losses[row], losses, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", ["gaussian_nll", "mse", "own"])
def test_real_targets(loss: str) -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().sum(-1)

    each: Any = {
        "mse": lambda f, y: (f - y).square().mean(-1),
        "own": own,
        "gaussian_nll": lambda f, y: (
            -torch.distributions.Normal(f[:, :2], (f[:, 2:].exp() + 1e-6).sqrt())
            .log_prob(y)
            .sum(-1)
        ),
    }[loss]
    data = waves(2)
    weights = random_subsets(2, data.size("train"), leave_out=0.3).double()
    make = lambda: Precise(MLP((2,), 4 if loss == "gaussian_nll" else 2, hidden=(5,)), 1)  # noqa: E731
    x, y = targets_of(data)
    found = retrain_subsets(
        make(), data, weights, (x, y), loss=own if loss == "own" else loss, **HOW
    )
    for row in range(2):
        alone = make()
        train_alone(alone, data, 0, SGD, steps=9, weights=weights[row], criterion=each)
        losses = each(alone(x), y).detach()
        torch.testing.assert_close(found.losses[row], losses, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
def test_stacks_are_the_whole(at_once: int) -> None:
    data = samples()
    weights = random_subsets(5, data.size("train"), leave_out=0.2)
    own = {"lr": [0.1, 0.2, 0.05, 0.1, 0.3], "label_smoothing": {"low": 0.1, "high": 0.4}}
    given = (data, weights, targets_of(data))
    how = {**HOW, **own, "seeds": [1, 1, 2, 3, 2]}
    whole = retrain_subsets(mlp_network(0), *given, **how)
    parts = retrain_subsets(mlp_network(0), *given, at_once=at_once, **how)
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_little_memory_makes_several_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples()
    weights = random_subsets(5, data.size("train"), leave_out=0.2)
    given = (mlp_network(0), data, weights, targets_of(data))
    whole = retrain_subsets(*given, **HOW)
    size = sum(8 * p.numel() for p in given[0].parameters())
    sizes = []
    room = "metalearn.attribution.retraining"
    monkeypatch.setattr(f"{room}.memory_budget", lambda *a, **k: 2 * 6 * size)
    how = {**HOW, "memory": "1GB"}
    original = ExampleWeights.__init__

    def noted(self: Any, values: Tensor, *rest: Any) -> None:
        sizes.append(len(values))
        original(self, values, *rest)

    monkeypatch.setattr(ExampleWeights, "__init__", noted)
    parts = retrain_subsets(*given, **how)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-10, atol=1e-10)


def test_gradients_of_a_stack_keep_to_the_memory_that_is_given() -> None:
    data = samples()
    weights = random_subsets(5, data.size("train"), leave_out=0.2)
    given = (mlp_network(0), data, weights, targets_of(data))
    whole = retrain_subsets(*given, **HOW)
    few = retrain_subsets(*given, **{**HOW, "engine": "auto", "memory": "40kB"})
    torch.testing.assert_close(few.losses, whole.losses, rtol=1e-10, atol=1e-10)
    with pytest.raises(SettingError, match="memory='100 bytes': at least .* is needed"):
        retrain_subsets(*given, **{**HOW, "memory": 100})


def test_what_an_example_is_does_not_matter_where_it_is_left_out() -> None:
    data, other = samples(), samples()
    weights = torch.ones(2, data.size("train"))
    weights[:, 3] = 0
    out = int(data.splits["train"][3])
    other.inputs[out] = 255 - other.inputs[out]
    other.targets[out] = (other.targets[out] + 1) % 3
    one, two = (
        retrain_subsets(mlp_network(0), d, weights, targets_of(data), **HOW) for d in (data, other)
    )
    assert torch.equal(one.losses, two.losses)
    assert torch.equal(one.losses[0], one.losses[1])


def test_all_begin_alike_and_see_the_same_unless_seeds_differ() -> None:
    data = samples()
    weights = torch.ones(3, data.size("train"))
    given = (data, weights, targets_of(data))
    same = retrain_subsets(lambda seed: mlp_network(seed), *given, seeds=4, **HOW).losses
    torch.testing.assert_close(same[0].expand(3, -1), same, rtol=1e-12, atol=1e-12)
    network = retrain_subsets(mlp_network(4), *given, seeds=4, **HOW).losses
    torch.testing.assert_close(network, same, rtol=1e-12, atol=1e-12)
    mixed = retrain_subsets(mlp_network, *given, seeds=[4, 1, 4], **HOW).losses
    torch.testing.assert_close(mixed[[0, 2]], same[[0, 2]], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(mixed[1], same[1])


def test_an_average_of_the_weights_is_what_is_scored() -> None:
    data = samples()
    weights = torch.ones(1, data.size("train"))
    given = (mlp_network(0), data, weights, targets_of(data))
    plain = retrain_subsets(*given, **HOW)
    averaged = retrain_subsets(*given, average=0.9, **HOW)
    assert not torch.allclose(plain.losses, averaged.losses)


def test_leaving_out_what_was_scored_by_retraining_it_alone() -> None:
    """Scores that are the changes of retraining without one example foretell those of one."""
    data = waves(1)
    count = data.size("train")
    x, y = targets_of(data, 3)
    network = Precise(nn.Linear(2, 1), 0)
    how = {**HOW, "loss": "mse", "steps": 30, "batch_size": 12}
    without = torch.cat([torch.ones(1, count), 1 - torch.eye(count)])
    losses = retrain_subsets(network, data, without, (x, y), **how).losses
    scores = (losses[1:] - losses[0]).T
    again = retrain_subsets(network, data, leave_top_out(scores, [1, 3]), (x, y), **how)
    changes = leave_out_changes(scores, [1, 3], again.losses)
    torch.testing.assert_close(changes.changes[:, 0], changes.predicted[:, 0])
    assert (changes.changes > 0).all()
    weights = random_subsets(20, count, leave_out=0.05)
    outcomes = retrain_subsets(network, data, weights, (x, y), **how).losses
    assert linear_datamodeling_score(scores, weights, outcomes).mean > 0.9


def test_brittleness_of_classes() -> None:
    """Without the examples of a target's own class it is taken for another."""
    data = samples()
    x, y = targets_of(data, 12)
    y = torch.stack([y[0], y[-1]])
    x = torch.stack([x[0], x[-1]])
    labels = data.targets[data.splits["train"]]
    scores = (labels == y[:, None]).double()
    each = int((labels == y[0]).sum())
    counts = [1, each]
    found = retrain_subsets(
        mlp_network(0), data, leave_top_out(scores, counts), (x, y), **{**HOW, "steps": 60}
    )
    assert (found.outputs[0].argmax(1) == y).all()
    flips = brittleness(found.outputs, counts)
    assert flips.flipped[:, 1].all() and flips.share.tolist()[1] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.ones(30)}, r"shape of weights=\[30\]: \[M, N\] is needed"),
        ({"weights": torch.ones(0, 30)}, r"shape of weights=\[0, 30\]: \[M, N\] is needed"),
        ({"weights": torch.ones(2, 29)}, r"weights='\[2, 29\]': \[2, 30\] is needed"),
        ({"weights": -torch.ones(2, 30)}, r"weights=-1.0: finite numbers of at least 0"),
        ({"weights": [[1.0]]}, "weights=.*: a Tensor is needed"),
        ({"network": 3}, "network=3: a Module or a function is needed"),
        ({"network": lambda: 3}, "make='int for seed 0': a function that gives a torch.nn.Module"),
        ({"targets": torch.ones(3)}, "targets="),
        ({"targets": (torch.ones(2, 1, 4, 4), torch.zeros(3).long())}, r"shape of targets=\[3\]: "),
        ({"targets": (torch.ones(2, 4, 4), torch.zeros(2).long())}, "inputs of targets="),
        ({"targets": (torch.ones(0, 1, 4, 4), torch.zeros(0).long())}, r"inputs of targets="),
        ({"targets": (torch.ones(1, 1, 4, 4), torch.tensor([3]))}, r"target=3: a class in 0..2"),
        ({"seeds": [1]}, r"seeds=\[1\]: 2 are needed"),
        ({"seeds": -1}, r"seeds=-1: a whole number"),
        ({"at_once": 0}, "at_once=0: a whole number of at least 1"),
        ({"patience": 3}, "patience=3: there is no such setting"),
        ({"member_weights": None}, "member_weights=None: there is no such setting"),
        ({"folder": "x"}, "folder='x': there is no such setting"),
        ({"step": 3}, "step=3: there is no such setting; did you mean steps"),
        ({"steps": 0}, "steps=0: a whole number of at least 1"),
        ({"lr": [0.1]}, r"lr=\[0.1\]: 2 values are needed"),
        ({"loss": lambda f, y: F.cross_entropy(f, y)}, r"shape of loss=\[\]: losses \[2\], one"),
    ],
)  # fmt: skip
def test_what_cannot_be_retrained_gets_one_sentence(change: dict[str, Any], message: str) -> None:
    data = samples()
    given = {"weights": torch.ones(2, 30), "targets": targets_of(data), "network": mlp_network(0)}
    with pytest.raises(SettingError, match=f"^{message}") as caught:
        retrain_subsets(data=data, **{**HOW, **given, **change})
    assert "\n" not in str(caught.value)


def test_a_subset_that_diverges_is_named() -> None:
    data = samples()
    weights = torch.ones(4, data.size("train"))
    with pytest.raises(NonFiniteError, match="subsets: member 3 diverged"):
        retrain_subsets(
            MLP((1, 4, 4), 3, hidden=(8,)), data, weights, targets_of(data), at_once=2,
            **{**HOW, "optimizer": None, "lr": [0.1, 0.1, 0.1, 1e35]},
        )  # fmt: skip


def test_a_signal_ends_it_without_outcomes() -> None:
    data = samples()

    class Stopping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = mlp_network(0)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.network(x)

    with pytest.raises(Stopped):
        retrain_subsets(
            Stopping(), data, torch.ones(2, 30), targets_of(data), **{**HOW, "deterministic": True}
        )
