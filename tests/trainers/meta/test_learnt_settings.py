"""Settings of what is learnt beside the weights, what is recorded of it, and what is left alone.

Axes: M members, K inner steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.errors import DataError, SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MetaLearner, MetaTrainer
from tests.support.builders import Recorder, assert_same, before_gradient, last, sinusoid_trainer

WAVES = SinusoidTasks(shot=4, query=4)
SGD, ADAM = {"inner_optimizer": "sgd"}, {"inner_optimizer": "adam"}


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(3,), seed=seed)


def learner(members: int = 0, **settings: Any) -> MetaLearner:
    module: Any = Ensemble.from_factory(network, range(members)) if members else network()
    return MetaLearner(module, MAML(inner_lr=0.02, **settings), kind="regression")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learn": ["rate"]}, r"^learn=\['rate'\]: names among lr, momentum, weight_decay are"),
        ({"learn": "eps", **ADAM}, "^learn='eps': names among lr, betas, weight_decay are needed"),
        ({"learn": ["betas"]}, r"^learn=\['betas'\]: names among lr, momentum, .* with sgd$"),
        ({"learn": ["beta1"], **ADAM}, r"^learn=\['beta1'\]: names among lr, betas, .* with adam$"),
        ({"learn": ["momentum"], **ADAM}, r"^learn=\['momentum'\]: names among lr, betas"),
        ({"learn": ["lr", "lr"]}, r"^learn=\['lr', 'lr'\]: names among .* needed, each once"),
        ({"learn": None}, "^learn=None: a text or a list of texts is needed"),
        ({"learn": [1]}, r"^learn=\[1\]: a text or a list of texts is needed"),
        ({"lr_per": "step"}, r"^lr_per='step': learn=\[lr\] is needed for it"),
        ({"lr_per": "step", "learn": ["momentum"]}, r"^lr_per='step': learn=\[lr\] is needed"),
        ({"lr_per": "task", "learn": ["lr"]}, "^lr_per='task': one of all, parameter, step, param"),
        ({"learn": ["lr"], "method": "implicit"}, r"^learn=\['lr'\]: \[\] is needed with method="),
        ({"learn": ["lr"], "inner_steps": 0}, r"^learn=\['lr'\]: \[\] is needed with inner_st"),
        ({"inner_lr": torch.tensor(0.1)}, r"^inner_lr='Tensor': .* learn=\[lr\] learns it from"),
        ({"inner_momentum": 1.0}, r"^inner_momentum=1\.0: a number in \[0, 1\) is needed"),
        ({"inner_momentum": -0.1}, r"^inner_momentum=-0\.1: a number in \[0, 1\) is needed"),
        ({"inner_momentum": 0.5, **ADAM}, r"^inner_momentum=0\.5: inner_optimizer=sgd is needed"),
        ({"inner_nesterov": True}, "^inner_nesterov=True: an inner_momentum above 0 is needed"),
        (
            {"inner_nesterov": True, "inner_optimizer": "adamw"},
            "^inner_nesterov=True: inner_optimizer=sgd is needed for it; adamw has none",
        ),
        ({"inner_weight_decay": -1.0}, r"^inner_weight_decay=-1\.0: a finite number of at least 0"),
        (
            {"inner_weight_decay": 0.1, "method": "implicit"},
            r"^inner_weight_decay=0\.1: 0 is needed with method=implicit",
        ),
        ({"inner_betas": [0.9]}, r"^inner_betas=\[0\.9\]: two numbers in \[0, 1\) are needed"),
        ({"inner_betas": 0.9}, r"^inner_betas=0\.9: a list of numbers is needed"),
        ({"inner_betas": [0.9, 1.0], **ADAM}, r"^inner_betas\[1\]=1\.0: a number in \[0, 1\)"),
        ({"inner_betas": [0.8, 0.9]}, r"^inner_betas=\[0\.8, 0\.9\]: inner_optimizer=adam or a"),
    ],
)  # fmt: skip
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MAML(**settings)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"learn": "lr"}, ["lr"]),
        ({"learn": ["momentum", "lr"]}, ["lr", "momentum"]),
        ({"learn": ["momentum"], "inner_nesterov": True}, ["momentum"]),
        ({"learn": ("betas",), **ADAM}, ["beta1", "beta2"]),
        ({"learn": ["weight_decay", "lr"], "inner_optimizer": "adamw"}, ["lr", "weight_decay"]),
        ({"learn": [], "inner_betas": [0.9, 0.999]}, []),
        ({"inner_momentum": 0.9, "method": "implicit"}, []),
    ],
)
def test_what_is_learnt_by_name(settings: dict[str, Any], names: list[str]) -> None:
    assert MAML(**settings).learnt_names == names


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_names_of_the_network_may_not_begin_as_those_of_what_is_learnt(kind: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learnt, self.last = nn.Module(), nn.Linear(1, 1)
            if kind == "buffer":
                self.learnt.register_buffer("scale", torch.ones(1))
            else:
                self.learnt.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> Any:
            return self.last(x) * self.learnt.scale

    MetaLearner(Named(), kind="regression")
    message = r"^module='learnt\.\w+': names that do not begin with learnt\. are needed where"
    with pytest.raises(SettingError, match=message):
        MetaLearner(Named(), MAML(learn="lr"), kind="regression")


# --- the learner ----------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [0, 2])
def test_entries_stand_beside_those_of_the_network(members: int) -> None:
    lead = (members,) if members else ()
    settings = {"learn": ["lr", "momentum"], "lr_per": "parameter_and_step", "inner_steps": 4}
    one, bare = learner(members, **settings), learner(members)
    own = {name: value for name, value in one.params.items() if "learnt" not in name}
    assert_same(own, dict(bare.params))
    shapes = {name: tuple(v.shape) for name, v in one.params.items() if name not in own}
    wanted: dict[str, tuple[int, ...]] = {f"learnt.lr.{name}": (*lead, 4) for name in own}
    assert shapes == {**wanted, "learnt.momentum": lead}
    assert one.module.state_dict().keys() == bare.module.state_dict().keys()
    tasks = WAVES.sample("train", range(2))
    assert one.meta_gradient(tasks).grads.keys() == one.params.keys()
    for row in one.network.rows():
        assert one.task_gradients(row, tasks).keys() == one.params.keys()
        states = list(one.fit(row, tuple(v[0] for v in tasks.support)))  # type: ignore[arg-type]
        assert all(state.keys() == own.keys() for state in states)
        batch = tuple(v[0] for v in tasks.query)
        assert torch.equal(one.loss(row, batch), one.loss(states[0], batch))  # type: ignore[arg-type]


@pytest.mark.parametrize("members", [0, 2])
def test_nothing_learnt_is_as_before(members: int) -> None:
    one = learner(members)
    assert one.network.learnt is None
    assert one.network.own(one.params) is one.params
    assert one.optimizer_at(one.params) is one.optimizer


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("diagnostics", [("gradient_norms", "noise_scale", "gradient_cosines")])
@pytest.mark.parametrize("members", [0, 2])
def test_diagnostics_see_what_is_learnt(members: int, diagnostics: Any) -> None:
    module: Any = Ensemble.from_factory(network, range(members)) if members else network()
    maml = MAML(inner_lr=0.02, learn="lr", lr_per="parameter")
    tracker = Recorder()
    MetaTrainer(
        module, WAVES, maml=maml, steps=2, meta_batch=3, validation_tasks=2, progress=False,
        diagnostics=diagnostics, diagnostics_every=1, tracker=tracker,
    ).fit()  # fmt: skip
    assert any(name.startswith("noise_scale") for _, row in tracker.numbers for name in row)


@pytest.mark.parametrize("what", [torch.nan, torch.inf])
def test_a_member_whose_step_size_is_not_finite_is_put_back_alone(what: float) -> None:
    def run(broken: bool) -> MetaTrainer:
        model = Ensemble.from_factory(network, range(3))
        given: dict[str, Any] = {"steps": 5, "eval_every": 2, "meta_batch": 3, "progress": False}
        maml = MAML(inner_lr=0.02, learn="lr", lr_per="parameter", engine="batched")
        trainer = MetaTrainer(model, WAVES, maml=maml, validation_tasks=2, **given)

        def spoil(step: int) -> None:
            if broken and step == 3:
                with torch.no_grad():
                    trainer.learner.params["learnt.lr.1.weight"][1] = what

        before_gradient(trainer, spoil)
        trainer.fit()
        return trainer

    trainer, sound = run(True), run(False)
    assert trainer.active.tolist() == [True, False, True]
    assert trainer.endings[1].startswith("diverged at step 3")
    assert trainer.learner.params.keys() == sound.learner.params.keys()
    for name, value in trainer.learner.params.items():
        assert torch.isfinite(value).all(), name
        for index in (0, 2):
            torch.testing.assert_close(value[index], sound.learner.params[name][index])


@pytest.mark.parametrize("axis", ["all", "parameter", "step", "element"])
@pytest.mark.parametrize("members", [0, 3])
def test_records_have_the_middle_and_the_extremes(members: int, axis: Any) -> None:
    tracker = Recorder()
    module: Any = Ensemble.from_factory(network, range(members)) if members else network()
    maml = MAML(inner_lr=0.02, inner_steps=2, learn=["lr", "weight_decay"], lr_per=axis)
    given: dict[str, Any] = {"steps": 3, "log_every": 1, "meta_batch": 3, "validation_tasks": 2}
    trainer = MetaTrainer(module, WAVES, maml=maml, tracker=tracker, progress=False, **given)
    several = {"learnt/lr"} if axis != "all" else set()
    several |= {"learnt/lr", "learnt/weight_decay"} if members else set()
    bands = trainer.bands
    trainer.fit()
    names = {n for _, row in tracker.numbers for n in row if n.startswith("learnt/")}
    ends = {f"{name}_{end}" for name in several for end in ("low", "high")}
    assert names == {"learnt/lr", "learnt/weight_decay"} | ends
    assert {n for given in bands.values() for n in given if n.startswith("learnt/")} == several
    assert tracker.series("learnt/lr")[0] == pytest.approx(0.02)
    assert tracker.series("learnt/weight_decay")[0] == 0.0
    assert tracker.steps("learnt/lr") == [1, 2, 3]
    values = [p for n, p in trainer.loop.beside.named_parameters() if n.startswith("lr")]  # type: ignore[union-attr]
    flat = torch.cat([p.detach().reshape(members or 1, -1) for p in values], 1)
    spread = flat.mean(1) if members else flat[0]
    found = trainer.loop.objective.records(trainer.loop.objective.batch(3), None, step=3)  # type: ignore[arg-type]
    middle = spread.median() if members else spread.mean()
    assert found["learnt/lr"] == pytest.approx(float(middle))
    if "learnt/lr" in several:
        assert found["learnt/lr_low"] == pytest.approx(float(spread.min()))
        assert found["learnt/lr_high"] == pytest.approx(float(spread.max()))


@pytest.mark.parametrize(
    "axis", ["all", "parameter", "step", "parameter_and_step", "element", "element_and_step"]
)
@pytest.mark.parametrize("members", [0, 3])
def test_charts_have_the_step_sizes_that_are_several(members: int, axis: Any) -> None:
    tracker = Recorder()
    module: Any = Ensemble.from_factory(network, range(members)) if members else network()
    maml = MAML(inner_lr=0.02, inner_steps=2, learn=["lr", "momentum"], lr_per=axis)
    given: dict[str, Any] = {"steps": 2, "meta_batch": 3, "validation_tasks": 2}
    trainer = MetaTrainer(module, WAVES, maml=maml, tracker=tracker, progress=False, **given)
    trainer.fit()
    own = [f"learnt_lr_by_parameter/{n}" for n in ("1.weight", "1.bias", "3.weight", "3.bias")]
    steps = ["learnt_lr_by_step/step_0", "learnt_lr_by_step/step_1"]
    each = "parameter" in axis or "element" in axis
    names = (own if each else []) + (steps if "step" in axis else [])
    assert {n for _, row in tracker.numbers for n in row if n.startswith("learnt_")} == set(names)
    rates = {n: v for n, v in trainer.learner.params.items() if n.startswith("learnt.lr")}
    for name in names:
        assert tracker.steps(name) == [0, 2]
        assert tracker.series(name)[0] == pytest.approx(0.02)
        key = name.partition("/")[2]
        if name in own:
            wanted = rates[f"learnt.lr.{key}"].mean()
        else:
            at = [v.select(min(members, 1), int(key[-1])).flatten() for v in rates.values()]
            wanted = torch.cat(at).mean()
        assert tracker.series(name)[1] == pytest.approx(float(wanted), rel=1e-6)


def test_another_axis_than_the_checkpoint_has_is_refused(tmp_path: Path) -> None:
    """And so is another number of inner steps, of a value for each."""
    maml = MAML(inner_lr=0.02, learn="lr", lr_per="step", inner_steps=2)
    sinusoid_trainer(maml=maml, folder=tmp_path, steps=1).fit()
    for other in (
        MAML(inner_lr=0.02, learn="lr", lr_per="step", inner_steps=3),
        MAML(inner_lr=0.02, learn="lr", lr_per="element", inner_steps=2),
        MAML(inner_lr=0.02, learn="lr", lr_per="parameter", inner_steps=2),
        MAML(inner_lr=0.02, learn=["lr", "momentum"], lr_per="step", inner_steps=2),
    ):
        with pytest.raises(DataError, match=r"does not fit the run \(learnt"):
            sinusoid_trainer(maml=other).resume(last(tmp_path))
    with pytest.raises(DataError, match="it has some of what is learnt beside"):
        sinusoid_trainer().resume(last(tmp_path))


def test_a_step_size_may_become_negative() -> None:
    far = torch.optim.SGD

    def outer(parameters: Any) -> torch.optim.Optimizer:
        return far(parameters, lr=0.0)

    trainer = sinusoid_trainer(maml=MAML(inner_lr=0.02, learn="lr"), optimizer=outer, steps=2)
    with torch.no_grad():
        next(trainer.loop.beside.parameters()).fill_(-0.01)  # type: ignore[union-attr]
    trainer.fit()
    assert float(trainer.learner.params["learnt.lr"]) == pytest.approx(-0.01)
    assert torch.isfinite(trainer.test(3).losses).all()
