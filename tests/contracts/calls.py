"""A working call of every public function, by face and name: contracts run over them.

A new public name is one more entry; `test_every_public_function_has_a_call` names what is missing.
Each entry gives fresh arguments, in float64, small enough for hundreds of calls a second.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import (
    attribution,
    auditing,
    core,
    data,
    evaluation,
    models,
    privacy,
    tasks,
    trainers,
)
from metalearn.core import functionalize
from metalearn.tracking import NullTracker
from metalearn.types import TaskBatch
from tests.support.builders import labelled
from tests.support.found import found
from tests.support.learnt import learnt
from tests.support.small_data import blobs, regressors, waves

_FOLDERS = tempfile.TemporaryDirectory()

Call = tuple[Callable[..., Any], dict[str, Any]]

FACES = (
    "core",
    "models",
    "data",
    "tasks",
    "evaluation",
    "trainers",
    "attribution",
    "privacy",
    "auditing",
)
FILES = {
    "LabelledFiles",
    "list_folder",
    "load_folder",
    "load_texts",
    "text_tasks",
    "load_omniglot",
    "folder_data",
    "omniglot_data",
    "torchvision_data",
}
FILES |= {"folder_tasks", "omniglot_tasks", "load_glyphs", "glyphs_data", "glyph_tasks"}
FILES |= {"load_cifar_fs", "load_fc100", "cifar_fs_tasks", "fc100_tasks", "load_cub", "cub_tasks"}
FILES |= {"load_mini_imagenet", "load_tiered_imagenet", "load_weights", "read_weights"}
FILES |= {"read_episodes", "mini_imagenet_tasks", "tiered_imagenet_tasks"}
FILES |= {"mixture_tasks", "torchvision_model"}
"""Read files, or make large networks: their campaigns are in tests/data and tests/models."""
RESULTS = {"EnsembleReport", "ReliabilityBins", "Scores", "EnsembleTest", "FitResult", "RankOne"}
RESULTS |= {"SavedWeights", "RegressionReport", "RegressionScores", "RegressionTest"}
RESULTS |= {"Confusion", "Episode", "DirectionCheck", "HyperPlan", "HyperProgress", "GradientIndex"}
RESULTS |= {
    "ExactScores",
    "RunCurvature",
    "SubsetOutcomes",
    "TrainingRun",
    "LeaveKOut",
    "LearnerScores",
}
RESULTS |= {"HyperTest", "RunSetup"}
RESULTS |= {"MemberReport", "TestReport", "Plan", "OODScores", "Temperature"}
RESULTS |= {"ConformalPredictor", "RiskCoverage", "SetScores"}
RESULTS |= {"Attributed", "ScoredNetwork", "PrivacySpent", "RecordedRun"}
RESULTS |= {"EpsilonBound", "StepAudit", "TrainingAudit"}
"""What the library gives, never what it is given."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for index, parameter in enumerate(net.parameters()):
        parameter.data = draw(*parameter.shape, seed=index)
    return net


def problem() -> dict[str, Any]:
    """``loss_fn``, ``task_loss``, ``outputs_fn``, ``params``, ``batch``, ``tasks`` of a network."""
    net = network()
    apply, params, buffers = functionalize(net)

    def outputs_fn(params: Any, inputs: Any) -> Tensor:
        found: Tensor = apply(params, buffers, inputs)
        return found

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs_fn(params, batch[0]), batch[1])

    def task_loss(params: Any, support: Any, query: Any) -> Tensor:
        centre = outputs_fn(params, support[0]).mean(0)
        return F.cross_entropy(outputs_fn(params, query[0]) - centre, query[1])

    x, y = draw(3, 4, 3), torch.arange(12).view(3, 4) % 2
    return {
        "module": net,
        "apply": apply,
        "buffers": buffers,
        "outputs_fn": outputs_fn,
        "loss_fn": loss_fn,
        "task_loss": task_loss,
        "params": params,
        "batch": (x[0], y[0]),
        "support": (x[0], y[0]),
        "tasks": TaskBatch((x, y), (x.flip(1), y.flip(1))),
    }


def ones(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(value) for name, value in tree.items()}


def quadratic(x: Tensor) -> Tensor:
    return (x**4).sum()


def matvec(v: Tensor) -> Tensor:
    return torch.arange(1, 6, dtype=v.dtype) * v


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _of(face: Any, name: str, *keys: str, **given: Any) -> Callable[[], Call]:
    """A call with ``keys`` of `problem`, and values, those that are functions made anew."""

    def make() -> Call:
        known = problem()
        fresh = {k: v() if getattr(v, "fresh", False) else v for k, v in given.items()}
        return getattr(face, name), {k: known[k] for k in keys} | fresh

    return make


def _fresh(make: Callable[[], Any]) -> Callable[[], Any]:
    make.fresh = True  # type: ignore[attr-defined]
    return make


_generator = _fresh(generator)
_sgd = _fresh(lambda: core.sgd(0.1))
_LOSS = ("loss_fn", "params", "batch")
_META = ("loss_fn", "params", "tasks")
_OUT = ("outputs_fn", "params", "batch")
_FISHER = {"likelihood": "categorical", "kind": "exact"}
_SPECTRUM = {"matvec": matvec, "like": torch.zeros(5, dtype=torch.float64)}


def _run() -> dict[str, Any]:
    """Two steps on weighted samples, and the loss of one sample."""
    known = problem()
    x, y = known["batch"]

    def inner_loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(known["outputs_fn"](params, x[batch]), y[batch], reduction="none")
        return (losses * hyper["weights"][batch]).mean()

    def outer_loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        return F.cross_entropy(known["outputs_fn"](params, batch[0]), batch[1])

    return {
        "inner_loss": inner_loss,
        "outer_loss": outer_loss,
        "params": known["params"],
        "hyper": {"weights": torch.ones(4, dtype=torch.float64)},
        "inner_batches": [torch.tensor([0, 1]), torch.tensor([2, 3])],
        "outer_batch": (x[:1] + 1, y[:1]),
        "optimizer": core.sgd(0.1),
    }


