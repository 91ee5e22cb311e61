"""The meta-trainer: its gradient, what it refuses, and that it learns."""

from __future__ import annotations

import copy
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint
from metalearn.errors import DataError, NonFiniteError, SettingError
from metalearn.models import MLP, Conv4
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, MetaTrainer
from tests.support import oracles
from tests.support.builders import (
    Poisoned,
    assert_same,
    episode_trainer,
    labelled,
    last,
    patterns,
    signal_in_step,
    sinusoid_trainer,
)

EPISODES = FewShotTasks(patterns(), way=3, shot=1, query=2)
WAVES = SinusoidTasks(shot=4, query=4)


class Watched:
    """Tasks that remember what they were asked for."""

    def __init__(self, tasks: Any) -> None:
        self.tasks, self.asked = tasks, []  # type: tuple[Any, list[tuple[str, list[int]]]]
        self.kind, self.input_shape, self.outputs = tasks.kind, tasks.input_shape, tasks.outputs

    def sample(self, split: Any, indices: Any, *, device: Any = "cpu") -> Any:
        self.asked.append((split, list(indices)))
        return self.tasks.sample(split, indices, device=device)


# --- the gradient -------------------------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_the_gradient_is_that_of_plain_maml(first_order: bool, engine: str) -> None:
    maml = MAML(inner_lr=0.05, inner_steps=2, first_order=first_order, engine=engine)
    trainer = sinusoid_trainer(maml=maml, meta_batch=3)
    report = trainer.gradient(2)
    module = copy.deepcopy(trainer.module).double()
    names = [name for name, _ in module.named_parameters()]

    def loss(params: Any, batch: Any) -> Tensor:
        outputs = torch.func.functional_call(module, params, (batch[0],))
        return (outputs - batch[1]).square().mean()

    batch = WAVES.sample("train", [6, 7, 8])
    double = type(batch)(*(tuple(leaf.double() for leaf in part) for part in batch))
    params = {name: p.detach() for name, p in module.named_parameters()}
    grads, queries, _ = oracles.maml(
        oracles.Problem(loss, params, double), oracles.sgd_rule(0.05), 2, first_order=first_order
    )
    assert sorted(report.grads) == sorted(names)
    for name in names:
        torch.testing.assert_close(report.grads[name].double(), grads[name], rtol=1e-3, atol=1e-4)
    assert float(report.losses) == pytest.approx(float(queries.mean()), rel=1e-4)
    assert report.count == 3


def test_second_order_matters() -> None:
    one, other = (
        sinusoid_trainer(maml=MAML(inner_lr=0.05, first_order=first)).gradient(0).grads
        for first in (False, True)
    )
    assert any((one[name] - other[name]).abs().max() > 1e-3 for name in one)


def test_a_step_takes_the_tasks_of_its_number() -> None:
    tasks = Watched(WAVES)
    trainer = sinusoid_trainer(tasks=tasks, meta_batch=4)
    trainer.gradient(0)  # tries out on two tasks how gradients are to be taken
    tasks.asked.clear()
    trainer.gradient(0)
    trainer.gradient(5)
    assert tasks.asked == [("train", [0, 1, 2, 3]), ("train", [20, 21, 22, 23])]


def test_every_training_task_is_taken_once_and_none_of_another_split() -> None:
    tasks = Watched(WAVES)
    trainer = sinusoid_trainer(tasks=tasks, meta_batch=3, steps=4, log_every=100)
    tasks.asked.clear()
    trainer.fit()
    assert {split for split, _ in tasks.asked} == {"train", "validation"}
    trained = [indices for split, indices in tasks.asked if split == "train"]
    assert sorted({i for indices in trained for i in indices}) == list(range(12))
    looked = {i for split, indices in tasks.asked for i in indices if split == "validation"}
    assert looked == set(range(5))


@pytest.mark.parametrize("settings", [{"chunk_size": 1}, {"chunk_size": 3}, {"engine": "loop"}])
def test_how_tasks_are_batched_does_not_matter(settings: dict[str, Any]) -> None:
    base = {"inner_lr": 0.02, "eval_steps": 2}
    one, other = (sinusoid_trainer(maml=MAML(**base, **s)) for s in ({}, settings))
    a, b = one.fit(), other.fit()
    assert a.best_value == pytest.approx(b.best_value, rel=1e-4)
    for name, value in one.module.named_parameters():
        other_value = dict(other.module.named_parameters())[name]
        torch.testing.assert_close(value, other_value, rtol=1e-3, atol=1e-4)


