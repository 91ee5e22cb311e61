"""Trainers of what shapes runs: starts, which samples decide what, what comes of it.

Axes: K steps of a run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.core import functionalize
from metalearn.data import ClassificationData, RegressionData, mislabelled
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.trainers import (
    HYPER_KINDS,
    DistilledExamples,
    FocalLoss,
    HyperTrainer,
    LearntExampleWeights,
    LearntSchedule,
    LearntWeightDecay,
)
from tests.support.builders import Recorder, samples
from tests.support.rank_threads import ThreadRanks, on_ranks
from tests.support.small_data import blobs, waves

INNER: dict[str, Any] = {"steps": 5, "batch_size": 12, "lr": 0.2}
kinds = pytest.mark.parametrize("kind", HYPER_KINDS)


def network(seed: int = 0, inputs: tuple[int, ...] = (2,), outputs: int = 3) -> MLP:
    return MLP(inputs, outputs, hidden=(6,), activation="tanh", seed=seed)


def made(hyper: Any = "example_weights", **settings: Any) -> Any:
    model = settings.pop("model", None) or network()
    data = settings.pop("data", None) or blobs()
    inner = INNER | settings.pop("inner", {})
    settings = {"steps": 4, "progress": False, "eval_every": 2, "log_every": 1} | settings
    return HyperTrainer(model, data, hyper=hyper, inner=inner, **settings)


def descent(rate: float) -> Any:
    return partial(torch.optim.SGD, lr=rate)


# --- which samples decide what ------------------------------------------------------------------


def test_the_validation_part_is_divided_by_class() -> None:
    trainer, data = made(), blobs()
    outer = set(trainer.objective.batches.order.indices(0).tolist())
    scored = set(trainer._scored.splits["validation"].tolist())
    assert not outer & scored
    assert outer | scored == set(data.splits["validation"].tolist())
    for part in (outer, scored):
        assert torch.bincount(data.targets[torch.tensor(sorted(part))]).tolist() == [4, 4, 4]


@kinds
def test_neither_test_samples_nor_those_that_choose_shape_anything(kind: str) -> None:
    """Their inputs are replaced: what is learnt is the same to the bit."""
    plain = made(kind)
    rows = torch.cat([plain.data.splits["test"], plain._scored.splits["validation"]])
    inputs = plain.data.inputs.clone()
    inputs[rows] = 0
    other = made(kind, data=replace(plain.data, inputs=inputs))
    for trainer in (plain, other):
        trainer.fit()
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name])
    assert plain.best_value != other.best_value


@pytest.mark.parametrize("loss", [FocalLoss(5.0), {"name": "focal", "gamma": 5.0}])
def test_a_loss_that_is_no_likelihood_chooses_the_best_state(loss: Any) -> None:
    trainer = made(loss=loss, inner={"whole_runs": 2}, factory=network)
    trainer.fit()
    trainer.load_best()
    x, y = trainer._scored.part("validation")
    runs = [trainer.train_network(index) for index in range(2)]
    with torch.no_grad():
        expected = float(torch.stack([FocalLoss(5.0)(run(x), y) for run in runs]).mean())
    assert trainer.best_value == pytest.approx(expected, rel=1e-5)
    by_accuracy = made(loss=loss, monitor="accuracy").loop.evaluator.monitor
    assert (trainer.loop.evaluator.monitor, by_accuracy, made().loop.evaluator.monitor) == (
        "validation/member_objective", "validation/accuracy", "validation/nll",
    )  # fmt: skip


def test_test_samples_do_not_choose() -> None:
    plain = made()
    inputs = plain.data.inputs.clone()
    inputs[plain.data.splits["test"]] = 0
    other = made(data=replace(plain.data, inputs=inputs))
    assert plain.fit().best_value == other.fit().best_value
    assert plain.test().learnt.headline() != other.test().learnt.headline()


# --- steps --------------------------------------------------------------------------------------


@kinds
def test_a_step_lowers_the_outer_loss(kind: str) -> None:
    rate = {"weight_decay": 1.0}.get(kind, 0.1)
    trainer = made(kind, steps=1, schedule="constant", optimizer=descent(rate), clip=None)
    before = float(trainer.gradient(0).losses)
    trainer.fit()
    assert float(trainer.gradient(0).losses) < before


@kinds
@pytest.mark.parametrize("data", [blobs(), samples()], ids=["points", "pictures"])
def test_records_and_figures(kind: str, data: ClassificationData) -> None:
    tracker = Recorder()
    model = network(inputs=data.input_shape)
    made(kind, model=model, data=data, tracker=tracker).fit()
    numbers = {name for _, row in tracker.numbers for name in row}
    assert any(name.startswith("hyper/") for name in numbers)
    assert {"train/inner_loss", "train/growth_on_the_way_back", "validation/accuracy"} <= numbers
    drawn = [step for step, name, _ in tracker.drawn if name == "hyper/learnt"]
    pictures = kind != "distilled" or len(data.input_shape) == 3
    assert drawn == ([0, 2, 4] if pictures else [])


@pytest.mark.parametrize("frozen", ["inputs", "label_scores", "log_rate"])
def test_what_is_frozen_shapes_runs_as_it_is(frozen: str) -> None:
    def some(setup: Any) -> DistilledExamples:
        module = DistilledExamples(setup, labels=True)
        getattr(module, frozen).requires_grad_(False)
        return module

    trainer = made(some, optimizer=partial(torch.optim.Adam, lr=0.1))
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    trainer.fit()
    changed = {n for n, v in trainer.module.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"inputs", "label_scores", "log_rate"} - {frozen}


def test_wrong_labels_lose_their_weight() -> None:
    data = mislabelled(blobs(), fraction=0.3, seed=1)
    tracker = Recorder()
    inner = {"steps": 20, "batch_size": 24, "lr": 0.5, "momentum": 0.0}
    optimizer = partial(torch.optim.Adam, lr=0.5)
    trainer = made(data=data, inner=inner, steps=8, optimizer=optimizer, tracker=tracker)
    trainer.fit()
    found = tracker.series("hyper/weights/auroc_of_wrong")
    assert found[0] == 0.5 and found[-1] > 0.8
    weights = trainer.module.current().in_loss["weights"]
    wrong, right = float(weights[data.wrong].mean()), float(weights[~data.wrong].mean())
    assert wrong < 0.5 * right
    assert tracker.series("hyper/weights/mean_of_wrong")[-1] < 0.3


# --- starts -------------------------------------------------------------------------------------


def test_warm_runs_are_one_long_run() -> None:
    """Nothing is learnt here, so three runs of five steps are one of fifteen."""
    warm = made(steps=3, inner={"start": "warm"}, optimizer=descent(0.0), schedule="constant")
    warm.fit()
    long = made(inner={"whole_steps": 15})
    expected = dict(long.train_network().named_parameters())
    carried, state = warm.module.carried.stands()
    for name, value in carried.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert any(bool(leaf.any()) for leaf in torch.utils._pytree.tree_leaves(state))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_warm_state_is_kept_of_every_optimizer(optimizer: str) -> None:
    inner = {"start": "warm", "optimizer": optimizer, "lr": 0.01}
    trainer = made("weight_decay", steps=2, inner=inner)
    before, _ = trainer.module.carried.stands()
    trainer.fit()
    after, _ = trainer.module.carried.stands()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_fresh_runs_differ_by_step_and_follow_from_the_seed() -> None:
    seeds: list[int] = []

    def factory(seed: int) -> nn.Module:
        seeds.append(seed)
        return network(seed)

    one, other = (made(inner={"start": "fresh"}, factory=factory, seed=s) for s in (0, 1))
    first = one.gradient(0).grads["scores"]
    assert not torch.equal(first, one.gradient(1).grads["scores"])
    assert torch.equal(first, one.gradient(0).grads["scores"])
    assert not torch.equal(first, other.gradient(0).grads["scores"])
    assert len(set(seeds)) == 5  # of two steps and one, and of both trainers' trials


def test_a_step_is_accumulated_over_runs_of_their_own() -> None:
    """Fresh ones: as many networks, and the mean of their gradients."""
    settings: dict[str, Any] = {"inner": {"start": "fresh"}, "factory": network, "outer_batch": 6}
    single = made(**settings)
    runs = [single.gradient(number).grads["scores"] for number in (2, 3)]
    both = made(accumulate=2, **settings).gradient(1).grads["scores"]
    assert not torch.allclose(*runs)
    torch.testing.assert_close(both, sum(runs) / 2)


def test_fixed_runs_are_the_same_at_every_step() -> None:
    trainer = made()
    assert torch.equal(trainer.gradient(0).grads["scores"], trainer.gradient(7).grads["scores"])


# --- what comes of it ---------------------------------------------------------------------------


@kinds
def test_a_report_has_what_was_learnt_beside_an_ordinary_run(kind: str) -> None:
    trainer = made(kind, optimizer=partial(torch.optim.Adam, lr=0.1))
    at_first = trainer.test()
    trainer.fit()
    found = trainer.reports()["test"]
    assert found.plain.headline() == at_first.plain.headline()
    assert found.learnt.headline() != found.plain.headline()
    if kind != "example_weights":  # which begin below 1
        assert at_first.learnt.headline() == pytest.approx(at_first.plain.headline(), rel=1e-4)
    headline = found.headline()
    assert headline["test/plain_accuracy"] == pytest.approx(found.plain.headline()["test/accuracy"])
    assert [line for line in found.lines("test") if "ordinary runs" in line]
    assert set(at_first.as_json()) == {"learnt", "plain"}
    assert set(found.as_json()) == {"check", "learnt", "plain"}


def test_whole_runs_are_those_of_the_networks_that_are_given_out() -> None:
    trainer = made(inner={"whole_runs": 2, "whole_steps": 9}, factory=network)
    x, y = trainer.data.part("test")
    found = trainer.test()
    rows = found.learnt.report.members.accuracy
    assert found.headline()["test/accuracy"] == pytest.approx(float(rows.mean()))
    for index in range(2):
        model = trainer.train_network(index)
        accuracy = (model(x).argmax(-1) == y).double().mean()
        assert float(rows[index]) == pytest.approx(float(accuracy))
    one, other = (dict(trainer.train_network(i).named_parameters()) for i in range(2))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    plain = dict(trainer.train_network(plain=True).named_parameters())
    assert any(not torch.equal(one[name], plain[name]) for name in one)


def test_an_ordinary_run_is_gradient_descent() -> None:
    trainer = made("weight_decay", inner={"momentum": 0.0, "weight_decay": 0.1})
    network_ = network()
    optimizer = torch.optim.SGD(network_.parameters(), lr=0.2, weight_decay=0.1 + 1e-3)
    batch = trainer._runs._batches(trainer.module, 0)
    for k in range(5):
        x, y, _, _ = batch(k)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network_(x), y).backward()
        optimizer.step()
    _, expected, _ = functionalize(network_)
    found = dict(trainer.train_network(plain=True).named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-6)


def test_real_targets_are_weighted_too() -> None:
    model = MLP((2,), 4, hidden=(6,), activation="tanh")
    trainer = made(model=model, data=waves(), loss="gaussian_nll")
    trainer.fit()
    assert "test/plain_nll" in trainer.test().headline()


def test_the_model_stays_where_it_is() -> None:
    """Also where runs are on another device, such as one without values, on which none can be."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SettingError, match="not on the meta device"):
        made(model=model, device="meta").fit()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    trained = made(model=model, steps=1)
    trained.fit()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_has_masks_of_its_own_in_every_step() -> None:
    model = MLP((2,), 3, hidden=(6,), dropout=0.5)
    trainer = made("learning_rates", model=model)
    grads = trainer.gradient(0).grads["log_rates"]
    assert torch.equal(grads, trainer.gradient(0).grads["log_rates"])
    bare = made("learning_rates", model=MLP((2,), 3, hidden=(6,)))
    assert not torch.allclose(grads, bare.gradient(0).grads["log_rates"])


