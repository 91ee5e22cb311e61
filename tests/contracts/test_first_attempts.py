"""What a newcomer writes first: taken where its meaning is plain, else answered by what to write.

Rows are attempts with what is made of them: None where they are taken, or the sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metalearn import Ensemble, core
from metalearn.data import ClassificationData, classification_data, digits_data, regression_data
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.tasks import SinusoidTasks
from metalearn.tracking import RunTracker
from metalearn.trainers import (
    MAML,
    EnsembleTrainer,
    HyperTrainer,
    LoopSettings,
    MetaTrainer,
    PerSampleTrainer,
    PrivateTrainer,
    RunSettings,
)
from metalearn.types import TaskBatch

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3
PAIRS = TensorDataset(X, Y)
FEW: dict[str, Any] = {"steps": 1, "progress": False, "compile": "never"}


def net(seed: int = 0, outputs: int = 3) -> nn.Module:
    return MLP((5,), outputs, hidden=(4,), seed=seed)


class Plain(nn.Module):
    """Without a constructor of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3]


class Wide(nn.Linear):
    """Whose first argument is no seed."""

    def __init__(self, width: int = 5) -> None:
        super().__init__(width, 3)


def on_samples(make: Any) -> Callable[..., Any]:
    def call(model: Any = None, data: Any = None, **settings: Any) -> None:
        found = (
            (Ensemble([net(0), net(1)]) if make is EnsembleTrainer else net())
            if model is None
            else model
        )
        own: dict[str, Any] = {"batch_size": 8}
        own = {"inner": {"steps": 2, "batch_size": 8}} if make is HyperTrainer else own
        given = classification_data(X, Y) if data is None else data
        make(found, given, **{**FEW, **own, **settings}).fit()

    return call


ensemble, samples, hyper = map(on_samples, (EnsembleTrainer, PerSampleTrainer, HyperTrainer))
EACH = {"ensemble": ensemble, "samples": samples, "hyper": hyper}


def meta(model: Any = None, tasks: Any = None, **settings: Any) -> None:
    few = {**FEW, "meta_batch": 2, "validation_tasks": 2}
    model = MLP((1,), 1, hidden=(4,)) if model is None else model
    MetaTrainer(model, SinusoidTasks() if tasks is None else tasks, **{**few, **settings}).fit()


def meta_gradient(optimizer: Any, pair: Any = None) -> None:
    def loss(params: Tensor, batch: Any) -> Tensor:
        return ((batch[0] * params - batch[1]) ** 2).mean()

    part = torch.ones(2, 3, 1)
    tasks = TaskBatch((part, part), (part, part)) if pair is None else pair
    core.meta_gradient(loss, torch.ones(1), tasks, optimizer=optimizer, steps=1)


WEIGHT = [torch.ones(1, requires_grad=True)]
MAKES_DATA = "classification_data or regression_data of metalearn.data makes it of these"
MAKES_ENSEMBLE = (
    r"an Ensemble is needed: Ensemble\(\[a, b\]\) of networks, or Ensemble.from_factory"
)
OF_OPTIMISER = r"the optimiser has it: optimizer=functools.partial\(torch.optim.Adam, lr="

Row = tuple[str, Callable[[], Any], "str | None"]

NETWORKS: list[Row] = [
    ("Ensemble([a, b])", lambda: Ensemble([net(0), net(1)]), None),
    ("Ensemble of two kinds", lambda: Ensemble([net(), nn.Linear(5, 3)]), None),
    ("from_factory(f, 3)", lambda: Ensemble.from_factory(net, 3), None),
    ("from_factory(class, 2)", lambda: Ensemble.from_factory(Wide, 2), None),
    ("from_factory(class without)", lambda: Ensemble.from_factory(Plain, 2), None),
    ("Ensemble(a)", lambda: Ensemble(nn.Linear(5, 3)), r"a list of Modules is needed: \[a, b\]"),  # type: ignore[arg-type]
    ("Ensemble(a, b)", lambda: Ensemble(net(), net()), r"given as one list, \[a, b\]"),  # type: ignore
    ("Ensemble(sequential)", lambda: Ensemble(nn.Sequential(net())), r"\[model\] of one"),  # type: ignore
    ("from_factory(net, 3)", lambda: Ensemble.from_factory(net(), 3), r"Ensemble\(\[a, b\]\)"),
    ("EnsembleTrainer(net)", lambda: ensemble(net()), MAKES_ENSEMBLE),
    ("EnsembleTrainer([a, b])", lambda: ensemble([net(), net()]), MAKES_ENSEMBLE),
    ("PerSampleTrainer(ensemble)", lambda: samples(Ensemble([net()])), "EnsembleTrainer trains"),
    ("HyperTrainer(ensemble)", lambda: hyper(Ensemble([net()])), "EnsembleTrainer trains several"),
    ("without parameters", lambda: samples(Plain()), "a parameter to train is needed"),
    ("without parameters, meta", lambda: meta(Plain()), "a parameter to learn is needed"),
    ("without parameters, hyper", lambda: hyper(Plain()), "a parameter to train is needed"),
    ("the class", lambda: samples(MLP), r"a Module is needed, such as MLP\(…\)"),
    ("other outputs", lambda: samples(net(outputs=4)), r"\[2, 3\] are needed, not \[2, 4\]"),
    ("other inputs", lambda: samples(nn.Linear(4, 3)), r"inputs \[5\] are what it gets"),
    ("float64", lambda: samples(net().double()), "Float and Double"),
    ("on the meta device", lambda: samples(net().to("meta")), "not on the meta device"),
    ("on the meta device, hyper", lambda: hyper(net().to("meta")), "not on the meta device"),
    ("outputs of tasks", lambda: meta(MLP((1,), 3)), r"outputs \[5, 1\] are needed for these"),
]  # fmt: skip

