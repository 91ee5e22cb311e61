"""What a network normalises with: running statistics in meta-training, and what reports say of it.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML, MetaLearner, MetaTrainer, ProtoNet
from metalearn.trainers.meta.normalization import Normalization, normalization_in
from metalearn.trainers.meta.reports import TestReport as Report
from metalearn.types import TaskBatch
from tests.support.builders import assert_same, patterns
from tests.trainers.meta.test_inductive import MIXED
from tests.trainers.meta.test_learner import WAY, episodes

EPISODES = FewShotTasks(patterns(), way=3, shot=1, query=2)
RUNNING = MAML(norm="running", inner_lr=0.1, inner_steps=2, eval_steps=2)


def network(outputs: int = WAY) -> nn.Sequential:
    """Linear, batch normalisation, linear, with weights of its own draws."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs)
    )
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(0.5 * torch.randn(value.shape, generator=draws))
    return net


def trainer(**settings: Any) -> MetaTrainer:
    settings = {"steps": 3, "meta_batch": 4, "validation_tasks": 5, "progress": False} | settings
    settings.setdefault("maml", RUNNING)
    return MetaTrainer(network(3), EPISODES, **settings)


def all_inputs(tasks: Any) -> Tensor:
    return torch.cat([part[0].flatten(0, 1) for part in tasks])


# --- running statistics -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
def test_gradients_and_scores_are_those_of_torchs_layer_in_evaluation(
    engine: Any, method: Any
) -> None:
    tasks = TaskBatch(*((x.double(), y) for x, y in episodes()))
    module = network().double()
    module(all_inputs(tasks))  # has seen a batch
    maml = MAML(inner_lr=0.1, inner_steps=2, eval_steps=2, engine=engine, method=method)
    wanted = MetaLearner(copy.deepcopy(module).eval(), maml)
    learner = MetaLearner(module, MAML(**{**vars(maml), "norm": "running"}))
    found, other = learner.meta_gradient(tasks), wanted.meta_gradient(tasks)
    for name, grad in other.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-10, atol=1e-12)
    for inductive in (False, True):
        scores = learner.score(tasks, inductive=inductive).losses
        torch.testing.assert_close(scores, wanted.score(tasks).losses)


def test_a_training_step_moves_statistics_by_all_inputs_of_its_tasks() -> None:
    one = trainer(steps=1)
    before = copy.deepcopy(one.module)
    layer, inputs = network(3)[2], all_inputs(EPISODES.sample("train", range(4)))
    layer(before[1](inputs.flatten(1)))  # type: ignore[index]
    one.fit()
    for name in ("running_mean", "running_var"):
        got, wanted = getattr(one.module[2], name), getattr(layer, name)  # type: ignore[index]
        torch.testing.assert_close(got, wanted)
    assert not torch.equal(one.module[1].weight, before[1].weight)  # type: ignore[index]


def test_statistics_of_several_batches_a_step_are_those_of_all_their_tasks() -> None:
    whole, parts = trainer(steps=1), trainer(steps=1, meta_batch=2, accumulate=2)
    whole.fit(), parts.fit()
    one, other = (found.module.state_dict()["2.running_mean"] for found in (whole, parts))
    torch.testing.assert_close(one, other)


def test_statistics_stay_as_they_are_in_adaptation_and_scores() -> None:
    one = trainer()
    one.fit()
    kept = copy.deepcopy(one.module.state_dict())
    one.test(4)
    support = EPISODES.sample("test", [0]).support
    module = one.learner.adapt((support[0][0], support[1][0]))
    assert_same(one.module.state_dict(), kept)
    assert_same(module[2].running_mean, kept["2.running_mean"])  # type: ignore[index]


def test_a_resumed_training_has_the_statistics_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = trainer(steps=4, schedule="constant")
    whole.fit()
    trainer(steps=2, schedule="constant", folder=tmp_path).fit()
    again = trainer(steps=4, schedule="constant", folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert_same(again.module.state_dict(), whole.module.state_dict())


def test_learners_without_an_inner_loop_have_running_statistics_too() -> None:
    make = partial(ProtoNet, norm="running")
    one = trainer(learner=make, maml=None)
    one.fit()
    assert (one.module[2].running_mean != 0).all()  # type: ignore[index]
    one.load_best()
    both = one.reports(tasks=6)
    torch.testing.assert_close(both["transductive"].losses, both["inductive"].losses)


def test_a_network_without_such_layers_moves_nothing() -> None:
    learner = MetaLearner(MLP((1, 4, 4), WAY, hidden=(8,)))
    assert learner.moved_buffers(learner.params, episodes()) == {}


def test_members_and_networks_without_batch_norms_are_refused() -> None:
    several = Ensemble.from_modules([network(), network()])
    with pytest.raises(SettingError, match="^module='Ensemble': one network is needed for norm="):
        MetaLearner(several, RUNNING)
    with pytest.raises(SettingError, match="^module='MLP': batch normalisation is needed for"):
        MetaLearner(MLP((1, 4, 4), WAY), RUNNING)


# --- what results say -------------------------------------------------------------------------


CASES: list[tuple[Any, Any, str, bool]] = [
    (lambda: Conv4((1, 4, 4), WAY, filters=2), None, "batch_stats", True),
    (network, "batch_stats", "batch_stats", True),
    (network, "running", "running", False),
    (network, "group", "group", False),
    (network, "layer", "layer", False),
    (lambda: network().eval(), None, "running", False),
    (lambda: MLP((1, 4, 4), WAY), None, "none", False),
    (MIXED["mean"], None, "none", True),
    (MIXED["attention"], None, "none", True),
]


@pytest.mark.parametrize(("make", "norm", "name", "shared"), CASES)
def test_scores_say_what_they_were_normalised_with(
    make: Any, norm: Any, name: str, shared: bool
) -> None:
    learner, tasks = MetaLearner(make(), MAML(norm=norm, inner_lr=0.1)), episodes()
    found = normalization_in(learner, tasks, inductive=False)
    assert found == Normalization(name, shared)
    assert normalization_in(learner, tasks, inductive=True) == Normalization(name, False)
    scores, alone = (learner.score(tasks, inductive=i).losses for i in (False, True))
    assert torch.allclose(scores, alone, atol=1e-5) != shared


def test_reports_say_it_in_words_and_in_json() -> None:
    net = Conv4((1, 4, 4), 3, filters=2)
    both = MetaTrainer(net, EPISODES, steps=1, validation_tasks=2).reports(tasks=3)
    shown = {name: report.lines(name)[1] for name, report in both.items()}
    assert shown == {
        "transductive": "  normalisation: batch_stats; a task's queries share statistics",
        "inductive": "  normalisation: batch_stats; queries share nothing",
    }
    written = {name: report.as_json() for name, report in both.items()}
    assert [w["normalization"] for w in written.values()] == ["batch_stats"] * 2
    assert [w["queries_share_statistics"] for w in written.values()] == [True, False]


def test_a_report_without_a_normalisation_says_nothing_of_one() -> None:
    losses = torch.tensor([[2.0], [0.25]])
    assert "normalization" not in Report(7, losses, None).as_json()
    known = Report(7, losses, None, normalization=Normalization("none", False))
    assert known.lines("test")[1:] == ["  normalisation: none", "  2.0000 ± 0.2500"]