# --- what cannot work ---------------------------------------------------------------------------

SCHEDULE = {"schedule": "cosine"}


def _one_of_each(data: ClassificationData) -> ClassificationData:
    splits: Any = {**data.splits, "validation": data.splits["validation"][:1]}
    return replace(data, splits=splits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyper": "example_weight"}, "hyper='example_weight': known are .*; did you mean"),
        ({"hyper": lambda setup: nn.Linear(1, 1)}, "hyper='Linear': what makes a HyperModule"),
        ({"hyper": lambda: None}, "hyper=.*a function of 1 argument"),
        ({"hyper": partial(LearntExampleWeights, bound="one")}, "hyper.bound='one': one of unit"),
        ({"hyper": partial(LearntSchedule, momentum=True), "inner": {"momentum": 0.0}},
         "hyper.momentum=True: inner.optimizer='sgd'"),
        ({"hyper": partial(LearntWeightDecay, per="task")}, "hyper.per='task'"),
        ({"hyper": partial(DistilledExamples, per_class=99)}, "hyper.per_class=99: at most 16 is"),
        ({"hyper": "distilled", "inner": SCHEDULE},
         "hyper.rate=True: false is needed beside .*, or inner.schedule='constant'"),
        ({"hyper": "distilled", "data": waves(3), "loss": "mse"}, "loss='mse': cross_entropy"),
        ({"inner": {"steps": 0}}, "inner.steps=0: a whole number"),
        ({"inner": {"lr": 0}}, "inner.lr=0: a finite number above 0"),
        ({"inner": {"momentum": 1.0}}, r"inner.momentum=1.0: a number in \[0, 1\)"),
        ({"inner": {"optimizer": "lbfgs"}}, "inner.optimizer='lbfgs'"),
        ({"inner": {"start": "cold"}}, "inner.start='cold'"),
        ({"inner": {"start": "fresh"}}, "inner.start='fresh': a factory of networks"),
        ({"inner": {"batch_size": 49}}, "inner.batch_size=49: the training part has 48 examples"),
        ({"inner": {"start": "warm"}, "hyper": "learning_rates"}, "inner.start='warm': fixed or"),
        ({"inner": {"start": "warm", **SCHEDULE}}, "inner.start='warm': fixed or fresh"),
        ({"inner": {"start": "warm"}, "accumulate": 2}, "accumulate=2: 1 is needed with"),
        ({"inner": {"whole_steps": 9}, "hyper": "learning_rates"}, "inner.whole_steps=9: null"),
        ({"factory": lambda seed: network(seed, outputs=4)}, r"factory\[3.weight\]=\(4, 6\)"),
        ({"factory": lambda seed: nn.Linear(2, 3)}, "factory=.*with the parameters of the model"),
        ({"factory": lambda seed: None}, "factory='NoneType': what makes a Module"),
        ({"method": "implicit", "hyper": "learning_rates"}, "method='implicit': another is"),
        ({"method": "implicit", "hyper": "distilled"}, "method='implicit': another is"),
        ({"method": "first_order"}, "method='first_order': another is needed"),
        ({"method": "truncated"}, "truncation=None: a number of steps, 1 to 5, is needed"),
        ({"truncation": 3}, "truncation=3: method='truncated' is needed"),
        ({"implicit": {"iterations": 3}}, "implicit='a solver': method='implicit' is needed"),
        ({"method": "implicit", "implicit": {"damping": -1}}, "implicit.damping=-1"),
        ({"method": "implicit", "implicit": {"damp": 1}}, "implicit.damp=1: there is no such"),
        ({"outer_batch": 13}, "outer_batch=13: null is needed, or at most 12"),
        ({"data": _one_of_each(blobs())}, r"data.splits\['validation'\]=1: at least two"),
        ({"precision": "bfloat16"}, "precision='bfloat16': float32 is needed where runs"),
        ({"monitor": "nll"}, "monitor='nll'"),
        ({"seed": -1}, "seed=-1: a whole number"),
        ({"model": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))}, "model='1: BatchNorm1d'"),
        ({"model": network().requires_grad_(False)}, "model='MLP': a parameter to train is need"),
        ({"model": nn.Linear(2, 4)}, r"model='Linear': outputs \[2, 3\] are needed"),
        ({"model": nn.Linear(5, 3)}, r"model='Linear': inputs \[2\] are what it gets"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}") as caught:
        made(**settings)
    assert "\n" not in str(caught.value)