DATA: list[Row] = [
    *(
        (f"{name}({kind})", functools.partial(call, None, data), MAKES_DATA)
        for name, call in EACH.items()
        for kind, data in {
            "loader": DataLoader(PAIRS), "dataset": PAIRS, "pair": (X, Y), "tensor": X,
            "array": X.numpy(),
        }.items()
    ),
    ("samples(tasks)", lambda: samples(None, SinusoidTasks()), "MetaTrainer trains on tasks"),
    ("samples(path)", lambda: samples(None, "pictures"), r"folder_data\(root\) reads a folder"),
    ("meta(data)", lambda: meta(None, digits_data()), "PerSampleTrainer train on samples"),
    ("meta(pair)", lambda: meta(None, (X, Y)), "a TaskDistribution is needed, such as Few"),
    ("meta(loader)", lambda: meta(None, DataLoader(PAIRS)), "a TaskDistribution is needed, such"),
    ("float64 arrays", lambda: samples(None, classification_data(X.double().numpy(), Y)), None),
    ("labels from 1", lambda: samples(None, classification_data(X, Y + 1)), None),
    ("labels of floats", lambda: samples(None, classification_data(X, Y.float())), None),
    ("one-hot", lambda: samples(None, classification_data(X, np.eye(3)[Y])), None),
    ("strings", lambda: samples(None, classification_data(X, [f"c{y}" for y in Y])), None),
    ("a loader", lambda: samples(None, classification_data(DataLoader(PAIRS, 7, True))), None),
    ("a network elsewhere", lambda: samples(net().to("cpu"), device="cpu"), None),
    ("real targets", lambda: samples(MLP((5,), 2), regression_data(X, X[:, 0])), None),
    ("raw labels from 1", lambda: raw(Y + 1), "classification_data takes labels from 1"),
    ("raw labels of floats", lambda: raw(Y.float()), "classification_data makes them of labels"),
    ("raw arrays", lambda: raw(Y.numpy()), "a Tensor is needed, such as torch.as_tensor makes"),
    ("plain pair of tasks", lambda: meta_gradient(core.sgd(0.1), ((X, X), (X, X))),
     r"TaskBatch\(support, query\)"),
]  # fmt: skip


def raw(targets: Any) -> ClassificationData:
    rows = torch.arange(60)
    splits: Any = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
    return ClassificationData(X, targets, ("a", "b", "c"), splits)


OPTIMISERS: list[Row] = [
    ("SGD", lambda: meta_gradient(torch.optim.SGD), r"metalearn.core.sgd\(0.1\)"),
    ("Adam", lambda: meta_gradient(torch.optim.Adam), r"metalearn.core.adam\(0.1\)"),
    ("SGD with momentum", lambda: meta_gradient(torch.optim.SGD(WEIGHT, lr=0.3, momentum=0.9)),
     r"metalearn.core.sgd\(0.3, momentum=0.9\)"),
    ("AdamW of parameters", lambda: meta_gradient(torch.optim.AdamW(WEIGHT, lr=0.02)),
     r"metalearn.core.adamw\(0.02\)"),
    ("core.sgd", lambda: meta_gradient(core.sgd), r"such as metalearn.core.sgd\(0.1\)"),
    ("a rate", lambda: meta_gradient(0.1), r"such as metalearn.core.sgd\(0.1\)"),
    ("core.sgd(0.1)", lambda: meta_gradient(core.sgd(0.1)), None),
    *(
        row
        for name, call in {**EACH, "meta": meta}.items()
        for row in (
            (f"{name}: class", functools.partial(call, optimizer=torch.optim.SGD), None),
            (f"{name}: made", functools.partial(call, optimizer=torch.optim.SGD(WEIGHT, 0.1)),
             r"functools.partial\(torch.optim.SGD, lr=0.001\)"),
            (f"{name}: name", functools.partial(call, optimizer="adam"),
             r"functools.partial\(torch.optim.Adam, lr=0.001\)"),
        )
    ),
]  # fmt: skip