def _checked_run() -> dict[str, Any]:
    return {"found": core.hyper_gradient(**_run()), **_run(), "generator": generator()}


def _core() -> dict[str, Callable[[], Call]]:
    inner = {"optimizer": _sgd, "steps": 1}
    params = _fresh(lambda: problem()["params"])
    vector = _fresh(lambda: ones(problem()["params"]))
    stacked = _fresh(lambda: core.stack([problem()["params"]] * 2))
    calls = {
        "adam": _of(core, "adam", lr=0.1),
        "adamw": _of(core, "adamw", lr=0.1),
        "sgd": _of(core, "sgd", lr=0.1),
        "with_gradients": _of(
            core, "with_gradients", optimizer=_sgd, clip_norm=1.0, support_batch=2
        ),
        "Adaptation": _of(core, "Adaptation", loss=lambda p, b: p["w"].sum(), **inner),
        "adapt": _of(core, "adapt", "loss_fn", "params", "support", **inner),
        "inner_trajectory": _of(core, "inner_trajectory", "loss_fn", "params", "support", **inner),
        "along_adaptation": _of(
            core, "along_adaptation", *_META, visit=lambda p, s, q: s[0].sum(), **inner
        ),
        "check_per_sample": _of(core, "check_per_sample", *_LOSS),
        "clipped_gradient": _of(core, "clipped_gradient", *_LOSS, max_norm=1.0),
        "clipping_bias": _of(core, "clipping_bias", *_LOSS, max_norm=1.0),
        "consolidated_loss": _of(
            core, "consolidated_loss", "loss_fn", anchor=params, fisher=vector, strength=1.0
        ),
        "consolidation_penalty": _of(
            core, "consolidation_penalty", "params", anchor=params, fisher=vector, strength=1.0
        ),
        "compiled": _of(core, "compiled", function=torch.sum, compiler="aot_eager"),
        "CompiledFunction": _of(core, "CompiledFunction", function=torch.sum, compiler="aot_eager"),
        "convert_norm": _of(core, "convert_norm", "module", norm="group"),
        "effective_rank": _of(core, "effective_rank", matrix=torch.eye(3, dtype=torch.float64)),
        "fisher_kfac": _of(core, "fisher_kfac", "module", "params", "batch", **_FISHER),
        "fisher_operator": _of(
            core,
            "fisher_operator",
            "outputs_fn",
            "params",
            batches=_fresh(lambda: [problem()["batch"]]),
            **_FISHER,
        ),
        "fisher_vp": _of(core, "fisher_vp", *_OUT, vector=vector, **_FISHER),
        "functionalize": _of(core, "functionalize", "module"),
        "ggn_operator": _of(
            core,
            "ggn_operator",
            "outputs_fn",
            "params",
            output_loss=F.cross_entropy,
            batches=_fresh(lambda: [problem()["batch"]]),
        ),
        "ggn_vp": _of(
            core,
            "ggn_vp",
            outputs_fn=lambda x: x**2,
            output_loss=quadratic,
            params=draw(3),
            vector=draw(3),
        ),
        "ghost_parameters": _of(core, "ghost_parameters", *_LOSS),
        "FormedGradients": _of(core, "FormedGradients", gradients=draw(6, 3)),
        "IndexedRows": _of(
            core, "IndexedRows", index=torch.zeros(6, dtype=torch.long), rows=draw(6, 3), length=4
        ),
        "LayerCall": _of(
            core,
            "LayerCall",
            run=torch.relu,
            inputs=(draw(3),),
            parameters=(draw(2, 3),),
            gradients=(core.OuterProducts,),
        ),
        "OuterProducts": _of(core, "OuterProducts", left=draw(6, 2), right=draw(6, 3)),
        "register_layer_rule": _of(
            core,
            "register_layer_rule",
            operation=lambda x, weight: x @ weight,
            rule=lambda x, weight: None,
        ),
        "gradient_noise_scale": _of(core, "gradient_noise_scale", grads={"w": draw(6, 3)}),
        "gradient_sketches": _of(core, "gradient_sketches", size=4, generator=_generator),
        "hessian": _of(core, "hessian", f=quadratic),
        "hessian_operator": _of(
            core,
            "hessian_operator",
            "loss_fn",
            "params",
            batches=_fresh(lambda: [problem()["batch"]]),
        ),
        "hvp": _of(core, "hvp", f=quadratic, primals=draw(3), tangents=draw(3)),
        "jacobian": _of(core, "jacobian", f=quadratic),
        "jacobian_mode": _of(core, "jacobian_mode", f=quadratic, args=(draw(3),)),
        "jvp": _of(core, "jvp", f=quadratic, primals=draw(3), tangents=draw(3)),
        "vjp": _of(core, "vjp", f=torch.sin, primals=draw(3), cotangents=draw(3)),
        "lanczos": _of(core, "lanczos", iterations=3, generator=_generator, **_SPECTRUM),
        "top_eigenvalues": _of(
            core, "top_eigenvalues", count=2, iterations=4, generator=_generator, **_SPECTRUM
        ),
        "spectral_density": _of(
            core, "spectral_density", iterations=3, generator=_generator, points=16, **_SPECTRUM
        ),
        "trace_estimate": _of(
            core, "trace_estimate", products=6, generator=_generator, **_SPECTRUM
        ),
        "laplace_posterior": _of(
            core, "laplace_posterior", *_OUT, likelihood="categorical", prior_precision=1.0
        ),
        "laplace_predictive": _of(
            core,
            "laplace_predictive",
            "outputs_fn",
            posterior=_fresh(_posterior),
            inputs=draw(4, 3),
        ),
        "laplace_probabilities": _of(
            core, "laplace_probabilities", mean=draw(4, 2), covariance=torch.eye(2).expand(4, 2, 2)
        ),
        "last_layer": _of(core, "last_layer", "apply", "params", "buffers", names="2.*"),
        "map_members": lambda: (
            lambda function, params, **rest: core.map_members(function, params, **rest),
            {"function": lambda p: p["0.weight"].sum(), "params": stacked()},
        ),
        "member_gradients": lambda: (
            lambda loss_fn, params, batch, **rest: core.member_gradients(
                loss_fn, params, batch, in_dims=None, **rest
            ),
            {k: problem()[k] for k in _LOSS} | {"params": stacked()},
        ),
        "member_meta_gradient": _of(
            core, "member_meta_gradient", "loss_fn", "tasks", params=stacked, **inner
        ),
        "member_task_gradient": _of(
            core, "member_task_gradient", "task_loss", "tasks", params=stacked
        ),
        "hyper_gradient": lambda: (core.hyper_gradient, _run()),
        "check_hyper_gradient": lambda: (core.check_hyper_gradient, _checked_run()),
        "plan_hyper_gradient": lambda: (core.plan_hyper_gradient, _run()),
        "ImplicitSolver": _of(core, "ImplicitSolver", iterations=3, damping=0.1),
        "meta_gradient": _of(core, "meta_gradient", *_META, **inner),
        "task_gradient": _of(core, "task_gradient", "task_loss", "params", "tasks"),
        "task_meta_gradients": _of(core, "task_meta_gradients", *_META, **inner),
        "plan_task_gradient": _of(core, "plan_task_gradient", "task_loss", "params", "tasks"),
        "plan_meta_gradient": _of(core, "plan_meta_gradient", *_META, **inner),
        "natural_gradient": _of(
            core,
            "natural_gradient",
            gradient=draw(5),
            fisher=matvec,
            damping=0.1,
        ),
        "natural_gradient_step": _of(
            core,
            "natural_gradient_step",
            params=draw(5),
            gradient=draw(5),
            fisher=matvec,
            lr=0.1,
            damping=0.1,
        ),
        "noise_average": _of(core, "noise_average", decay=0.9),
        "norm_quantiles": _of(core, "norm_quantiles", q=(0.5,)),
        "per_sample_gradients": _of(core, "per_sample_gradients", *_LOSS),
        "per_sample_norms": _of(core, "per_sample_norms", *_LOSS),
        "per_sample_module": _of(core, "per_sample_module", "module"),
        "reduce_per_sample": _of(
            core, "reduce_per_sample", *_LOSS, reductions={"mean": core.gradient_mean()}
        ),
        "stack": _of(core, "stack", trees=_fresh(lambda: [problem()["params"]] * 2)),
        "unstack": _of(core, "unstack", tree=stacked),
        "Implicit": _of(core, "Implicit", regularization=1.0, iterations=3),
        "Likelihood": lambda: (core.Likelihood, {"name": "categorical", "kind": "exact"}),
    }
    for name in ("gradient_mean", "gradient_norms", "gradient_variance"):
        calls[name] = _of(core, name)
    for name in ("fisher_blocks", "fisher_diagonal", "fisher_matrix", "fisher_trace"):
        calls[name] = _of(core, name, *_OUT, **_FISHER)
    return calls


