"""Working calls of the methods that users call, and of functions that are made; as in `calls`."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn import core, data, evaluation, models, tasks, trainers
from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.core import functionalize
from metalearn.tracking import NullTracker, RunTracker
from tests.contracts.calls import CALLS, Call, draw, network, ones, problem
from tests.support.builders import labelled
from tests.support.small_data import blobs, waves

MLP = models.MLP
QUIET: dict[str, Any] = {"steps": 2, "progress": False}


def pair() -> models.Ensemble:
    return models.Ensemble.from_factory(lambda seed: MLP((2,), 3, hidden=(4,), seed=seed), range(2))


def ensemble_trainer() -> trainers.EnsembleTrainer:
    return trainers.EnsembleTrainer(pair(), blobs(), batch_size=8, **QUIET)


def sample_trainer() -> trainers.PerSampleTrainer:
    return trainers.PerSampleTrainer(MLP((2,), 3, hidden=(4,)), blobs(), batch_size=8, **QUIET)


def meta_trainer(**settings: Any) -> trainers.MetaTrainer:
    net = MLP((1,), 1, hidden=(4,))
    given = {"meta_batch": 2, "validation_tasks": 2, **QUIET, **settings}
    return trainers.MetaTrainer(net, tasks.SinusoidTasks(), **given)


def classifier() -> trainers.MetaLearner:
    return trainers.MetaLearner(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))


def few_shot() -> tasks.FewShotTasks:
    return tasks.FewShotTasks(labelled(), way=2)


def member_learner() -> trainers.MemberLearner:
    nets = models.Ensemble.from_factory(lambda seed: MLP((1,), 1, seed=seed), [0, 1])
    return trainers.MemberLearner(nets, kind="regression")


_ROOT = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _ROOT, True)


def folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_ROOT))


def statistics() -> evaluation.EnsembleStatistics:
    return evaluation.EnsembleStatistics(2, 3)


def saved() -> Path:
    path = folder() / "last.pt"
    save_checkpoint(path, {"a": 1})
    return path


def _support() -> Any:
    batch = few_shot().sample("train", [0])
    return batch.support[0][0], batch.support[1][0]


def _sinusoids() -> Any:
    return tasks.SinusoidTasks().sample("train", [0, 1])


def _single() -> Any:
    batch = _sinusoids()
    return batch.support[0][0], batch.support[1][0]


def _method(
    owner: Callable[[], Any], method: str, /, **given: Callable[[], Any]
) -> Callable[[], Call]:
    return lambda: (getattr(owner(), method), {key: make() for key, make in given.items()})


def _function(function: Callable[..., Any], **given: Callable[[], Any]) -> Callable[[], Call]:
    return lambda: (function, {key: make() for key, make in given.items()})


def _tracked(method: str, /, **given: Callable[[], Any]) -> Callable[[], Call]:
    """A method of a tracker that is closed afterwards."""

    def call(**given: Any) -> None:
        with closing(RunTracker(folder())) as tracker:
            getattr(tracker, method)(**given)

    return _function(call, **given)


def _index() -> Any:
    function, given = CALLS["attribution.load_gradient_index"]()
    return function(**given)


def _kfac() -> Any:
    function, given = CALLS["core.fisher_kfac"]()
    return function(**given)


def _applied() -> Call:
    apply, params, buffers = functionalize(network())
    return (lambda params, buffers: apply(params, buffers, draw(4, 3))), {
        "params": params,
        "buffers": buffers,
    }


def _operator(name: str) -> Callable[[], Call]:
    def make() -> Call:
        function, given = CALLS[f"core.{name}"]()
        operator = function(**given)
        return (lambda vector: operator(vector)), {"vector": ones(problem()["params"])}

    return make


def _differentiated(name: str) -> Callable[[], Call]:
    def make() -> Call:
        taken = getattr(core, name)(lambda x: (x**3).sum())
        return (lambda x: taken(x)), {"x": draw(3)}

    return make


def _reduced(name: str) -> Callable[[], Call]:
    def make() -> Call:
        given = {key: problem()[key] for key in ("loss_fn", "params", "batch")}
        reductions = {"it": getattr(core, name)()}
        return (lambda **all: core.reduce_per_sample(reductions=reductions, **all)), given

    return make


def _inner(make: Callable[[], core.InnerOptimizer]) -> Callable[[], Call]:
    def adapted() -> Call:
        given = {key: problem()[key] for key in ("loss_fn", "params", "support")}
        return (lambda **all: core.adapt(optimizer=make(), steps=1, **all)), given

    return adapted


METHODS: dict[str, Callable[[], Call]] = {
    "apply": _applied,
    "hessian_operator(v)": _operator("hessian_operator"),
    "ggn_operator(v)": _operator("ggn_operator"),
    "fisher_operator(v)": _operator("fisher_operator"),
    "jacobian(f)(x)": _differentiated("jacobian"),
    "hessian(f)(x)": _differentiated("hessian"),
    "gradient_mean": _reduced("gradient_mean"),
    "gradient_norms": _reduced("gradient_norms"),
    "gradient_variance": _reduced("gradient_variance"),
    "adapt by adam": _inner(lambda: core.adam(0.1)),
    "adapt by momentum": _inner(lambda: core.sgd(0.1, momentum=0.9, weight_decay=0.1)),
    "KroneckerFisher.product": lambda: (_kfac().product, {"vector": ones(problem()["params"])}),
    "KroneckerFisher.inverse_product": lambda: (
        _kfac().inverse_product,
        {"vector": ones(problem()["params"]), "damping": 0.1},
    ),
    "GradientIndex.query": lambda: (
        _index().query,
        {"targets": problem()["batch"], "metric": "influence", "damping": 0.1},
    ),
    "Ensemble.member": _method(pair, "member", index=lambda: 1),
    "Ensemble.place": _method(pair, "place", index=lambda: 1),
    "Stack.member": _method(lambda: pair().stacks[0], "member", row=lambda: 1),
    "ClassificationData.take": _method(blobs, "take", indices=lambda: torch.arange(3)),
    "ClassificationData.take on": _method(
        blobs, "take", indices=lambda: torch.arange(3), device=lambda: "cpu"
    ),
    "ClassificationData.part": _method(blobs, "part", split=lambda: "train", device=lambda: "cpu"),
    "ClassificationData.size": _method(blobs, "size", split=lambda: "train"),
    "RegressionData.take": _method(waves, "take", indices=lambda: torch.arange(3)),
    "MemberBatches.indices": _method(
        lambda: data.MemberBatches(10, batch_size=4, seeds=[0, 1]), "indices", step=lambda: 3
    ),
    "FewShotTasks.sample": _method(
        few_shot, "sample", split=lambda: "train", indices=lambda: [0, 1], device=lambda: "cpu"
    ),
    "FewShotTasks.class_names": _method(
        few_shot, "class_names", split=lambda: "train", index=lambda: 1
    ),
    "SinusoidTasks.sample": _method(
        tasks.SinusoidTasks,
        "sample",
        split=lambda: "train",
        indices=lambda: [0],
        device=lambda: "cpu",
    ),
    "EnsembleStatistics.update": _method(
        statistics, "update", logits=lambda: draw(2, 4, 3), targets=lambda: torch.arange(4) % 3
    ),
    "RegressionStatistics.update": _method(
        lambda: evaluation.RegressionStatistics(2, 3),
        "update",
        outputs=lambda: draw(2, 4, 6),
        targets=lambda: draw(4, 3, seed=1),
    ),
    "MetaLearner.adapt of classes": _method(
        classifier, "adapt", support=_support, steps=lambda: 1, transductive=lambda: False
    ),
    "MetaLearner.score of classes": _method(
        classifier,
        "score",
        tasks=lambda: few_shot().sample("train", [0, 1]),
        steps=lambda: 1,
        inductive=lambda: True,
    ),
    "MetaLearner.meta_gradient": _method(
        classifier, "meta_gradient", tasks=lambda: few_shot().sample("train", [0, 1])
    ),
    "MetaLearner.settle": _method(
        classifier,
        "settle",
        tasks=lambda: few_shot().sample("train", [0, 1]),
        task_count=lambda: 4,
    ),
    "MetaLearner.outputs": _method(classifier, "outputs", inputs=lambda: _support()[0]),
    "MetaLearner.loss": lambda: (
        lambda batch: (learner := classifier()).loss(learner.params, batch),
        {"batch": _support()},
    ),
    "MetaLearner.unused_parameters": _method(classifier, "unused_parameters", batch=_support),
    "MemberLearner.adapt": _method(member_learner, "adapt", support=_single, steps=lambda: 1),
    "MemberLearner.score": _method(member_learner, "score", tasks=_sinusoids, steps=lambda: 1),
    "MemberLearner.meta_gradient": _method(member_learner, "meta_gradient", tasks=_sinusoids),
    "EnsembleTrainer.predict": _method(
        ensemble_trainer, "predict", inputs=lambda: torch.ones(4, 2)
    ),
    "EnsembleTrainer.test": _method(ensemble_trainer, "test", split=lambda: "test"),
    "EnsembleTrainer.resume": _method(ensemble_trainer, "resume", path=lambda: _of_run("ensemble")),
    "PerSampleTrainer.predict": _method(sample_trainer, "predict", inputs=lambda: torch.ones(4, 2)),
    "PerSampleTrainer.test": _method(sample_trainer, "test", split=lambda: "test"),
    "MetaTrainer.test": _method(
        meta_trainer, "test", count=lambda: 2, split=lambda: "test", inductive=lambda: False
    ),
    "MetaTrainer.resume": _method(meta_trainer, "resume", path=lambda: _of_run("meta")),
    "RunTracker": _function(lambda **given: RunTracker(**given).close(), folder=folder),
    "RunTracker.scalars": _tracked("scalars", step=lambda: 1, values=lambda: {"loss": 1.0}),
    "RunTracker.histograms": _tracked(
        "histograms", step=lambda: 1, name=lambda: "w", tensors=lambda: {"a": draw(3)}
    ),
    "RunTracker.curves": _tracked(
        "curves", step=lambda: 1, name=lambda: "c", values=lambda: {"0": 1.0}
    ),
    "NullTracker.scalars": _method(
        NullTracker, "scalars", step=lambda: 1, values=lambda: {"loss": 1.0}
    ),
    "save_checkpoint": _function(
        save_checkpoint, path=lambda: folder() / "a.pt", state=lambda: {"a": 1}
    ),
    "load_checkpoint": _function(load_checkpoint, path=saved, device=lambda: "cpu"),
}
"""By class and method."""


def _of_run(kind: str) -> Path:
    """The checkpoint of a short run."""
    where = folder()
    if kind == "meta":
        meta_trainer(folder=where).fit()
    else:
        trainers.EnsembleTrainer(pair(), blobs(), batch_size=8, folder=where, **QUIET).fit()
    return where / "checkpoints" / "last.pt"
