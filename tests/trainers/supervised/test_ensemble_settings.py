"""What a training of members refuses, in one sentence each."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from metalearn import Ensemble
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4
from metalearn.trainers.members.settings import member_values, plan_members
from tests.support.alone import conv_network, mlp_network, networks
from tests.support.builders import ensemble_trainer, samples


def members(make: Any) -> Ensemble:
    return Ensemble.from_modules([make(seed) for seed in range(3)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 4}, "members=4: the model has 3 members"),
        ({"seeds": [1, 2]}, r"seeds=\[1, 2\]: 3 are needed, one for each member"),
        ({"seeds": [1, 2, -3]}, "seeds?=-3: "),
        ({"lr": [0.1, 0.2]}, r"lr=\[0.1, 0.2\]: 3 values are needed, one for each member"),
        ({"lr": -0.1}, "lr=-0.1: a finite number of at least 0"),
        ({"lr": [0.1, 1e38, 0.1]}, r"lr=1e\+38: a finite number of at least 0 and below 1e\+36"),
        ({"lr": [0.1, float("nan"), 0.1]}, "lr=nan: a finite number of at least 0"),
        ({"lr": [0.1, True, 0.1]}, "lr=True: a finite number"),
        ({"lr": "fast"}, "lr='fast': a number, a list, or low and high are needed"),
        ({"lr": {"low": 0.1}}, r"lr=\{'low': 0.1\}: low and high, both above 0, are needed"),
        ({"lr": {"low": 0, "high": 1}}, "lr=.*: low and high, both above 0, are needed"),
        ({"lr": {"low": 1, "high": 2, "mid": 1}}, "lr=.*: low and high, both above 0"),
        ({"weight_decay": [0.1] * 4}, "weight_decay=.*: 3 values are needed"),
        (
            {"label_smoothing": 1.0},
            "label_smoothing=1.0: a finite number of .* below 1",
        ),
        ({"dropout": 0.5}, "dropout=.*: every member needs a metalearn.models.Dropout"),
        ({"monitor": "f1"}, "monitor='f1': one of loss, accuracy is needed"),
        ({"engine": "vmap"}, "engine='vmap': one of auto, batched, loop is needed"),
        ({"shuffle": "no"}, "shuffle='no': one of member, shared is needed"),
        ({"shuffle": "shared", "bootstrap": True}, "shuffle='shared': member is needed beside"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"batch_size": 99}, "batch_size=99: the training part has"),
        ({"max_shift": -1}, "max_shift=-1: a whole number of at least 0"),
        ({"patience": 0}, "patience=0: a whole number of at least 1"),
        (
            {"optimizer": partial(torch.optim.LBFGS, lr=1.0)},
            "optimizer='LBFGS': one that steps from gradients alone is needed",
        ),
        (
            {"optimizer": partial(torch.optim.Adafactor, lr=1.0)},
            "optimizer='Adafactor': members are stacked, so an elementwise one is needed: SGD, Ad",
        ),
        (
            {"optimizer": partial(torch.optim.SGD, lr=0.1, weight_decay=0.1), "weight_decay": 0.1},
            "optimizer.weight_decay=0.1: 0 is needed beside weight_decay",
        ),
        (
            {"optimizer": torch.optim.AdamW, "weight_decay": 0.1},
            "optimizer.weight_decay=0.01: 0 is needed beside weight_decay",
        ),
        (
            {"optimizer": partial(torch.optim.SGD, lr=-1)},
            r"optimizer=\{'lr': -1\}: torch refuses these settings: Invalid",
        ),
        (
            {"model": members(lambda s: MLP((9,), 3, seed=s))},
            r"model='MLP': inputs \[1, 4, 4\] are what it gets \(",
        ),
        (
            {"model": members(lambda s: MLP((16,), 4, seed=s))},
            r"model='MLP': outputs \[3, 2, 3\] are needed, not \[3, 2, 4\]",
        ),
        (
            {
                "model": Ensemble.from_modules(
                    [nn.Sequential(nn.Flatten(), nn.Linear(16, n)) for n in (3, 4, 3)]
                )
            },
            "model='Sequential': inputs",
        ),
        (
            {"ood": samples(side=5)},
            r"ood=\[1, 5, 5\]: inputs \[1, 4, 4\] are needed",
        ),
    ],
)
def test_a_setting_that_cannot_work_gets_one_sentence(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=f"^{message}") as caught:
        ensemble_trainer(**settings)
    assert "\n" not in str(caught.value)


def test_dropout_of_torch_is_refused_before_training() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.2)).eval()
    trainer = ensemble_trainer(model=Ensemble.from_modules([network] * 3))
    with pytest.raises(SettingError, match=r"module\[2\]='Dropout': dropout with p=0.2 draws"):
        trainer.fit()


def test_too_little_memory_for_one_member() -> None:
    trainer = ensemble_trainer(model=networks(conv_network, range(3)), memory=100)
    with pytest.raises(SettingError, match="memory='100 bytes': at least .* is needed"):
        trainer.fit()


@pytest.mark.parametrize("value", [None, 0.5, [0.1, 0.2, 0.3], (1, 2, 3)])
def test_values_of_members(value: Any) -> None:
    found = member_values("lr", value, 3)
    expected = None if value is None else [value] * 3 if isinstance(value, float) else list(value)
    assert found == expected


def test_a_range_for_one_member_is_its_lower_end() -> None:
    assert member_values("lr", {"low": 0.1, "high": 1.0}, 1) == [0.1]
    assert member_values("lr", {"low": 1.0, "high": 0.01}, 3) == pytest.approx([1.0, 0.1, 0.01])


def test_the_plan_measures_and_says_so() -> None:
    calls: list[tuple[str, int]] = []

    def attempt(engine: str, count: int) -> object:
        calls.append((engine, count))
        size = (1 if engine == "loop" else 400) * count
        return torch.ones(size, size) @ torch.ones(size, size)

    plan = plan_members(
        attempt, 4, engine="auto", chunk_size=None, memory=None, device=torch.device("cpu")
    )
    assert plan.engine == "loop"  # a product of 1600 rows against one of 4
    assert calls[0] == ("batched", 1)  # whether vmap takes the networks at all
    assert {count for _, count in calls[1:]} == {4}
    assert str(plan).startswith("members: engine loop, all members at once; measured: batched ")


def test_the_loop_engine_takes_what_vmap_cannot() -> None:
    """Control flow that reads a value."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x.flatten(1))
            return y if float(y.detach().sum()) > 0 else -y

    model = Ensemble.from_factory(Branching, range(3))
    with pytest.raises(SettingError, match=r"^engine='batched': .*reads a value.*'loop' can"):
        ensemble_trainer(model=model)
    trainer = ensemble_trainer(model=model, engine="loop")
    assert trainer.fit().reason == "finished"


def test_conv4_and_mlp_train_side_by_side() -> None:
    data = samples(side=16)
    model = Ensemble.from_modules(
        [Conv4((1, 16, 16), 3, filters=4), mlp_network(0).network, MLP((1, 16, 16), 3)][::2]
    )
    trainer = ensemble_trainer(model=model, data=data, engine="auto", steps=4)
    assert trainer.fit().reason == "finished"