def _posterior() -> Any:
    known = problem()
    return core.laplace_posterior(
        known["outputs_fn"],
        known["params"],
        known["batch"],
        likelihood="categorical",
        prior_precision=1.0,
    )


def _evaluation() -> dict[str, Callable[[], Call]]:
    confidences, hits = torch.rand(20, generator=generator()), torch.arange(20) % 3 == 0
    logits, targets = draw(3, 20, 4), torch.arange(20) % 4
    calls = {
        name: _of(evaluation, name, confidences=confidences, hits=hits)
        for name in (
            "adaptive_calibration_error",
            "area_under_risk_coverage",
            "expected_calibration_error",
            "reliability_bins",
            "risk_coverage",
        )
    }
    return calls | {
        "ConfusionCounts": _of(evaluation, "ConfusionCounts"),
        "EnsembleStatistics": _of(evaluation, "EnsembleStatistics", members=3, classes=4),
        "RegressionStatistics": _of(evaluation, "RegressionStatistics", members=3, targets=2),
        "fit_conformal": _of(
            evaluation, "fit_conformal", probabilities=logits.softmax(-1)[0], targets=targets
        ),
        "set_scores": _of(evaluation, "set_scores", sets=logits[0] > 0, targets=targets),
        "fit_temperature": _of(
            evaluation, "fit_temperature", logits=logits, targets=targets, pooling="pool_then_scale"
        ),
        "tempered_log_probabilities": _of(
            evaluation,
            "tempered_log_probabilities",
            logits=logits,
            temperature=1.5,
            pooling="pool_then_scale",
        ),
        "ood_scores": _of(
            evaluation,
            "ood_scores",
            in_scores=draw(20),
            out_scores=draw(20, seed=1),
            resamples=5,
            generator=_generator,
        ),
        "uncertainty_scores": _of(evaluation, "uncertainty_scores", logits=logits),
    }


