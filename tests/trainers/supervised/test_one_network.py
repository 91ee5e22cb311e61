"""Snapshots and SWAG against their iterates, schedules in closed form, what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.data import MemberBatches
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP, BatchEnsemble, Ensemble
from metalearn.trainers import (
    BatchEnsembleTrainer,
    EnsembleTrainer,
    MCDropoutTrainer,
    SnapshotTrainer,
    SWAGTrainer,
)
from metalearn.trainers.loop.protocols import Callback, Training
from tests.support.small_data import KINDS, blobs, network, trainer


def _iterates(made: EnsembleTrainer) -> list[dict[str, Tensor]]:
    """Parameters after every step of a run."""
    found: list[dict[str, Tensor]] = []

    class Noted(Callback):
        def after_update(self, loop: Training) -> None:
            state = made.ensemble.member(0).state_dict()
            found.append({name: value.clone() for name, value in state.items()})

    made.loop.callbacks = (*made.loop.callbacks, Noted())
    made.fit()
    return found


def _bare(seed: int) -> nn.Module:
    return MLP((2,), 3, hidden=(8,), seed=seed)


def _plain_loop(rates: list[float]) -> nn.Module:
    """SGD on the batches of seed 0, written out."""
    data, net = blobs(), _bare(0)
    batches = MemberBatches(data.splits["train"], batch_size=16, seeds=[0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step, rate in enumerate(rates):
        x, y = data.take(batches.indices(step))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        optimizer.step()
    return net


def test_snapshots_are_the_ends_of_cosine_cycles() -> None:
    made: Any = trainer(SnapshotTrainer, clip=None, model=Ensemble.from_factory(_bare, [0]))
    rates = [0.5 * (1 + math.cos(math.pi * (t % 4) / 4)) for t in range(12)]
    assert [made.rate(t) for t in range(12)] == pytest.approx(rates)
    assert made.rate(0) == made.rate(4) == made.rate(8) == 1.0
    iterates = _iterates(made)
    model = made.predictive()
    assert len(model) == len(made.snapshots) == 3
    for member, at in enumerate((3, 7, 11)):
        plain = _plain_loop(rates[: at + 1]).state_dict()
        for name, value in model.member(member).state_dict().items():
            torch.testing.assert_close(value, iterates[at][name])
            if "weight" in name or "bias" in name:
                torch.testing.assert_close(value, plain[name])


def test_swag_collects_after_every_epoch_from_start_on() -> None:
    made: Any = trainer(SWAGTrainer, steps=24, start=0.25)
    iterates = _iterates(made)
    chosen = [iterates[done - 1] for done in range(9, 25, 3)]  # 6 steps pass, then epochs of 3
    assert int(made.moments.iterates) == len(chosen) == 6
    for name, mean in made.moments.mean.items():
        values = torch.stack([iterate[name] for iterate in chosen])
        torch.testing.assert_close(mean, values.mean(0))
        spread = made.moments.squares[name] / 6
        torch.testing.assert_close(spread, values.var(0, correction=0), rtol=1e-3, atol=1e-7)


def test_the_rate_of_swag_falls_and_stays() -> None:
    made = trainer(SWAGTrainer, steps=24, start=0.5, final_rate=0.2)
    falling = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * t / 12)) for t in range(12)]
    assert [made.rate(t) for t in range(24)] == pytest.approx(falling + [0.2] * 12)
    still = trainer(SWAGTrainer, steps=24, start=0.5, final_rate=0.2, schedule="constant")
    assert [still.rate(t) for t in range(24)] == pytest.approx([1.0] * 12 + [0.2] * 12)
    line = trainer(SWAGTrainer, steps=24, start=0.5, final_rate=0.2, schedule="linear")
    falling = [0.2 + 0.8 * (1 - t / 12) for t in range(12)]
    assert [line.rate(t) for t in range(24)] == pytest.approx(falling + [0.2] * 12)


def test_swag_without_scale_is_the_mean_many_times() -> None:
    made: Any = trainer(SWAGTrainer, scale=0.0)
    made.fit()
    mean = network(0)
    mean.load_state_dict(made.moments.mean, strict=False)
    x, _ = blobs().part("test")
    torch.testing.assert_close(made.predict(x), mean.eval()(x).expand(3, -1, -1))


def _normed(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_statistics_of_swag_are_those_of_its_members() -> None:
    made = trainer(SWAGTrainer, model=Ensemble.from_factory(_normed, [0]))
    made.fit()
    batches = MemberBatches(blobs().splits["train"], batch_size=16, seeds=[0])
    for member in made.predictive().members():  # type: ignore[union-attr]
        inputs = [blobs().take(batches.indices(step))[0] for step in range(3)]
        hidden = [member[0](x) for x in inputs]  # type: ignore[index]
        mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
        variance = torch.stack([h.var(0) for h in hidden]).mean(0)
        torch.testing.assert_close(member[1].running_mean, mean)  # type: ignore[index]
        torch.testing.assert_close(member[1].running_var, variance)  # type: ignore[index]


@pytest.mark.parametrize("kind", [SnapshotTrainer, SWAGTrainer])
def test_the_last_state_is_kept_whatever_validation_says(kind: type[EnsembleTrainer]) -> None:
    made = trainer(kind, optimizer=lambda ps: torch.optim.SGD(ps, lr=5.0), clip=None)
    made.fit()
    assert made.best_step == 12
    kept = copy.deepcopy(made.module.state_dict())
    made.load_best()
    assert all(torch.equal(v, kept[n]) for n, v in made.module.state_dict().items())


def test_a_step_of_batch_ensemble_is_one_of_the_mean_loss() -> None:
    made = trainer(BatchEnsembleTrainer, steps=1, clip=None, label_smoothing=0.1)
    net = made.ensemble.member(0)
    assert isinstance(net, BatchEnsemble)
    x, y = blobs().take(made.training.batches.order.indices(0))
    loss = F.cross_entropy(net(x).flatten(0, 1), y.repeat(3), label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(made.gradient(0).losses, loss.detach()[None])
    made.fit()
    for old, new in zip(net.parameters(), made.ensemble.member(0).parameters()):
        assert old.grad is not None
        torch.testing.assert_close(new, old - 0.1 * old.grad)


def test_validation_of_mc_dropout_is_without_dropout() -> None:
    made = trainer(MCDropoutTrainer)
    numbers = made.validate()
    x, y = blobs().part("validation")
    loss = F.cross_entropy(network(0).eval()(x), y)
    assert numbers["validation/member_loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (SnapshotTrainer, {"steps": 10}, "steps.*a multiple of members=3"),
        (SnapshotTrainer, {"schedule": "constant"}, "schedule.*cosine is needed"),
        (SnapshotTrainer, {"patience": 2}, "patience.*null is needed"),
        (SWAGTrainer, {"warmup": 2}, "warmup.*0 is needed"),
        (SWAGTrainer, {"schedule": "one_cycle"}, "schedule.*one of cosine, linear, constant"),
        (SWAGTrainer, {"schedule_end": 0.5}, "schedule_end.*final_rate is the end"),
        (SWAGTrainer, {"start": 1.0}, r"start.*\[0, 1\)"),
        (SWAGTrainer, {"start": 0.9}, "steps.*two iterates.*every 3 steps from step 10"),
        (SWAGTrainer, {"every": 0}, "every"),
        (SWAGTrainer, {"rank": 0}, "rank"),
        (SWAGTrainer, {"scale": -1.0}, "scale.*at least 0"),
        (SWAGTrainer, {"final_rate": 0.0}, "final_rate.*above 0"),
        (BatchEnsembleTrainer, {"factors": "zeros"}, "factors.*signs"),
    ],
)
def test_bad_settings(kind: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        trainer(kind, **settings)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.networks == 1])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "label_smoothing", "dropout"])
def test_a_range_over_members_of_one_network_is_refused(kind: Any, name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}=.*: a number is needed: one network is"):
        trainer(kind, **{name: {"low": 0.01, "high": 0.1}})
    trainer(kind, **{name: 0.01})


def test_mc_dropout_needs_dropout() -> None:
    bare = Ensemble.from_factory(_bare, [0])
    with pytest.raises(SettingError, match="network.*dropout layers"):
        trainer(MCDropoutTrainer, model=bare)


@pytest.mark.parametrize("kind", [SnapshotTrainer, SWAGTrainer])
def test_nothing_to_predict_with_before_it_is_trained(kind: type[EnsembleTrainer]) -> None:
    with pytest.raises(SettingError, match="at least . are needed; fit"):
        trainer(kind).predict(torch.zeros(1, 2))


def test_snapshots_of_cycles_of_another_length_are_refused(tmp_path: Path) -> None:
    """Twelve steps of three cycles; two more cycles of four steps may follow."""
    trainer(SnapshotTrainer, folder=tmp_path).fit()
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    for changed in ({"steps": 15}, {"members": 4}, {"steps": 30, "members": 6}):
        with pytest.raises(DataError, match="cycles as long as before .* 3 have ended by step 12"):
            trainer(SnapshotTrainer, **changed).resume(checkpoint)
    longer: Any = trainer(SnapshotTrainer, steps=20, members=5)
    longer.resume(checkpoint)
    longer.fit()
    assert len(longer.predictive()) == 5