def test_the_module_itself_is_trained() -> None:
    model = MLP((1,), 1, hidden=(8,))
    before = copy.deepcopy(model.state_dict())
    trainer = MetaTrainer(
        model, WAVES, maml=MAML(inner_lr=0.02), steps=2, meta_batch=2, validation_tasks=2
    )
    assert trainer.module is model
    trainer.fit()
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parameters_without_gradients_stay() -> None:
    model = MLP((1,), 1, hidden=(8,))
    fixed = model[1].weight.requires_grad_(False)  # type: ignore[index, operator]
    before, free = fixed.clone(), model[3].weight.clone()  # type: ignore[index]
    MetaTrainer(
        model, WAVES, maml=MAML(inner_lr=0.02), steps=3, meta_batch=2, validation_tasks=2
    ).fit()
    assert torch.equal(fixed, before)
    assert not torch.equal(model[3].weight, free)  # type: ignore[index]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta_batch", "validation_tasks", "steps", "eval_every"])
@pytest.mark.parametrize("value", [0, -2, 1.5, True, "4"])
def test_counts_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^{name}=.*: a whole number of at least 1 is needed$"):
        sinusoid_trainer(**{name: value})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: MLP((1, 4, 4), 5), r"^model='MLP': outputs \[3, 3\] are needed .* not \[3, 5\]$"),
        (lambda: MLP((2, 4, 4), 3), r"^model='MLP': a model that takes inputs \[3, 1, 4, 4\]"),
        (lambda: Conv4((3, 16, 16), 3, filters=2), r"^model='Conv4': a model that takes inputs"),
        (lambda: nn.Flatten(), r"^model='Flatten': outputs \[3, 3\] are needed .* \[3, 16\]"),
        (
            lambda: nn.Sequential(
                nn.BatchNorm1d(1, track_running_stats=False), nn.Flatten(), nn.Linear(16, 3)
            ),
            r"^model='Sequential': a model that takes inputs \[3, 1, 4, 4\] is needed",
        ),
        (lambda: nn.Bilinear(4, 4, 3), r"^model='Bilinear': a model that takes inputs"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_the_tasks(model: Any, message: str) -> None:
    made = model()
    if not list(made.parameters()):
        made.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    with pytest.raises(SettingError, match=message):
        MetaTrainer(made, EPISODES, steps=1)


def test_a_way_that_differs_needs_no_head_of_logits() -> None:
    tasks = FewShotTasks(labelled(), way={"train": 4, "test": 2})
    with pytest.raises(SettingError, match=r"^task.way={'train': 4, .*needs the same way in "):
        MetaTrainer(MLP((1, 4, 4), 4, hidden=(4,)), tasks)


def test_a_model_that_gives_no_tensor() -> None:
    class Pair(MLP):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    with pytest.raises(SettingError, match="^model='Pair': "):
        MetaTrainer(Pair((1, 4, 4), 3), EPISODES, steps=1)


def _running() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def test_running_statistics_are_refused_by_name_and_taken_once_converted() -> None:
    model = _running()
    with pytest.raises(SettingError, match=r"^module\[1\]='BatchNorm2d': running statistics"):
        MetaTrainer(model, EPISODES, steps=1)
    before = copy.deepcopy(model.state_dict())
    trainer = MetaTrainer(
        model, EPISODES, maml=MAML(norm="batch_stats"), steps=1, meta_batch=2, validation_tasks=2
    )
    assert trainer.fit().reason == "finished"
    assert trainer.module is not model
    assert_same(model.state_dict(), before)
    assert not torch.equal(trainer.module[0].weight, model[0].weight)  # type: ignore[index]


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="evaluate_every"):
        sinusoid_trainer(evaluate_every=3)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    sinusoid_trainer(steps=1, folder=tmp_path).fit()
    other = MetaTrainer(MLP((1,), 1, hidden=(9,)), WAVES, steps=1)
    with pytest.raises(DataError, match=r"last\.pt: this checkpoint does not fit the run"):
        other.resume(last(tmp_path))
    with pytest.raises(DataError, match=r"last\.pt: this checkpoint does not fit the run"):
        episode_trainer().resume(last(tmp_path))