def _models() -> dict[str, Callable[[], Call]]:
    net = _fresh(lambda: models.MLP((2,), 3, hidden=(4,), dropout=0.2))
    plain = _fresh(lambda: models.MLP((2,), 3, hidden=(4,)))
    return {
        "MLP": _of(models, "MLP", input_shape=(2,), outputs=3, hidden=(4,)),
        "Conv4": _of(models, "Conv4", input_shape=(1, 8, 8), outputs=3, filters=2),
        "WithContext": _of(models, "WithContext", network=net, size=2),
        "NeuralProcess": _of(models, "NeuralProcess", network=net, hidden=(4,)),
        "InContextTransformer": _of(models, "InContextTransformer", network=net, width=4),
        "ResNet12": _of(models, "ResNet12", input_shape=(1, 16, 16), outputs=3, filters=2),
        "ViT": _of(models, "ViT", input_shape=(1, 4, 4), outputs=3, patch=2, width=4, depth=1),
        "Recurrent": _of(models, "Recurrent", input_shape=(3, 2), outputs=3, hidden=4),
        "AveragedEmbeddings": _of(
            models, "AveragedEmbeddings", input_shape=(3,), outputs=3, vocabulary=5, width=4
        ),
        "TextTransformer": _of(
            models, "TextTransformer", input_shape=(3,), outputs=3, vocabulary=5, width=4, depth=1
        ),
        "DropBlock": _of(models, "DropBlock", p=0.5),
        "Dropout": _of(models, "Dropout", p=0.5),
        "BatchEnsemble": _of(models, "BatchEnsemble", network=plain, members=2),
        "MCDropout": _of(models, "MCDropout", network=net, draws=2),
        "Ensemble": lambda: (
            models.Ensemble,
            {"stacks": [models.Stack([models.MLP((2,), 3, hidden=(4,))])]},
        ),
        "Ensemble.from_modules": lambda: (
            models.Ensemble.from_modules,
            {"modules": [models.MLP((2,), 3, hidden=(4,), seed=s) for s in (0, 1)]},
        ),
        "Ensemble.from_factory": lambda: (
            models.Ensemble.from_factory,
            {"make": lambda seed: models.MLP((2,), 3, seed=seed), "seeds": [0, 1]},
        ),
        "with_lora": _of(models, "with_lora", module=plain, rank=1, alpha=2.0, layers="1"),
        "LowRank": _of(
            models,
            "LowRank",
            layer=nn.Linear(2, 3),
            rank=1,
            alpha=1.0,
            generator=torch.Generator().manual_seed(0),
        ),
        "with_head": _of(models, "with_head", module=plain, outputs=2, layer="3"),
        "without_head": _of(models, "without_head", module=plain, layer="3"),
        "Stack": lambda: (models.Stack, {"modules": [models.MLP((2,), 3, hidden=(4,))]}),
        "convert_dropout": lambda: (
            models.convert_dropout,
            {"module": nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))},
        ),
        "set_draw": _of(models, "set_draw", module=net, draw=1),
    }


def _data() -> dict[str, Callable[[], Call]]:
    targets = torch.arange(12) % 3
    splits = {"train": targets[:1] + 0, "validation": targets[1:2] + 0, "test": targets[2:3] + 0}
    return {
        "AffineRanges": _of(data, "AffineRanges", rotate=10.0),
        "Augmentation": _of(data, "Augmentation", max_shift=1),
        "ClassificationData": _of(
            data,
            "ClassificationData",
            inputs=draw(12, 2).float(),
            targets=targets,
            class_names=("a", "b", "c"),
            splits=splits,
        ),
        "RegressionData": _of(
            data,
            "RegressionData",
            inputs=draw(12, 2).float(),
            targets=draw(12, 2, seed=1),
            splits=splits,
        ),
        "classification_data": _of(
            data, "classification_data", x=draw(30, 2).float(), y=torch.arange(30) % 3
        ),
        "regression_data": _of(data, "regression_data", x=draw(30, 2).float(), y=draw(30, seed=1)),
        "waves_data": _of(data, "waves_data", samples=20, targets=2),
        "LabelledImages": lambda: (
            data.LabelledImages,
            {
                name: getattr(labelled(), name)
                for name in ("images", "labels", "class_names", "class_groups", "splits")
            },
        ),
        "LabelledTexts": _of(
            data,
            "LabelledTexts",
            tokens=torch.tensor([[1, 2], [3, 0]]).int(),
            vocabulary=5,
            labels=torch.tensor([0, 1]),
            class_names=("a", "b"),
            class_groups=("", ""),
            splits={"train": (0,), "test": (1,)},
        ),
        "LabelledArrays": _of(
            data,
            "LabelledArrays",
            arrays=draw(2, 3).float(),
            labels=torch.tensor([0, 1]),
            class_names=("a", "b"),
            class_groups=("", ""),
            splits={"train": (0,), "test": (1,)},
        ),
        "Tokenizer": _of(data, "Tokenizer", tokens="words", vocabulary=9, length=4),
        "MemberBatches": _of(data, "MemberBatches", samples=10, batch_size=4, seeds=[0, 1]),
        "augment": lambda: (
            data.augment,
            {
                "inputs": torch.rand(2, 1, 4, 4),
                "augmentation": data.Augmentation(max_shift=1),
                "seeds": [0],
                "step": 0,
            },
        ),
        "digits_data": _of(data, "digits_data"),
        "mislabelled": lambda: (data.mislabelled, {"data": blobs(), "fraction": 0.2}),
        "MislabelledData": lambda: (
            data.MislabelledData,
            {
                name: getattr(data.mislabelled(blobs(), fraction=0.2), name)
                for name in ("inputs", "targets", "class_names", "splits", "true_targets")
            },
        ),
        "imbalanced": lambda: (data.imbalanced, {"data": blobs(), "ratio": 4}),
        "resized": lambda: (data.resized, {"data": data.digits_data(), "image_size": 4}),
    }


def _tasks() -> dict[str, Callable[[], Call]]:
    return {
        "FewShotTasks": lambda: (tasks.FewShotTasks, {"data": labelled(), "way": 2}),
        "MixtureTasks": lambda: (
            tasks.MixtureTasks,
            {"sets": {"a": tasks.FewShotTasks(labelled(), way=2)}, "weights": [1.0]},
        ),
        "SinusoidTasks": _of(tasks, "SinusoidTasks", shot=3),
        "array_tasks": _of(
            tasks, "array_tasks", x=draw(30, 3).float(), y=torch.arange(30) % 10, way=2
        ),
        "outputs_by_split": _of(tasks, "outputs_by_split", tasks=tasks.SinusoidTasks()),
    }


