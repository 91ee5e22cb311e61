"""A learner hands out adapted modules: ordinary ones, with nothing of the learner in them.

Axes: N samples, C classes.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.trainers import MAML, MetaLearner
from tests.support.builders import assert_same
from tests.trainers.meta.test_learner import (
    NETS,
    WAY,
    assert_scores,
    episodes,
    nets,
    of_task,
    plain_adapt,
)

# --- adapt --------------------------------------------------------------------------------------


@nets
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_an_adapted_module_predicts_what_was_scored(net: str, engine: str) -> None:
    learner = MetaLearner(NETS[net](), MAML(inner_lr=0.1, engine=engine))
    tasks = episodes()
    scores = learner.score(tasks)
    for row in range(3):
        support, (x, y) = of_task(tasks, row)
        adapted = learner.adapt(support, transductive=True)
        outputs = adapted(x)
        assert torch.equal(outputs.argmax(-1), scores.predictions[row, -1])
        torch.testing.assert_close(
            F.cross_entropy(outputs, y).detach(), scores.losses[row, -1], rtol=1e-4, atol=1e-5
        )


@nets
def test_an_adapted_module_equals_plain_training(net: str) -> None:
    module, (support, _) = NETS[net](), of_task(episodes(), 1)
    adapted = MetaLearner(module, MAML(inner_lr=0.1)).adapt(support, steps=4)
    expected = plain_adapt(module, support, 0.1, 4)
    for (name, one), (_, other) in zip(adapted.named_parameters(), expected.named_parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@nets
def test_an_adapted_module_is_an_ordinary_module_of_its_own(net: str) -> None:
    learner, (support, (x, _)) = MetaLearner(NETS[net]()), of_task(episodes(), 0)
    before, training = copy.deepcopy(learner.module.state_dict()), learner.module.training
    for value in learner.module.parameters():
        value.grad = torch.ones_like(value)
    adapted = learner.adapt(support, steps=1, transductive=True)
    assert type(adapted) is type(learner.module)
    assert not adapted.training and learner.module.training == training
    for value in adapted.parameters():
        assert value.requires_grad and value.is_leaf and value.grad is None
        assert type(value) is nn.Parameter
    tensors = [list(m.parameters()) + list(m.buffers()) for m in (adapted, learner.module)]
    places = [{t.untyped_storage().data_ptr() for t in group} for group in tensors]
    assert not places[0] & places[1]
    expected = adapted(x).detach()
    with torch.no_grad():
        for value in learner.module.parameters():
            value.add_(1.0)
    assert torch.equal(adapted(x), expected)
    with torch.no_grad():
        for value in learner.module.parameters():
            value.sub_(1.0)
        for value in adapted.parameters():
            value.zero_()
    for name, value in learner.module.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


def test_an_adapted_module_can_be_saved_and_trained_on() -> None:
    learner, (support, (x, y)) = MetaLearner(NETS["mlp"]()), of_task(episodes(), 0)
    adapted = learner.adapt(support)
    buffer = io.BytesIO()
    torch.save(adapted.state_dict(), buffer)
    buffer.seek(0)
    fresh = NETS["mlp"]()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), adapted(x))
    before = F.cross_entropy(adapted(x), y)
    before.backward()
    torch.optim.SGD(adapted.parameters(), lr=0.1).step()
    assert F.cross_entropy(adapted(x), y) < before


def test_no_steps_give_a_plain_copy() -> None:
    learner, (support, _) = MetaLearner(NETS["mlp"]()), of_task(episodes(), 0)
    assert_same(learner.adapt(support, steps=0).state_dict(), learner.module.state_dict())


def test_adapting_works_where_gradients_are_switched_off() -> None:
    learner, (support, _) = MetaLearner(NETS["mlp"]()), of_task(episodes(), 0)
    expected = learner.adapt(support).state_dict()
    with torch.no_grad():
        assert_same(learner.adapt(support).state_dict(), expected)


def test_the_default_number_of_steps_is_that_of_evaluation() -> None:
    learner = MetaLearner(NETS["mlp"](), MAML(inner_steps=1, eval_steps=4))
    support, _ = of_task(episodes(), 0)
    assert_same(learner.adapt(support).state_dict(), learner.adapt(support, steps=4).state_dict())


@pytest.mark.parametrize("steps", [-1, 1.5, True])
@pytest.mark.parametrize("method", ["adapt", "score"])
def test_steps_out_of_range(method: str, steps: Any) -> None:
    learner, tasks = MetaLearner(NETS["mlp"]()), episodes()
    data = tasks if method == "score" else of_task(tasks, 0)[0]
    with pytest.raises(SettingError, match=r"^steps=.*: a whole number of at least 0 is needed"):
        getattr(learner, method)(data, steps=steps)


# --- frozen, tied, normalised, buffers ----------------------------------------------------------


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize(("frozen", "fixed"), [("1.*", {"1.weight", "1.bias"}), (
    ["*.bias", "3.weight"], {"1.bias", "3.bias", "3.weight"})])  # fmt: skip
def test_frozen_parameters_stay(frozen: Any, fixed: set[str], engine: str) -> None:
    module, (support, _) = NETS["mlp"](), of_task(episodes(), 0)
    learner = MetaLearner(module, MAML(inner_lr=0.1, frozen=frozen, engine=engine))
    adapted = dict(learner.adapt(support, steps=3).named_parameters())
    expected = dict(plain_adapt(module, support, 0.1, 3, tuple(fixed)).named_parameters())
    for name, start in module.named_parameters():
        assert torch.equal(adapted[name], start) == (name in fixed), name
        torch.testing.assert_close(adapted[name], expected[name], rtol=1e-4, atol=1e-5)


def test_frozen_parameters_have_a_meta_gradient_all_the_same() -> None:
    result = MetaLearner(NETS["mlp"](), MAML(frozen="1.*")).meta_gradient(episodes())
    assert result.grads["1.weight"].abs().max() > 0


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16, bias=False)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, WAY)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(torch.tanh(self.first(x.flatten(1)))))
        return out


def test_tied_weights_stay_tied() -> None:
    module, (support, _) = _Tied(), of_task(episodes(), 0)
    adapted = MetaLearner(module, MAML(inner_lr=0.1)).adapt(support, steps=2)
    assert isinstance(adapted, _Tied)
    assert adapted.first.weight is adapted.second.weight
    expected = plain_adapt(module, support, 0.1, 2)
    torch.testing.assert_close(adapted.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)


class _Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = NETS["mlp"]()
        self.register_buffer("shift", torch.full((16,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.flatten(1) - self.shift)
        return out


def test_buffers_are_used_and_copied() -> None:
    learner, (support, (x, _)) = MetaLearner(_Shifted()), of_task(episodes(), 0)
    adapted = learner.adapt(support)
    assert torch.equal(adapted.shift, torch.full((16,), 0.5))  # type: ignore[arg-type]
    before = adapted(x)
    learner.module.shift.zero_()  # type: ignore[operator]
    assert torch.equal(adapted(x), before)


def _running() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, WAY))


def test_running_statistics_are_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"module\[2\]='BatchNorm1d': running statistics.*norm"):
        MetaLearner(_running())


@pytest.mark.parametrize("norm", ["batch_stats", "running", "group", "layer"])
def test_running_statistics_are_converted(norm: Any) -> None:
    module = _running()
    learner = MetaLearner(module, MAML(norm=norm))
    assert learner.module is not module
    assert isinstance(module[2], nn.BatchNorm1d) and module[2].track_running_stats  # type: ignore[index]
    assert learner.score(episodes()).losses.isfinite().all()


def test_running_statistics_in_eval_mode_are_constants() -> None:
    module = _running().eval()
    before = copy.deepcopy(module.state_dict())
    learner, tasks = MetaLearner(module), episodes()
    assert_scores(learner.score(tasks), learner.score(tasks, inductive=True))
    support, (x, y) = of_task(tasks, 0)
    adapted = learner.adapt(support)
    torch.testing.assert_close(
        F.cross_entropy(adapted(x), y).detach(), learner.score(tasks).losses[0, -1]
    )
    assert_same(module.state_dict(), before)