SETTINGS: list[Row] = [
    *(
        (f"{name}: {setting}={value!r}", functools.partial(call, **{setting: value}), message)
        for name, call in {**EACH, "meta": meta}.items()
        for setting, value, message in (
            ("epochs", 3, "did you mean steps. They are batches: an epoch has samples / batch"),
            ("stpes", 3, "there is no such setting; did you mean steps"),
            ("iterations", 3, "did you mean steps"),
            ("early_stopping", 3, "did you mean patience"),
            ("verbose", True, "did you mean progress"),
            ("steps", 0, "steps=0: a whole number of at least 1"),
            ("steps", -5, "steps=-5: a whole number of at least 1"),
            ("steps", 1.5, "steps=1.5: a whole number of at least 1"),
            ("tracker", "runs/a", r"a Tracker is needed, such as RunTracker\('runs/a'\)"),
            ("schedule", "cosin", "one of cosine, constant"),
            ("precision", "bf16", "float32 or bfloat16 is needed"),
            ("diagnostics", ["noise_scal"], "did you mean noise_scale"),
            ("clip", -1, "None or a number above 0"),
        )
    ),
    *(
        (f"{name}: {setting}", functools.partial(call, **{setting: value}), message)
        for name, call in EACH.items()
        for setting, value, message in (
            ("loss", "crossentropy", "did you mean cross_entropy"),
            ("loss", nn.CrossEntropyLoss, r"as CrossEntropyLoss\(\) may be one"),
            ("criterion", nn.CrossEntropyLoss(), "did you mean loss"),
            ("monitor", "acuracy", "one of loss, accuracy"),
        )
    ),
    ("samples: lr", lambda: samples(lr=0.1), OF_OPTIMISER),
    ("samples: learning_rate", lambda: samples(learning_rate=0.1), f"{OF_OPTIMISER}0.001"),
    ("ensemble: learning_rate", lambda: ensemble(learning_rate=0.1), "did you mean lr"),
    ("ensemble: engine", lambda: ensemble(engine="bached"), "one of auto, batched, loop"),
    ("samples: batchsize", lambda: samples(batchsize=4), "did you mean batch_size"),
    ("samples: method", lambda: samples(method="layer"), "one of layers, vmap, loop"),
    ("meta: lr", lambda: meta(lr=0.1), OF_OPTIMISER),
    ("meta: batch_size", lambda: meta(batch_size=4), "did you mean meta_batch"),
    ("meta: inner_lr", lambda: meta(inner_lr=0.1), r"maml=MAML\(inner_lr=…\)"),
    ("meta: learner", lambda: meta(learner="protonets"), "did you mean protonet"),
    ("meta: by place", lambda: MetaTrainer(MLP((1,), 1), SinusoidTasks(), "maml"),  # type: ignore
     "model, tasks may stand without a name, the others are given by name, learner=…"),
    ("hyper", lambda: hyper(hyper="example_weight"), "did you mean example_weights"),
    ("hyper: inner", lambda: hyper(inner={"stpes": 2}), "did you mean inner.steps"),
    ("private: epsilom", lambda: PrivateTrainer(net(), classification_data(X, Y), epsilom=1.0),
     "did you mean epsilon"),
    ("MAML", lambda: MAML(inner_step=2), "did you mean inner_steps"),  # type: ignore[call-arg]
    ("LoopSettings", lambda: LoopSettings(step=2), "did you mean steps"),  # type: ignore[call-arg]
    ("RunSettings", lambda: RunSettings(step=2), "did you mean steps"),  # type: ignore[call-arg]
    ("MLP", lambda: MLP((5,), 3, hiden=(4,)), "did you mean hidden"),  # type: ignore[call-arg]
]  # fmt: skip

ROWS = [*NETWORKS, *DATA, *OPTIMISERS, *SETTINGS]


@pytest.mark.parametrize(
    ("attempt", "message"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_a_first_attempt_is_taken_or_answered(
    attempt: Callable[[], Any], message: str | None
) -> None:
    if message is None:
        attempt()
        return
    with pytest.raises(SettingError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"sed": 1}, {"number": 1}])
def test_an_argument_that_is_not_there_is_a_type_error_as_well(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="there is no such setting"):
        digits_data(**arguments)


def test_a_path_makes_a_tracker(tmp_path: Path) -> None:
    tracker = RunTracker(str(tmp_path / "run"))
    samples(tracker=tracker)
    tracker.close()
    assert list((tmp_path / "run").rglob("events*"))


def test_a_class_of_networks_is_given_no_seed_for_a_width() -> None:
    assert [member.in_features for member in Ensemble.from_factory(Wide, 2).members()] == [5, 5]
    a, b = Ensemble.from_factory(Wide, 2).members()
    assert not torch.equal(a.weight, b.weight)  # type: ignore[arg-type]


def test_networks_in_a_list_are_copied_in_their_order() -> None:
    members = [net(3), nn.Sequential(nn.Linear(5, 3)), net(1)]
    found = Ensemble(members)(X)
    for row, member in zip(found, members):
        torch.testing.assert_close(row, member(X))
    torch.testing.assert_close(Ensemble.from_factory(net, 2)(X), Ensemble([net(0), net(1)])(X))


def test_scores_before_training_are_those_of_the_first_weights() -> None:
    model, data = net(), classification_data(X, Y)
    scores = PerSampleTrainer(model, data, batch_size=8, **FEW).test().headline()
    x, y = data.part("test")
    wanted = (model.eval()(x).argmax(1) == y).double().mean()
    assert scores["test/accuracy"] == pytest.approx(float(wanted))