def _trainers() -> dict[str, Callable[[], Call]]:
    few: dict[str, Any] = {"steps": 2, "progress": False}

    def ensemble(name: str, **settings: Any) -> Callable[[], Call]:
        count = 1 if name != "EnsembleTrainer" else 2

        def make() -> Call:
            net = lambda seed: models.MLP((2,), 3, hidden=(4,), dropout=0.2, seed=seed)  # noqa: E731
            model = models.Ensemble.from_factory(net, range(count))
            given = {"model": model, "data": blobs(), "batch_size": 8, **few}
            return getattr(trainers, name), given | settings

        return make

    def meta() -> Call:
        model = models.MLP((1,), 1, hidden=(4,))
        given = {"model": model, "tasks": tasks.SinusoidTasks(), "meta_batch": 2, **few}
        return trainers.MetaTrainer, given | {"validation_tasks": 2}

    def learner() -> Any:
        return trainers.MetaLearner(models.MLP((1,), 1, hidden=(4,)), kind="regression")

    batch = tasks.SinusoidTasks().sample("train", [0, 1])
    return {
        "MAML": _of(trainers, "MAML", inner_lr=0.1),
        "ConformalSets": _of(trainers, "ConformalSets", coverage=0.8),
        "LoopSettings": _of(trainers, "LoopSettings", steps=3),
        "MetaLearner": lambda: (
            trainers.MetaLearner,
            {"module": models.MLP((1,), 1), "kind": "regression"},
        ),
        "MetaLearner.adapt": lambda: (
            learner().adapt,
            {"support": (batch.support[0][0], batch.support[1][0])},
        ),
        "MetaLearner.score": lambda: (learner().score, {"tasks": batch}),
        "MemberLearner": lambda: (
            trainers.MemberLearner,
            {
                "module": models.Ensemble.from_factory(
                    lambda seed: models.MLP((1,), 1, seed=seed), [0, 1]
                ),
                "kind": "regression",
            },
        ),
        "MAMLPlusPlus": lambda: (
            trainers.MAMLPlusPlus,
            {"module": models.MLP((1,), 1), "kind": "regression", "multi_step_steps": 4},
        ),
        "MetaOptNet": lambda: (
            trainers.MetaOptNet,
            {"module": models.MLP((1,), 4), "head": "logistic", "ridge": 0.5, "scale": 2.0},
        ),
        "MetaSGD": lambda: (
            trainers.MetaSGD,
            {"module": models.MLP((1,), 1), "kind": "regression", "rate_range": [0.01, 0.1]},
        ),
        "ANIL": lambda: (
            trainers.ANIL,
            {"module": models.MLP((1,), 1), "kind": "regression", "head": "5.*"},
        ),
        "BOIL": lambda: (
            trainers.BOIL,
            {"module": models.MLP((1,), 1), "kind": "regression", "head": None},
        ),
        "MultiStepLearner": lambda: (
            trainers.MultiStepLearner,
            {"module": models.MLP((1,), 1), "kind": "regression", "weights": [0.5, 0.5]},
        ),
        "ProtoMAML": lambda: (
            trainers.ProtoMAML,
            {"module": models.MLP((1,), 4), "adapt_body": False, "features": 4},
        ),
        "ProtoNet": lambda: (
            trainers.ProtoNet,
            {"module": models.MLP((1,), 4), "engine": "loop", "features": 4},
        ),
        "R2D2": lambda: (
            trainers.R2D2,
            {"module": models.MLP((1,), 4), "ridge": 0.5, "scale": 2.0, "features": 4},
        ),
        "ImplicitMAML": lambda: (
            trainers.ImplicitMAML,
            {"module": models.MLP((1,), 1), "kind": "regression"},
        ),
        "RFS": lambda: (
            trainers.RFS,
            {"module": models.MLP((1,), 4), "ridge": 0.5, "batch_size": 3, "features": 4},
        ),
        "BaselinePlusPlus": lambda: (
            trainers.BaselinePlusPlus,
            {"module": models.MLP((1,), 4), "head_steps": 2, "head_lr": 0.5, "features": 4},
        ),
        "Reptile": lambda: (
            trainers.Reptile,
            {"module": models.MLP((1,), 1), "kind": "regression"},
        ),
        "CAVIA": lambda: (
            trainers.CAVIA,
            {"module": models.MLP((1,), 1), "kind": "regression", "context_size": 2},
        ),
        "ConditionalNeuralProcess": lambda: (
            trainers.ConditionalNeuralProcess,
            {"module": models.MLP((1,), 1), "engine": "loop", "representation": 3},
        ),
        "InContextLearner": lambda: (
            trainers.InContextLearner,
            {"module": models.MLP((1,), 4), "engine": "loop", "features": 4},
        ),
        "register_learner": lambda: (
            trainers.register_learner,
            {"name": "new", "summary": "it is new"},
        ),
        "MetaTrainer": meta,
        "EnsembleTrainer": ensemble("EnsembleTrainer", members=2),
        "BatchEnsembleTrainer": ensemble("BatchEnsembleTrainer", members=2),
        "MCDropoutTrainer": ensemble("MCDropoutTrainer", members=2),
        "SnapshotTrainer": ensemble("SnapshotTrainer", members=2),
        "SWAGTrainer": ensemble("SWAGTrainer", members=2, rank=1, every=1, start=0.1),
        "ParameterGroups": lambda: (
            trainers.ParameterGroups,
            {"make": torch.optim.Adam, "groups": [{"params": "*.bias", "lr": 0.1}]},
        ),
        "PerSampleTrainer": lambda: (
            trainers.PerSampleTrainer,
            {"model": models.MLP((2,), 3, hidden=(4,)), "data": blobs(), "batch_size": 8, **few},
        ),
        "PrivateTrainer": lambda: (
            trainers.PrivateTrainer,
            {
                "model": models.MLP((2,), 3, hidden=(4,)),
                "data": blobs(),
                "batch_size": 8,
                "noise_multiplier": 1.0,
                "delta": 1e-3,
                **few,
            },
        ),
        "PrivateMetaTrainer": lambda: (
            trainers.PrivateMetaTrainer,
            {
                "model": models.MLP((1,), 1, hidden=(4,)),
                "tasks": tasks.SinusoidTasks(shot=2, query=2),
                "users": 30,
                "meta_batch": 4,
                "noise_multiplier": 1.0,
                "delta": 1e-3,
                **few,
            },
        ),
        "HyperTrainer": lambda: (
            trainers.HyperTrainer,
            {
                "model": models.MLP((2,), 3, hidden=(4,)),
                "data": blobs(),
                "inner": {"steps": 2, "batch_size": 8},
                **few,
            },
        ),
        "RunSettings": _of(trainers, "RunSettings", steps=3, lr=0.1),
        "LearntExampleWeights": lambda: (
            trainers.LearntExampleWeights,
            {"setup": _setup(), "initial": 0.2},
        ),
        "LearntSchedule": lambda: (trainers.LearntSchedule, {"setup": _setup()}),
        "LearntWeightDecay": lambda: (trainers.LearntWeightDecay, {"setup": _setup()}),
        "DistilledExamples": lambda: (trainers.DistilledExamples, {"setup": _setup()}),
        "EnsembleTrainer of real targets": lambda: (
            trainers.EnsembleTrainer,
            {
                "model": regressors(2),
                "data": waves(),
                "loss": "gaussian_nll",
                "batch_size": 8,
                **few,
            },
        ),
        "FocalLoss": _of(trainers, "FocalLoss", gamma=1.5),
        "InductiveModule": lambda: (
            trainers.InductiveModule,
            {"network": models.MLP((1,), 1), "support": draw(4, 1)},
        ),
        "mean_interval": _of(trainers, "mean_interval", values=draw(4, 2)),
    }


