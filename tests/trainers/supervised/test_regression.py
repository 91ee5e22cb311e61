"""Trainings on real targets and by losses of one's own, against plain loops of one network.

Axes: M members, B samples of a batch, D targets of a sample.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from metalearn import Ensemble
from metalearn.data import RegressionData
from metalearn.errors import NonFiniteError, SettingError
from metalearn.evaluation import RegressionStatistics
from metalearn.models import MLP, Dropout
from metalearn.trainers import EnsembleTrainer, PerSampleTrainer, RegressionTest
from metalearn.trainers.diagnostics import DiagnosisData, diagnose
from tests.support.alone import Precise, assert_member, train_alone
from tests.support.builders import (
    Recorder,
    after_gradient,
    assert_same,
    last,
    signal_in_step,
    source_of,
    state_of,
)
from tests.support.small_data import KINDS, MEMBERS, blobs, network, regressor, trainer, waves

SGD: Any = lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9)  # noqa: E731
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def nll(outputs: Tensor, targets: Tensor) -> Tensor:
    count = targets.shape[1]
    spread = (outputs[:, count:].exp() + 1e-6).sqrt()
    return -Normal(outputs[:, :count], spread).log_prob(targets).sum(1).mean()


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """One of the user's, of each sample."""
    return (outputs - targets).abs().pow(1.5).sum(-1)