# --- what is not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("maml", [{}, {"first_order": True}, {"engine": "loop"}])
def test_the_tasks_behind_a_loss_that_is_not_finite_are_named(
    tmp_path: Path, maml: dict[str, Any]
) -> None:
    tasks, settings = Poisoned(WAVES, [9, 11]), MAML(inner_lr=0.02, **maml)
    trainer = sinusoid_trainer(tasks=tasks, maml=settings, folder=tmp_path)
    sound = sinusoid_trainer(maml=settings)
    signal_in_step(sound, 1, signal.SIGTERM)
    assert sound.fit().step == 2
    path = tmp_path / "checkpoints" / "non_finite_step_2.pt"
    with pytest.raises(NonFiniteError, match="^step 2: loss nan") as caught:
        trainer.fit()
    assert "from training tasks 9, 11; the state" in str(caught.value)
    assert str(path) in str(caught.value)
    assert all(p.isfinite().all() for p in trainer.module.parameters())
    assert_same(trainer.module.state_dict(), sound.module.state_dict())
    saved = load_checkpoint(path)
    assert_same(saved["module"], sound.module.state_dict())
    again = sinusoid_trainer(maml=settings)
    again.resume(path)
    assert again.fit().step == 6


@pytest.mark.parametrize(
    ("poisoned", "named"),
    [([8], "8"), ([8, 9], "8, 9"), ([8, 9, 10], "8 to 10"), ([8, 10, 11], "8, 10, 11")],
)
def test_tasks_in_a_row_are_named_by_their_ends(poisoned: list[int], named: str) -> None:
    trainer = sinusoid_trainer(tasks=Poisoned(WAVES, poisoned), maml=MAML(inner_lr=0.02))
    with pytest.raises(NonFiniteError, match=rf"from training tasks {named}(;|$)"):
        trainer.fit()


def test_an_inner_rate_far_too_large_is_refused_with_advice() -> None:
    trainer = sinusoid_trainer(maml=MAML(inner_lr=1e30, inner_steps=3))
    with pytest.raises(NonFiniteError, match="lower inner or outer learning rate") as caught:
        trainer.fit()
    assert re.search(r"^step 0: loss (nan|inf) .* training tasks 0 to 3;", str(caught.value))


# --- it learns ----------------------------------------------------------------------------------


def fast_adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=2e-2)


@pytest.mark.parametrize("first_order", [False, True])
def test_it_learns_sine_waves(first_order: bool) -> None:
    trainer = MetaTrainer(
        MLP((1,), 1, hidden=(20, 20)),
        SinusoidTasks(shot=10, query=10),
        maml=MAML(inner_lr=0.02, eval_steps=3, first_order=first_order),
        steps=150,
        meta_batch=16,
        validation_tasks=50,
        eval_every=150,
        log_every=150,
        optimizer=fast_adam,
    )
    before = trainer.test(100).losses[0]
    trainer.fit()
    after = trainer.test(100).losses[0]
    assert after[-1] < 0.5 * before.min()
    assert after[-1] < 0.95 * after[0]  # not just a better start: a better start to adapt from


def test_it_learns_classes() -> None:
    trainer = MetaTrainer(
        MLP((1, 4, 4), 3, hidden=(16,)),
        FewShotTasks(patterns(40), way=3, shot=1, query=3),
        maml=MAML(inner_lr=0.2, inner_steps=1, eval_steps=2),
        steps=80,
        meta_batch=16,
        validation_tasks=50,
        eval_every=80,
        log_every=80,
        optimizer=fast_adam,
    )
    before = trainer.test(100)
    trainer.fit()
    after = trainer.test(100)
    assert before.accuracies is not None and after.accuracies is not None
    assert after.losses[0, -1] < 0.7 * before.losses[0, -1]
    assert after.accuracies[0, -1] > before.accuracies[0, -1] + 0.1
    assert abs(after.accuracies[0, 0] - 1 / 3) < 0.1  # labels are random: nothing without support


def test_pictures_with_convolutions_run_end_to_end(tmp_path: Path) -> None:
    tasks = FewShotTasks(labelled(shape=(1, 16, 16)), way=2, shot=1, query=1, rotate_train=True)
    trainer = MetaTrainer(
        Conv4((1, 16, 16), 2, filters=2), tasks, steps=2, meta_batch=2, validation_tasks=2,
        folder=tmp_path,
    )  # fmt: skip
    result = trainer.fit()
    assert (result.step, result.reason) == (2, "finished")
    assert last(tmp_path).is_file()