def _setup() -> Any:
    """Of a run that is to be shaped."""
    model = models.MLP((2,), 3, hidden=(4,))
    trainer = trainers.HyperTrainer(model, blobs(), inner={"steps": 2, "batch_size": 8})
    return trainer.objective.hyper.setup


def _factors() -> Any:
    known = problem()
    return core.fisher_kfac(known["module"], known["params"], known["batch"], **_FISHER)


def _new_folder() -> Path:
    """One that is gone when the process ends."""
    return Path(tempfile.mkdtemp(dir=_FOLDERS.name))


@functools.cache
def _indexed() -> Path:
    known, folder = problem(), _new_folder()
    attribution.build_gradient_index(
        folder, known["loss_fn"], known["params"], known["batch"], size=3, seed=0
    )
    return folder


def _trainer() -> Any:
    model = models.MLP((2,), 3, hidden=(3,), activation="tanh")
    settings: Any = {"max_norm": float("inf"), "steps": 2, "batch_size": 4, "diagnostics": []}
    return trainers.PerSampleTrainer(model, blobs(), progress=False, **settings)


def _scored() -> list[Any]:
    run = attribution.training_run(_trainer())
    return [attribution.ScoredNetwork(run, run.params, (draw(2, 2).float(), torch.arange(2)))]


def _attribution() -> dict[str, Callable[[], Call]]:
    run = _fresh(lambda: attribution.training_run(_trainer()))
    two = _fresh(lambda: (draw(2, 2).float(), torch.arange(2)))
    batch = _fresh(lambda: problem()["batch"])
    models = _fresh(lambda: [problem()["params"]] * 2)
    pair = {"targets": batch, "examples": batch}
    fisher = _fresh(_factors)
    return {
        "Curvature": _of(
            attribution,
            "Curvature",
            "outputs_fn",
            kind="fisher",
            likelihood="categorical",
        ),
        "conjugate_gradient_influence": _of(
            attribution, "conjugate_gradient_influence", "loss_fn", "params", damping=1.0, **pair
        ),
        "kronecker_influence": _of(
            attribution,
            "kronecker_influence",
            "loss_fn",
            "params",
            fisher=fisher,
            damping=0.1,
            **pair,
        ),
        "kronecker_self_influence": _of(
            attribution,
            "kronecker_self_influence",
            "loss_fn",
            "params",
            examples=batch,
            fisher=fisher,
            damping=0.1,
        ),
        "trak_scores": _of(
            attribution,
            "trak_scores",
            "outputs_fn",
            models=models,
            size=3,
            seed=0,
            damping=0.1,
            **pair,
        ),
        "build_gradient_index": _of(
            attribution,
            "build_gradient_index",
            "loss_fn",
            "params",
            folder=_fresh(_new_folder),
            examples=batch,
            size=3,
            seed=0,
        ),
        "load_gradient_index": _of(
            attribution, "load_gradient_index", "loss_fn", "params", folder=_fresh(_indexed)
        ),
        "training_run": _of(attribution, "training_run", trainer=_fresh(_trainer)),
        "attribute": _of(attribution, "attribute", networks=_fresh(_scored), methods=["cosine"]),
        "retraining_settings": _of(attribution, "retraining_settings", trainer=_fresh(_trainer)),
        "ScoreSettings": _of(attribution, "ScoreSettings", damping=0.1),
        "StatesOnDisk": _of(attribution, "StatesOnDisk", folder=_fresh(_new_folder)),
        "WalkCheckpoint": _of(attribution, "WalkCheckpoint", path="walk.pt", seconds=1.0),
        "exact_scores": _of(attribution, "exact_scores", run=run, targets=two),
        "run_curvature": _of(attribution, "run_curvature", run=run, places=1, iterations=2),
        "el2n_scores": _of(attribution, "el2n_scores", "outputs_fn", models=models, examples=batch),
        "gradient_similarity": _of(attribution, "gradient_similarity", "loss_fn", "params", **pair),
        "grand_scores": _of(attribution, "grand_scores", "loss_fn", models=models, examples=batch),
        "representation_similarity": _of(
            attribution,
            "representation_similarity",
            "params",
            features_fn=_fresh(lambda: problem()["outputs_fn"]),
            targets=draw(2, 3),
            examples=draw(4, 3),
        ),
        "tracin_scores": _of(
            attribution,
            "tracin_scores",
            "loss_fn",
            checkpoints=models,
            learning_rates=[0.1, 0.2],
            **pair,
        ),
        "tracin_self_influence": _of(
            attribution,
            "tracin_self_influence",
            "loss_fn",
            checkpoints=models,
            examples=batch,
            learning_rates=[0.1, 0.2],
        ),
    }