class Huber(nn.HuberLoss):
    """A module that gives the mean, of outputs in float64 too."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().forward(outputs, targets.to(outputs))


LOSSES: dict[str, tuple[Any, Callable[[int], int], Callable[[Tensor, Tensor], Tensor]]] = {
    "gaussian_nll": ("gaussian_nll", lambda d: 2 * d, nll),
    "none given": (None, lambda d: 2 * d, nll),
    "mse": ("mse", lambda d: d, F.mse_loss),
    "of each sample": (absolute, lambda d: d, lambda f, y: absolute(f, y).mean()),
    "a mean": (Huber(), lambda d: d, Huber()),
}
losses = pytest.mark.parametrize("name", LOSSES)


def precise(seed: int, outputs: int, *, dropout: float = 0.0) -> nn.Module:
    drop = [Dropout(dropout)] if dropout else []
    return Precise(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), *drop, nn.Linear(5, outputs)), seed)


def wide(seed: int) -> nn.Module:
    return Precise(nn.Sequential(nn.Linear(2, 7), nn.Softplus(), nn.Linear(7, 4)), seed)


def deep(data: RegressionData, outputs: int, members: int, **settings: Any) -> EnsembleTrainer:
    dropout = settings.get("dropout") or 0.0
    model = Ensemble.from_modules([precise(s, outputs, dropout=dropout) for s in range(members)])
    given = {"steps": 5, "batch_size": 8, "progress": False, "optimizer": SGD, "engine": "batched"}
    return EnsembleTrainer(model, data, **{**given, "schedule": "constant", **settings})


# --- members are trained as if alone ---------------------------------------------------------


@losses
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("targets", [1, 2])
def test_members_are_networks_trained_alone(name: str, members: int, targets: int) -> None:
    loss, width, criterion = LOSSES[name]
    data = waves(targets)
    made = deep(data, width(targets), members, loss=loss, clip=1.0)
    made.fit()
    for index in range(members):
        network = precise(index, width(targets))
        train_alone(network, data, index, SGD, steps=5, clip=1.0, criterion=criterion)
        assert_member(made, index, network)


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("name", ["gaussian_nll", "mse"])
def test_every_engine_and_resamples(name: str, engine: str) -> None:
    loss, width, criterion = LOSSES[name]
    data = waves(2)
    settings: Any = {"bootstrap": True, "chunk_size": 2, "dropout": 0.3}
    made = deep(data, width(2), 3, loss=loss, engine=engine, clip=None, **settings)
    made.fit()
    for index in range(3):
        alone = precise(index, width(2), dropout=0.3)
        for layer in alone.modules():
            if isinstance(layer, Dropout):
                layer.key.copy_(made.ensemble.member(index).network[2].key)
        train_alone(alone, data, index, SGD, steps=5, criterion=criterion, bootstrap=True)
        assert_member(made, index, alone)


@losses
def test_gradients_of_samples_are_clipped_one_by_one(name: str) -> None:
    loss, width, criterion = LOSSES[name]
    data, net = waves(2), precise(0, width(2))
    made = PerSampleTrainer(
        net, data, loss=loss, steps=3, batch_size=8, max_norm=0.5, progress=False, diagnostics=()
    )
    found, (x, y) = made.gradient(1), made.loop.objective.batch(1)
    total = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    values = []
    for a, b in zip(x, y):
        net.zero_grad()
        value = criterion(net(a[None]), b[None])
        value.backward()
        values.append(value.detach())
        grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        for n, grad in grads.items():
            total[n] += grad * min(1.0, 0.5 / float(norm)) / len(y)
    torch.testing.assert_close(found.losses[0], torch.stack(values).mean(), rtol=1e-9, atol=0)
    for n, grad in total.items():
        torch.testing.assert_close(found.grads[n], grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["gaussian_nll", "of each sample"])
def test_without_clipping_it_is_a_plain_training_loop(name: str) -> None:
    loss, width, criterion = LOSSES[name]
    data, net, alone = waves(1), precise(0, width(1)), precise(0, width(1))
    settings: Any = {"max_norm": math.inf, "schedule": "constant", "optimizer": SGD}
    PerSampleTrainer(
        net, data, loss=loss, steps=5, batch_size=8, progress=False, diagnostics=(), **settings
    ).fit()
    train_alone(alone, data, 0, SGD, steps=5, criterion=criterion)
    for one, other in zip(net.parameters(), alone.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_default_of_classes_is_cross_entropy_to_the_last_bit() -> None:
    found = []
    for settings in ({}, {"loss": None}, {"loss": "cross_entropy"}):
        made = trainer(EnsembleTrainer, **settings)
        made.fit()
        found.append(made.module.state_dict())
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_a_loss_of_ones_own_on_classes() -> None:
    data = blobs()
    made = trainer(EnsembleTrainer, loss=F.multi_margin_loss, schedule="constant", seeds=[4, 5, 6])
    made.fit()
    net = network(0)
    for layer in net.modules():
        if isinstance(layer, Dropout):
            layer.key.copy_(made.ensemble.member(0)[3].key)
    fast: Any = lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)  # noqa: E731
    train_alone(
        net, data, 4, fast, steps=12, batch_size=16, criterion=F.multi_margin_loss, clip=10.0
    )
    for name, value in net.state_dict().items():
        if not name.endswith((".draw", ".key")):
            found = made.ensemble.member(0).state_dict()[name]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


# --- validation and test ---------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("loss", ["gaussian_nll", "mse"])
def test_every_way_to_an_ensemble_takes_real_targets(kind: Any, loss: str) -> None:
    data, outputs = waves(2), 4 if loss == "gaussian_nll" else 2
    nets = kind.networks or MEMBERS
    model = Ensemble.from_factory(lambda seed: regressor(seed, outputs), range(nets))
    tracker = Recorder()
    made = trainer(kind, model=model, data=data, loss=loss, tracker=tracker)
    before = made.validate()["validation/nll"]
    made.fit()
    made.load_best()
    assert made.validate()["validation/nll"] < before
    x, y = data.part("test")
    found = made.predict(x)
    assert found.shape == (MEMBERS, 24, outputs)
    statistics = RegressionStatistics(MEMBERS, 2)
    statistics.update(found, y)
    test = made.test()
    assert isinstance(test, RegressionTest)
    assert test.report.ensemble() == pytest.approx(statistics.compute().ensemble(), rel=1e-5)
    assert test.headline().keys() == {"test/nll", "test/rmse", "test/coverage"}
    assert len(test.member_headlines()) == len(test.as_json()["members"]) == MEMBERS
    assert any("aleatoric" in line for line in test.lines("test"))
    assert set(made.bands["members: median and extremes"]) >= {"validation/member_loss"}


def test_the_best_of_each_member_is_that_of_its_nll() -> None:
    data = waves(1)
    made = deep(data, 2, 3, eval_every=1, steps=6)
    seen: list[Tensor] = []
    evaluate = made.loop.evaluator

    class Seen:
        def __getattr__(self, name: str) -> Any:
            return getattr(evaluate, name)

        def __call__(self, step: int) -> Any:
            found = evaluate(step)
            seen.append(found.scores)
            return found

    made.loop.evaluator = Seen()  # type: ignore[assignment]
    made.fit()
    every = torch.stack(seen)
    torch.testing.assert_close(made.best_values.double(), every.min(0).values)
    made.load_best()
    x, y = data.part("validation")
    for index, outputs in enumerate(made.predict(x)):
        assert float(nll(outputs, y)) == pytest.approx(float(every[:, index].min()), rel=1e-6)


def test_the_best_is_chosen_by_a_loss_of_ones_own() -> None:
    data, tracker = waves(2), Recorder()
    made = deep(data, 2, 3, loss=absolute, tracker=tracker, eval_every=1, steps=6)
    assert made.monitor == "validation/member_objective"
    made.fit()
    made.load_best()
    x, y = data.part("validation")
    best = torch.stack([absolute(one, y).mean() for one in made.predict(x)])
    torch.testing.assert_close(made.best_values.double(), best.double(), rtol=1e-6, atol=0)
    low = tracker.series("validation/member_objective_low")
    assert min(low) == pytest.approx(float(best.min()), rel=1e-6)
    alone = PerSampleTrainer(
        precise(0, 2), data, loss=absolute, steps=3, progress=False, diagnostics=(), batch_size=8
    )
    found = alone.validate()["validation/objective"]
    assert found == pytest.approx(float(absolute(alone.predict(x)[0], y).mean()), rel=1e-6)


@kinds
def test_an_interrupted_run_goes_on_by_its_own_loss(kind: Any, tmp_path: Path) -> None:
    nets, metrics = kind.networks or MEMBERS, {"size": lambda f, y: len(y)}

    def made(folder: str) -> Any:
        model = Ensemble.from_factory(lambda seed: regressor(seed, 2), range(nets))
        given: Any = {"loss": absolute, "metrics": metrics, "folder": tmp_path / folder}
        return trainer(kind, model=model, data=waves(2), **given)

    whole, stopped, resumed = made("whole"), made("parts"), made("parts")
    whole.fit()
    signal_in_step(stopped, 7, signal.SIGTERM)
    assert stopped.fit().reason == "interrupted"
    resumed.resume(last(tmp_path / "parts"))
    resumed.fit()
    assert_same(state_of(resumed), state_of(whole))
    assert resumed.test().metrics == {"size": 24.0}


def test_networks_of_different_architectures() -> None:
    """In stacks of their own, each as if alone."""
    data = waves(2)
    makes = [lambda: precise(0, 4), lambda: precise(1, 4), lambda: wide(2)]
    model = Ensemble.from_modules([make() for make in makes])
    settings: Any = {"steps": 4, "batch_size": 8, "clip": None, "schedule": "constant"}
    made = EnsembleTrainer(model, data, optimizer=SGD, progress=False, **settings)
    made.fit()
    assert len(made.ensemble.stacks) == 2
    for index, make in enumerate(makes):
        alone = make()
        train_alone(alone, data, index, SGD, steps=4, criterion=nll)
        assert_member(made, index, alone)
    assert made.test().report.members.nll.shape == (3,)


def test_members_that_share_weights_are_judged_by_their_mean() -> None:
    model = Ensemble.from_factory(lambda seed: regressor(seed, 2), [0])
    given: Any = {"model": model, "data": waves(2), "loss": absolute}
    made = trainer(KINDS["batch_ensemble"], **given)
    made.fit()
    made.load_best()
    x, y = waves(2).part("validation")
    values = [float(absolute(one, y).mean()) for one in made.predict(x)]
    assert made.best_value == pytest.approx(sum(values) / MEMBERS, rel=1e-5)


def test_curves_of_members() -> None:
    tracker = Recorder()
    deep(waves(1), 2, 2, member_curves=True, tracker=tracker, steps=2).fit()
    for score in ("loss", "rmse"):
        rows = [tracker.series(f"validation_{score}_by_member/member_0{i}") for i in range(2)]
        low = tracker.series(f"validation/member_{score}_low")
        assert [min(pair) for pair in zip(*rows)] == low and len(low) == 2


def test_figures_are_those_of_real_targets() -> None:
    tracker = Recorder()
    made = deep(waves(1), 2, 2, tracker=tracker, steps=1, eval_every=1, lr=[1e-3, 1e-2])
    made.fit()
    made.test()
    drawn = {name for _, name, _ in tracker.drawn}
    assert drawn == {
        "validation/by_size", "validation/members_loss", "validation/members_rmse",
        "test/rmse_by_lr", "test/nll_by_lr", "weights/gradient_by_layer",
    }  # fmt: skip
    alone = Recorder()
    PerSampleTrainer(
        precise(0, 2),
        waves(1),
        tracker=alone,
        steps=1,
        batch_size=8,
        progress=False,
        diagnostics=(),
    ).fit()
    assert {name for _, name, _ in alone.drawn} == {"weights/gradient_by_layer"}
    assert alone.series("validation/coverage")


def test_metrics_are_measured_at_validation_and_test() -> None:
    def worst(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[..., :2] - targets).abs().max()

    def median(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.median())

    data, tracker = waves(2), Recorder()
    metrics: Any = {"worst": worst, "median_output": median}
    made = deep(data, 4, 3, metrics=metrics, tracker=tracker, steps=2, eval_every=1)
    made.fit()
    x, y = data.part("validation")
    last = tracker.series("validation/worst")[-1]
    assert last == pytest.approx(float(worst(made.predict(x), y)))
    test, (x, y) = made.test(), data.part("test")
    assert test.metrics["worst"] == pytest.approx(float(worst(made.predict(x), y)))
    assert test.headline()["test/worst"] == test.as_json()["metrics"]["worst"]
    assert any(line.startswith("  median output: ") for line in test.lines("test"))
    spoiling: Any = {"spoilt": lambda f, y: f.mul_(0).sum(), "worst": worst}
    made = deep(data, 4, 3, metrics=spoiling, loss=lambda f, y: (f[:, :2] - y).square().sum(1))
    x, y = data.part("validation")
    found, outputs = made.validate(), made.predict(x)
    assert found["validation/worst"] == pytest.approx(float(worst(outputs, y)))
    assert found["validation/member_objective_low"] > 0
    classes = trainer(EnsembleTrainer, metrics={"size": lambda f, y: f.shape[1]})
    assert classes.test().headline()["test/size"] == 24.0
    assert classes.monitor == "validation/member_loss"


def test_a_member_that_diverges_is_frozen_and_a_test_of_it_is_refused() -> None:
    made = deep(waves(1), 2, 2, steps=4)

    def spoil(step: int, found: Any) -> None:
        if step == 1:
            next(iter(found.grads.values()))[1] = torch.nan

    after_gradient(made, spoil)
    made.fit()
    assert made.active.tolist() == [True, False]
    with torch.no_grad():
        next(iter(made.ensemble.parameters()))[1] = torch.nan
    with pytest.raises(NonFiniteError, match="the predictions of member 1 are NaN"):
        made.test()


# --- diagnostics -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["gaussian_nll", "mse"])
def test_curvature_is_that_of_the_loss(loss: str) -> None:
    """The trace of the empirical Fisher matrix is the mean square of gradients of the loss."""
    data, outputs = waves(2), 4 if loss == "gaussian_nll" else 2
    members = deep(data, outputs, 2, loss=loss)
    alone = PerSampleTrainer(
        precise(0, outputs), data, loss=loss, steps=2, batch_size=8, progress=False, diagnostics=()
    )
    for made in (members, alone):
        found = diagnose(
            made.diagnosis_sources(DiagnosisData("run", samples=10)),
            ["fisher", "gradient_norms", "eigenvalues"],
        )
        assert not found.left_out
        (results,) = found.findings.values()
        x, y = data.take(data.splits["validation"][:10])
        net = precise(0, outputs)
        wanted = LOSSES[loss][2]
        norms = []
        for a, b in zip(x, y):
            net.zero_grad()
            wanted(net(a[None]), b[None]).backward()
            norms.append(
                sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None)
            )
        trace = results["fisher"].values["trace_empirical"].flatten()[0]
        assert float(trace) == pytest.approx(sum(norms) / len(norms), rel=1e-6)


def test_a_loss_of_ones_own_has_curvature_and_no_fisher_matrix() -> None:
    """Its largest eigenvalue is that of torch's own Hessian of the mean loss."""
    data = waves(1)
    made = deep(data, 1, 2, loss=absolute)
    alone = PerSampleTrainer(precise(0, 1), data, loss=absolute, batch_size=8, progress=False)
    x, y = data.take(data.splits["validation"][:10])
    net = precise(0, 1)
    names, values = zip(*net.named_parameters())

    def loss(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters))
        return absolute(torch.func.functional_call(net, given, (x,)), y).mean()

    blocks = torch.autograd.functional.hessian(loss, values)
    sizes = [value.numel() for value in values]
    rows = [torch.cat([b.reshape(n, -1) for b in row], 1) for n, row in zip(sizes, blocks)]
    largest = torch.linalg.eigvalsh(torch.cat(rows)).max()
    for one in (made, alone):
        reasons = source_of(one).diagnostic_kinds()
        assert reasons["sample"] == reasons["loss"] == ""
        assert reasons["predictive"] == "no likelihood is known of the loss absolute"
        sources = one.diagnosis_sources(DiagnosisData("run", samples=10))
        found = diagnose(sources, ["fisher", "eigenvalues", "gradient_norms"])
        assert [reason.startswith("no likelihood") for reason in found.left_out.values()] == [True]
        (results,) = found.findings.values()
        top = results["eigenvalues"].values["hessian_1"][0]
        assert float(top) == pytest.approx(float(largest), rel=1e-6)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "cross_entropy"}, "loss='cross_entropy': gaussian_nll, mse or a function is"),
        (
            {"loss": "l1"},
            "loss='l1': cross_entropy, gaussian_nll, mse, focal, null or a function is",
        ),
        (
            {"loss": 3},
            "loss=3: cross_entropy, gaussian_nll, mse, focal, null or a function is needed",
        ),
        ({"loss": "mse"}, r"model='Precise': outputs \[2, 2, 1\] are needed, not \[2, 2, 2\]"),
        (
            {"loss": lambda f, y: (f[:, :1] - y).square()},
            r"shape of loss=\[4, 1\]: losses \[4\], one for each sample, or their mean \[\]",
        ),
        ({"loss": lambda f, y: 1.0}, "shape of loss='float': losses"),
        (
            {"loss": lambda f: f.mean()},
            "loss=<function .*: a function of two, outputs and targets,",
        ),
        ({"loss": lambda f, y, z: f.mean()}, "loss=<function .*: a function of two"),
        ({"metrics": {"a": lambda f: 1.0}}, r"metrics\['a'\]=<function .*: a function of outputs"),
        ({"loss": nn.MSELoss}, r"loss=<class.*: a function is needed, as MSELoss\(\) may be one"),
        ({"loss": lambda f, y: f.argmax()}, "type of loss=torch.int64: a floating-point type"),
        ({"label_smoothing": 0.1}, "label_smoothing=.*: 0 is needed beside loss=gaussian_nll"),
        ({"label_smoothing": [0.0, 0.1]}, "label_smoothing=.*: 0 is needed beside"),
        ({"monitor": "accuracy"}, "monitor='accuracy': loss is needed: real targets have no"),
        ({"monitor": "rmse"}, "monitor='rmse': one of loss, accuracy is needed"),
        ({"ood": blobs()}, "ood='ClassificationData': None is needed: uncertainties of classes"),
        ({"ood": waves()}, "ood="),
        ({"flip": True}, r"flip=True: pictures are needed for it, and inputs are \[2\]"),
        ({"rotate": 5.0}, "rotate=5.0: pictures are needed for it"),
        ({"metrics": {"rmse": len}}, "metrics='rmse': another name is needed"),
        ({"metrics": {"member_a": len}}, "metrics='member_a': another name is needed"),
        ({"metrics": {"auroc_entropy": len}}, "metrics='auroc_entropy': another name is needed"),
        ({"metrics": {"a b": len}}, "metrics='a b': a name of letters, digits and _ is needed"),
        ({"metrics": {"a": None}}, r"metrics\['a'\]=None: a function of outputs \[M, N, C\]"),
        ({"metrics": len}, "metrics=.*: a mapping or null is needed"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        deep(waves(1), 2, 2, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, r"model='MLP': outputs \[2, 1\] are needed, not \[2, 2\]"),
        ({"loss": lambda f, y: f}, r"shape of loss=\[2, 2\]: losses \[2\], one for each sample"),
        ({"monitor": "accuracy"}, "monitor='accuracy': loss is needed"),
        ({"max_shift": 1}, "max_shift=1: pictures are needed for it"),
        ({"data": None}, "data=None: a ClassificationData or a RegressionData is needed"),
    ],
)
def test_mistakes_of_one_module(settings: dict[str, Any], message: str) -> None:
    given = {"data": waves(1), "batch_size": 8, "progress": False} | settings
    with pytest.raises(SettingError, match=f"^{message}"):
        PerSampleTrainer(MLP((2,), 2), **given)


@pytest.mark.parametrize("value", [None, "text", torch.ones(2), [1.0], 1j])
def test_a_metric_that_is_no_number(value: Any) -> None:
    made = deep(waves(1), 2, 2, metrics={"a": lambda f, y: value})
    with pytest.raises(SettingError, match=r"^metrics\['a'\]=.*: one number is needed"):
        made.validate()
