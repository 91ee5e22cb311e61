"""Values that a learner of one's own has learnt beside the network.

Axes: M members, T tasks, N samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML, Learner, MetaLearner, MetaTrainer
from metalearn.types import TaskBatch
from tests.support.builders import patterns

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
SETTINGS: dict[str, Any] = {"steps": 3, "meta_batch": 2, "validation_tasks": 2, "progress": False}


class Scaled(Learner):
    """Nearest neighbours by a similarity whose scale is learnt, with a learnt bias of features."""

    needs = "features"

    def __init__(self, module: Any, **settings: Any) -> None:
        super().__init__(module, **settings)
        self.learn("scale", 2.0)
        self.learn("shift", torch.tensor([0.25, 0.0, -0.5]))

    def described(self, params: Any, inputs: Tensor) -> Tensor:
        found: Tensor = self.apply(params, self.buffers, inputs) + params["learnt.shift"]
        return found.tanh()

    def fit(self, params: Any, support: Any, *, steps: int | None = None) -> Iterator[Any]:
        targets = F.one_hot(support[1], self.criterion.classes_of(support[1]))
        features = self.described(params, support[0])
        yield params, features, targets.to(features.dtype)

    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        params, features, targets = state
        near: Tensor = params["learnt.scale"] * self.described(params, inputs) @ features.mT
        return near @ targets


class Warped(MetaLearner):
    """MAML on outputs that a learnt factor scales, in the inner loop too."""

    def __init__(self, module: Any, maml: MAML | None = None, **settings: Any) -> None:
        super().__init__(module, maml, **settings)
        self.learn("factor", 1.5)

    def loss(self, params: Any, batch: Any) -> Tensor:
        return self.criterion(self.predict(params, batch[0]), batch[1])

    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.apply(state, self.buffers, inputs) * state["learnt.factor"]
        return outputs


def network(seed: int = 0) -> MLP:
    return MLP(TASKS.input_shape, 3, hidden=(6,), seed=seed).double()


def tasks_of(split: Any, count: int) -> TaskBatch:
    batch = TASKS.sample(split, range(count))
    return TaskBatch(*tree_map(lambda x: x.double() if x.is_floating_point() else x, tuple(batch)))


def scaled_by_hand(module: Any, values: dict[str, Tensor], task: Any) -> Tensor:
    (x, y), (queries, targets) = task
    known, asked = (torch.tanh(module(v) + values["shift"]) for v in (x, queries))
    logits = values["scale"] * asked @ known.mT @ torch.eye(3).double()[y]
    return -logits.log_softmax(-1)[range(len(targets)), targets].mean()


def warped_by_hand(module: Any, values: dict[str, Tensor], task: Any) -> Tensor:
    (x, y), (queries, targets) = task
    params = dict(module.named_parameters())
    for _ in range(2):
        outputs = torch.func.functional_call(module, params, x) * values["factor"]
        grads = torch.autograd.grad(
            F.cross_entropy(outputs, y), list(params.values()), create_graph=True
        )
        rate = values.get("lr", 0.25)
        params = {name: p - rate * g for (name, p), g in zip(params.items(), grads)}
    outputs = torch.func.functional_call(module, params, queries) * values["factor"]
    return F.cross_entropy(outputs, targets)


def warped(module: Any, learn: tuple[str, ...] = (), **settings: Any) -> Warped:
    return Warped(module, MAML(inner_lr=0.25, inner_steps=2, learn=learn, **settings))


CASES = {
    "scaled": (Scaled, scaled_by_hand, {"scale": 2.0, "shift": [0.25, 0.0, -0.5]}),
    "warped": (warped, warped_by_hand, {"factor": 1.5}),
    "warped and rate": (lambda m: warped(m, ("lr",)), warped_by_hand, {"factor": 1.5, "lr": 0.25}),
    "mixed": (lambda m: warped(m, method="mixed"), warped_by_hand, {"factor": 1.5}),
    "batched": (lambda m: warped(m, engine="batched"), warped_by_hand, {"factor": 1.5}),
}


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("case", list(CASES))
def test_gradients_are_those_of_a_loop(case: str, members: int) -> None:
    make, by_hand, starts = CASES[case]
    alone = [network(seed) for seed in range(members or 1)]
    module = Ensemble.from_modules([copy.deepcopy(m) for m in alone]) if members else alone[0]
    learner, tasks = make(module), tasks_of("train", 3)
    found = learner.meta_gradient(tasks).grads
    assert {name for name in found if name.startswith("learnt.")} == {
        f"learnt.{name}" for name in starts
    }
    for m, one in enumerate(alone):
        values = {
            n: torch.tensor(v, dtype=torch.float64).requires_grad_() for n, v in starts.items()
        }
        every = [
            by_hand(one, values, tree_map(lambda x, t=t: x[t], tuple(tasks))) for t in range(3)
        ]
        named = {**dict(one.named_parameters()), **{f"learnt.{n}": v for n, v in values.items()}}
        grads = torch.autograd.grad(torch.stack(every).mean(), list(named.values()))
        for name, wanted in zip(named, grads):
            row = found[name][m] if members else found[name]
            torch.testing.assert_close(row, wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("case", ["scaled", "warped and rate"])
def test_training_steps_and_saves_them(case: str, members: int, tmp_path: Path) -> None:
    def trainer(folder: str, steps: int = 3) -> MetaTrainer:
        models = [network(seed) for seed in range(members or 1)]
        model = Ensemble.from_modules(models) if members else models[0]
        how = {**SETTINGS, "steps": steps, "checkpoint_every": 1, "folder": tmp_path / folder}
        return MetaTrainer(model.float(), TASKS, learner=CASES[case][0](model), **how)

    whole = trainer("whole")
    start = {n: p.clone() for n, p in whole.loop.params.items() if n.startswith("learnt.")}
    whole.fit()
    assert start and all((start[n] != whole.loop.params[n]).all() for n in start)
    halted = trainer("halted")
    halted.loop.settings = trainer("other", 2).loop.settings
    halted.fit()
    gone_on = trainer("halted")
    gone_on.resume(tmp_path / "halted" / "checkpoints" / "last.pt")
    gone_on.fit()
    for name, value in whole.loop.params.items():
        torch.testing.assert_close(gone_on.loop.params[name], value, rtol=0, atol=0)


def test_a_method_is_no_number_of_features() -> None:
    class Own(Scaled):
        def features(self) -> None:  # type: ignore[override]
            pass

    with pytest.raises(SettingError, match=r"^Own\.features=.*: a whole number or None is needed"):
        MetaTrainer(network(), TASKS, learner=Own, **SETTINGS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale", 1.0, "^name='scale': an identifier that is not taken is needed"),
        ("a.b", 1.0, r"^name='a\.b': an identifier"),
        ("forward", 1.0, "^name='forward': an identifier that is not taken"),
        (3, 1.0, "^name=3: an identifier"),
        ("rate", float("nan"), "^value=nan: "),
        ("rate", "1", "^value='1': "),
    ],
)
def test_bad_values_are_refused(name: Any, value: Any, message: str) -> None:
    learner = Scaled(network())
    with pytest.raises(SettingError, match=message):
        learner.learn(name, value)
    assert "learnt.rate" not in learner.params