def _of_tasks() -> dict[str, Callable[[], Call]]:
    """The part of the face of attribution that is of meta-learners."""

    known = problem()

    def losses_fn(params: Any, batch: Any) -> Tensor:
        outputs: Tensor = known["outputs_fn"](params, batch[0])
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def gradients_fn(params: Any, tasks: Any) -> Any:
        return core.task_meta_gradients(
            known["loss_fn"], params, tasks, optimizer=core.sgd(0.1), steps=1
        )

    some = _fresh(lambda: problem()["tasks"])
    inner = {"optimizer": _sgd, "steps": 2}
    learner = _fresh(lambda: trainers.MetaLearner(network(), trainers.MAML(inner_steps=1)))
    return {
        "learner_support_scores": _of(
            attribution, "learner_support_scores", "tasks", learner=learner, steps=2
        ),
        "learner_scores": _of(attribution, "learner_scores", "tasks", learner=learner),
        "leave_one_support_out": _of(
            attribution, "leave_one_support_out", "tasks", learner=learner, steps=2
        ),
        "support_example_scores": _of(
            attribution,
            "support_example_scores",
            "params",
            "tasks",
            losses_fn=losses_fn,
            **inner,
        ),
        "task_scores": _of(
            attribution,
            "task_scores",
            "tasks",
            gradients_fn=gradients_fn,
            checkpoints=_fresh(lambda: [problem()["params"]] * 2),
            targets=some,
            learning_rates=[0.1, 0.2],
        ),
    }


def _retraining() -> dict[str, Callable[[], Call]]:
    """The other part of the face of attribution."""
    matrix = {"scores": draw(2, 6)}
    sure = {"labels": torch.tensor([0, 1, 2, 0, 1]), "probabilities": draw(5, 3).softmax(-1)}
    return {
        "confident_joint": _of(attribution, "confident_joint", **sure),
        "label_issues": _of(attribution, "label_issues", rule="both", **sure),
        "out_of_sample_probabilities": lambda: (
            attribution.out_of_sample_probabilities,
            {
                "network": models.MLP((2,), 3, hidden=(4,)),
                "data": blobs(),
                "folds": 2,
                "steps": 2,
                "batch_size": 8,
                "progress": False,
                "engine": "batched",
            },
        ),
        "brittleness": _of(attribution, "brittleness", outputs=draw(5, 2, 3), counts=[1, 3]),
        "leave_k_out": _of(
            attribution,
            "leave_k_out",
            scores={"exact": draw(2, 6)},
            counts=[1, 3],
            classes=True,
            retrain=lambda weights: attribution.Retrained(
                weights.double() @ draw(6, 2), draw(len(weights), 2, 3)
            ),
        ),
        "leave_out_changes": _of(
            attribution, "leave_out_changes", counts=[1, 3], losses=draw(5, 2), **matrix
        ),
        "leave_top_out": _of(attribution, "leave_top_out", counts=[1, 3], **matrix),
        "linear_datamodeling_score": _of(
            attribution,
            "linear_datamodeling_score",
            weights=draw(4, 6).abs(),
            outcomes=draw(4, 2),
            **matrix,
        ),
        "random_subsets": _of(attribution, "random_subsets", members=3, examples=8, leave_out=0.3),
        "rank_correlations": _of(
            attribution, "rank_correlations", predicted=draw(2, 6), real=draw(2, 6, seed=1)
        ),
        "retrain_subsets": lambda: (
            attribution.retrain_subsets,
            {
                "network": models.MLP((2,), 3, hidden=(4,)),
                "data": blobs(),
                "weights": draw(2, 48).abs(),
                "targets": blobs().part("test"),
                "steps": 2,
                "batch_size": 8,
                "progress": False,
                "engine": "batched",
            },
        ),
    }


def _looked_at() -> dict[str, Callable[[], Call]]:
    """What is shown of attributions."""

    def fields(record: str) -> Callable[[], dict[str, Any]]:
        return lambda: vars(found() if record == "Findings" else getattr(found(), record))

    def kept() -> Path:
        path = _new_folder() / "findings.npz"
        attribution.save_findings(path, found())
        return path

    def new_file(name: str) -> Path:
        return _new_folder() / name

    files = {"save_findings": "findings.npz", "write_page": "page.html"}
    files |= {"save_learner_scores": "scores.npz", "write_learner_page": "page.html"}
    return {
        "Findings": lambda: (attribution.Findings, fields("Findings")()),
        "TargetSamples": lambda: (attribution.TargetSamples, fields("targets")()),
        "TrainingExamples": lambda: (attribution.TrainingExamples, fields("examples")()),
        "LearnerFindings": lambda: (attribution.LearnerFindings, vars(learnt())),
        "TrainedTasks": lambda: (attribution.TrainedTasks, vars(learnt().trained)),
        "load_findings": lambda: (attribution.load_findings, {"path": kept()}),
        "subset_outcomes": _of(
            attribution,
            "subset_outcomes",
            scores={"exact": draw(2, 6)},
            weights=draw(4, 6).abs(),
            outcomes=draw(4, 2),
        ),
        "track_findings": lambda: (
            attribution.track_findings,
            {"tracker": NullTracker(), "findings": found(1), "step": 1, "most_targets": 1},
        ),
        "track_learner_findings": lambda: (
            attribution.track_learner_findings,
            {"tracker": NullTracker(), "findings": learnt(pictures=False), "step": 1, "top": 1},
        ),
    } | {
        name: _of(
            attribution,
            name,
            path=_fresh(lambda f=file: _new_folder() / f),
            findings=learnt() if "learner" in name else found(1),
        )
        for name, file in files.items()
    }


