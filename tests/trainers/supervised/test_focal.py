"""The focal loss against its formula, its limits, and in every trainer that takes a loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, vmap

from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.trainers import EnsembleTrainer, FocalLoss, HyperTrainer, PerSampleTrainer
from metalearn.trainers.supervised.losses import chosen_loss
from tests.support.small_data import blobs, waves


def by_hand(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    rows = []
    for row, label in zip(logits.tolist(), labels.tolist()):
        total = sum(math.exp(z) for z in row)
        p = math.exp(row[label]) / total
        rows.append(-((1 - p) ** gamma) * math.log(p))
    return torch.tensor(rows, dtype=torch.float64)


def problem() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(7, 4, generator=draws, dtype=torch.float64), torch.arange(7) % 4


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1, 2.0, 5.0])
def test_formula_and_gradient(gamma: float) -> None:
    logits, labels = problem()
    loss = FocalLoss(gamma)
    torch.testing.assert_close(loss(logits, labels), by_hand(logits, labels, gamma))
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels), logits)


def test_without_gamma_it_is_the_cross_entropy_to_the_bit() -> None:
    logits, labels = (part for part in problem())
    single = logits.float()
    expected = -single.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    assert torch.equal(FocalLoss(0)(single, labels), expected)
    torch.testing.assert_close(expected, F.cross_entropy(single, labels, reduction="none"))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_gradients_are_finite_where_the_class_is_certain(gamma: float) -> None:
    def loss(row: Tensor) -> Tensor:
        return FocalLoss(gamma)(row, torch.tensor(0))

    for row in (torch.tensor([90.0, -90.0, 0.0]), torch.tensor([-90.0, 90.0, 0.0])):
        assert torch.isfinite(loss(row))
        assert torch.isfinite(grad(loss)(row)).all() and torch.isfinite(hessian(loss)(row)).all()


def test_vmapped_it_is_a_loop() -> None:
    logits, labels = problem()
    stacked = torch.stack([logits, 2 * logits])
    found = vmap(FocalLoss(1.5), in_dims=(0, None))(stacked, labels)
    torch.testing.assert_close(found, torch.stack([FocalLoss(1.5)(z, labels) for z in stacked]))
    torch.testing.assert_close(FocalLoss(1.5)(stacked, labels.expand(2, -1)), found)


@pytest.mark.parametrize(
    ("loss", "gamma"),
    [("focal", 2.0), ({"name": "focal"}, 2.0), ({"name": "focal", "gamma": 0.7}, 0.7)],
)
def test_names_and_settings(loss: Any, gamma: float) -> None:
    logits, labels = problem()
    found = chosen_loss(loss, blobs())
    assert found.name == "focal" and found.widths == (3,)
    torch.testing.assert_close(found.each(logits, labels), by_hand(logits, labels, gamma))
    torch.testing.assert_close(found.mean(logits, labels), by_hand(logits, labels, gamma).mean())
    assert chosen_loss({"name": "mse"}, waves()).name == "mse"


FEW: dict[str, Any] = {"steps": 3, "batch_size": 16, "progress": False, "deterministic": True}


def tiny(seed: int = 0) -> MLP:
    return MLP((2,), 3, hidden=(4,), seed=seed)


@pytest.mark.parametrize("loss", ["focal", {"name": "focal", "gamma": 0.5}])
def test_every_trainer_takes_it(loss: Any) -> None:
    own = FocalLoss(2.0 if loss == "focal" else 0.5)
    made = [
        lambda loss: EnsembleTrainer(Ensemble.from_modules([tiny()]), blobs(), loss=loss, **FEW),
        lambda loss: PerSampleTrainer(tiny(), blobs(), loss=loss, **FEW),
    ]
    for make in made:
        ends = []
        for given in (loss, own, "cross_entropy"):
            trainer = make(given)
            trainer.fit()
            ends.append(torch.cat([p.detach().flatten() for p in trainer.module.parameters()]))
        assert torch.equal(ends[0], ends[1])
        assert not torch.allclose(ends[0], ends[2])
    inner = {"steps": 2, "batch_size": 16}
    hyper = HyperTrainer(tiny(), blobs(), loss=loss, inner=inner, steps=1, progress=False)
    hyper.fit()
    assert math.isfinite(hyper.test().headline()["test/accuracy"])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"gamma": 1.0}, r"loss=\{'gamma': 1.0\}: the name of a loss is needed"),
        ({"name": "focal", "gamma": -1}, r"loss.gamma=-1: a finite number of at least 0"),
        ({"name": "focal", "gama": 1.0}, r"loss.gama=1.0: there is no such setting; did you mean"),
        ({"name": "focl"}, "loss='focl': cross_entropy, gaussian_nll, mse, focal,"),
        ({"name": "cross_entropy", "gamma": 1}, "loss=.*: cross_entropy has no settings"),
        ({"name": "mse"}, "loss='mse': cross_entropy, focal or a function is needed"),
        (FocalLoss, "loss=.*: a function is needed, as FocalLoss"),
    ],
)
def test_what_cannot_work_is_one_sentence(loss: Any, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        chosen_loss(loss, blobs())


def test_real_targets_have_none() -> None:
    with pytest.raises(SettingError, match="loss='focal': gaussian_nll, mse or a function"):
        chosen_loss("focal", waves())