def test_data_of_real_targets_have_halves() -> None:
    data: RegressionData = waves()
    trainer = made("weight_decay", model=MLP((2,), 4, hidden=(4,)), data=data)
    halves = [trainer.objective.batches.order.indices(0), trainer._scored.splits["validation"]]
    assert torch.cat(halves).sort().values.tolist() == data.splits["validation"].tolist()


class _Shapes(LearntWeightDecay):
    """Terms of another shape, whose mean would be another one when samples are divided."""

    change: Any = staticmethod(lambda terms: terms)

    def terms(self, *given: Any, **named: Any) -> torch.Tensor:
        found: torch.Tensor = self.change(super().terms(*given, **named))
        return found


@pytest.mark.parametrize(
    "change",
    [torch.mean, lambda terms: terms[:, None].expand(-1, 2), lambda terms: terms[:-1]],
    ids=["a mean", "two each", "one less"],
)
@pytest.mark.parametrize("count", [1, 2])
def test_terms_are_one_for_each_example(change: Any, count: int) -> None:
    class Changed(_Shapes):
        pass

    Changed.change = staticmethod(change)

    def step(ranks: ThreadRanks) -> str:
        with pytest.raises(SettingError, match="terms=.*one loss for each of") as refusal:
            ranks.made(made, hyper=Changed).gradient(0)
        return str(refusal.value)

    on_ranks(count, step)