def _private() -> Any:
    model = models.MLP((2,), 3, hidden=(3,), activation="tanh")
    how: Any = {"noise_multiplier": 1.0, "delta": 1e-3, "steps": 2, "batch_size": 4}
    return trainers.PrivateTrainer(model, blobs(), progress=False, **how)


def _auditing() -> dict[str, Callable[[], Call]]:
    scores: Any = {"inside": torch.ones(9), "outside": torch.zeros(9), "delta": 1e-5}
    return {
        "epsilon_lower_bound": _of(auditing, "epsilon_lower_bound", **scores),
        "gaussian_epsilon": _of(auditing, "gaussian_epsilon", mu=1.0, delta=1e-5),
        "audit_private_step": _of(
            auditing, "audit_private_step", trainer=_fresh(_private), trials=8
        ),
        "audit_private_training": _of(
            auditing, "audit_private_training", trainer=_fresh(_private), models=16
        ),
    }


def _planned(noise: float) -> list[tuple[privacy.Mechanism, int]]:
    return [(privacy.SampledGaussian("full_batch", 20, 20, noise), 3)]


def _privacy() -> dict[str, Callable[[], Call]]:
    whole = privacy.SampledGaussian("full_batch", 20, 20, 5.0)
    drawn: dict[str, Any] = {"sampling": "full_batch", "examples": 20, "batch_size": 20}
    some = _fresh(lambda: problem()["params"])
    ledger = _fresh(lambda: privacy.PrivacyLedger("privacy.jsonl"))
    rule: dict[str, Any] = {"delta": 1e-3, "accountant": "rdp"}
    return {
        "SampledGaussian": _of(privacy, "SampledGaussian", noise_multiplier=1.5, **drawn),
        "privacy_spent": _of(privacy, "privacy_spent", steps=[(whole, 3)], **rule),
        "noise_multiplier_for": _of(
            privacy, "noise_multiplier_for", epsilon=2.0, steps=3, **drawn, **rule
        ),
        "gaussian_noise": _of(privacy, "gaussian_noise", likes=some, std=0.5, generator=_generator),
        "add_gaussian_noise": _of(privacy, "add_gaussian_noise", sums=some, std=0.5),
        "sampling_of": _of(privacy, "sampling_of", mechanism=whole, examples=20, seed=0),
        "PoissonSampling": _of(privacy, "PoissonSampling", examples=20, rate=0.3, seed=0),
        "FixedSizeSampling": _of(privacy, "FixedSizeSampling", examples=9, batch_size=3, seed=0),
        "ShuffledSampling": _of(privacy, "ShuffledSampling", examples=9, batch_size=3, seed=0),
        "PartitionedSampling": _of(
            privacy, "PartitionedSampling", examples=20, rate=0.3, parts=2, seed=0
        ),
        "BandedGaussian": _of(
            privacy, "BandedGaussian", examples=20, batch_size=4, bands=3, noise_multiplier=1.5
        ),
        "banded_strategy": _of(privacy, "banded_strategy", steps=6, bands=2),
        "prefix_error": _of(
            privacy,
            "prefix_error",
            steps=6,
            strategy=_fresh(lambda: torch.tensor([0.8, 0.6]).double() * 0.999),
        ),
        "CorrelatedNoise": _of(
            privacy,
            "CorrelatedNoise",
            strategy=_fresh(lambda: torch.tensor([0.8, 0.6]).double() * 0.999),
        ),
        "PrivacyLedger": _of(privacy, "PrivacyLedger", path="privacy.jsonl"),
        "PrivacyAccount": _of(privacy, "PrivacyAccount", mechanism=whole, ledger=ledger, **rule),
        "steps_for": _of(privacy, "steps_for", epsilon=2.0, mechanism=whole, **rule),
        "AdaptiveGaussian": _of(
            privacy, "AdaptiveGaussian", examples=20, batch_size=4, most=8, noise_multiplier=1.5
        ),
        "RenyiFilter": _of(privacy, "RenyiFilter", order=4.0, budget=1.5, delta=1e-3, steps=6),
        "noise_multiplier_of_plan": _of(
            privacy, "noise_multiplier_of_plan", plan=_planned, epsilon=2.0, delta=1e-3
        ),
        "selection_spent": _of(
            privacy, "selection_spent", steps=[(whole, 3)], delta=1e-3, runs=4.0
        ),
        "number_of_runs": _of(privacy, "number_of_runs", runs=4.0),
        "QuantileNorm": _of(privacy, "QuantileNorm", start=1.0, noise_multiplier=1.5, expected=20),
    }


CALLS: dict[str, Callable[[], Call]] = {
    f"{face}.{name}": make
    for face, found in (
        ("core", _core()),
        ("evaluation", _evaluation()),
        ("models", _models()),
        ("data", _data()),
        ("tasks", _tasks()),
        ("trainers", _trainers()),
        ("attribution", _attribution() | _of_tasks() | _retraining() | _looked_at()),
        ("privacy", _privacy()),
        ("auditing", _auditing()),
    )
    for name, make in found.items()
}


def public_functions() -> set[str]:
    """What a user calls: functions and constructors of the faces, but for records of results."""
    names = set()
    for face in FACES:
        room = importlib.import_module(f"metalearn.{face}")
        for name in room.__all__:
            found = getattr(room, name)
            record = inspect.isclass(found) and issubclass(found, tuple)
            abstract = inspect.isabstract(found) or getattr(found, "_is_protocol", False)
            callable_ = inspect.isfunction(found) or inspect.isclass(found)
            if callable_ and not record and not abstract and name not in FILES | RESULTS:
                names.add(f"{face}.{name}")
    return names - {
        "core.Eager",
        "core.InnerOptimizer",
        "trainers.Trainer",
    }  # of the library's own making
