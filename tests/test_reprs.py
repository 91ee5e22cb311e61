"""What is printed of public objects: one line with the class and its main sizes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import Ensemble
from metalearn.core import Eager, FormedGradients, adam, compiled, sgd
from metalearn.data import MemberBatches, classification_data, mislabelled, regression_data
from metalearn.models import MLP
from metalearn.tasks import FewShotTasks, MixtureTasks, SinusoidTasks, glyph_tasks
from metalearn.trainers import MAML, HyperTrainer, MetaTrainer, ParameterGroups, PerSampleTrainer
from metalearn.trainers.diagnostics.registry import DIAGNOSTICS
from metalearn.trainers.meta.registry import LEARNERS
from tests.support.small_data import KINDS, blobs, trainer

FACES = [f"metalearn.{name}" for name in ("trainers", "models", "data", "core", "tasks")]
"""Results, which are tuples and dataclasses, are shown by all their fields."""
INNER = {"steps": 2, "batch_size": 8}


def tasks() -> FewShotTasks:
    return glyph_tasks(way=3, shot=2, query=4, seed=5)


def meta(learner: str) -> MetaTrainer:
    kind = "regression" if learner in ("cnp", "cavia") else "classification"
    source: Any = SinusoidTasks() if kind == "regression" else tasks()
    return MetaTrainer(_network(source, learner), source, learner=learner, steps=3, meta_batch=2)


def _network(source: Any, learner: str) -> nn.Module:
    return MLP(source.input_shape, source.outputs, hidden=(4,))


X = np.zeros((30, 4), np.float32)
LABELS = np.arange(30) % 3
MADE: dict[str, Callable[[], Any]] = {
    **{name: partial(trainer, kind) for name, kind in KINDS.items()},
    "per_sample": lambda: PerSampleTrainer(MLP((2,), 3), blobs(), steps=3, batch_size=8),
    "hyper": lambda: HyperTrainer(MLP((2,), 3), blobs(), steps=1, inner=INNER),  # type: ignore[arg-type]
    "meta": lambda: meta("protonet"),
    "maml": MAML,
    "classes": lambda: classification_data(X, LABELS),
    "targets": lambda: regression_data(X, LABELS),
    "mislabelled": lambda: mislabelled(classification_data(X, LABELS), fraction=0.2),
    "glyphs": lambda: tasks().data,
    "few_shot": tasks,
    "sinusoid": SinusoidTasks,
    "mixture": lambda: MixtureTasks({"a": tasks(), "b": tasks()}),
    "batches": lambda: MemberBatches(torch.arange(9), batch_size=3, seeds=[0, 1]),
    "groups": lambda: ParameterGroups(torch.optim.SGD, [{"params": "a*", "lr": 0.1}]),
    "sgd": lambda: sgd(0.1),
    "adam": lambda: adam(0.1),
    "eager": Eager,
    "compiled": lambda: compiled(torch.sin),
    **{f"diagnostic {name}": kind for name, kind in DIAGNOSTICS.items()},
}


@pytest.mark.parametrize("name", MADE)
def test_an_object_is_shown_in_one_line(name: str) -> None:
    made = MADE[name]()
    shown = repr(made)
    assert shown.startswith(f"{type(made).__name__}(") and shown.endswith(")")
    assert "\n" not in shown and " at 0x" not in shown and len(shown) < 700


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_a_learner_is_shown_with_its_network(name: str) -> None:
    kind: Any = LEARNERS[name].make
    kind = getattr(kind, "func", kind)
    if inspect.isclass(kind):
        assert kind.__repr__ is not object.__repr__


@pytest.mark.parametrize("face", FACES)
def test_no_public_class_has_pythons_own_words(face: str) -> None:
    module = import_module(face)
    bare = []
    for name in module.__all__:
        kind = getattr(module, name)
        if inspect.isclass(kind) and kind.__repr__ is object.__repr__:
            bare.append(name)
    assert bare == []


def test_what_is_shown_is_what_there_is() -> None:
    data = classification_data(X, LABELS)
    wanted = "3 classes, 30 samples [4], train 18, validation 6, test 6"
    assert repr(data) == f"ClassificationData({wanted})"
    assert repr(tasks()) == "FewShotTasks(way=3, shot=2, query=4, seed=5, inputs [1, 28, 28])"
    found = repr(trainer(KINDS["deep"]))
    size = sum(p.numel() for p in MLP((2,), 3, hidden=(8,)).parameters())
    assert found == f"EnsembleTrainer(Ensemble of 3, {3 * size} parameters, step 0 of 12, on cpu)"
    assert re.fullmatch(r"ProtoNet\(MLP, [\d,]+ parameters, .*\)", repr(meta("protonet").learner))


def test_an_ensemble_says_how_many_it_is_of() -> None:
    shown = repr(Ensemble.from_factory(lambda: MLP((2,), 3), 3))
    assert shown.startswith("Ensemble(") and " at 0x" not in shown


def test_gradients_of_samples_are_told_by_their_sizes() -> None:
    found = repr(FormedGradients(torch.zeros(5, 2, 3)))
    assert found == "FormedGradients(5 samples, parameter [2, 3])"
