"""Private meta-training: what a step adds up of tasks, what gets out of it, and what it has cost.

Axes: N units, T tasks of a step, B expected ones.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.privacy import PrivacyLedger, SampledGaussian, privacy_spent
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.tasks.units import NumberedUnits
from metalearn.trainers import (
    MAML,
    ConformalSets,
    MAMLPlusPlus,
    MetaTrainer,
    PrivateMetaTrainer,
    ProtoNet,
)
from metalearn.trainers.meta.making import takes_maml
from metalearn.trainers.meta.registry import LEARNERS
from metalearn.types import TaskBatch
from tests.contracts.trainers import OWN_SETTINGS
from tests.support.builders import Recorder, assert_same, patterns
from tests.support.spreads import assert_normal_spread

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
SEEDED: Any = {"noise": "seeded"}
WAVES = {"cnp"}
"""Learners of regression alone; all others take the classes of `Users`."""
SAMPLES = {"baseline_pp", "rfs"}
ACCEPTED = [name for name in LEARNERS if name not in SAMPLES]
each_learner = pytest.mark.parametrize("name", ACCEPTED)


class Users:
    """Tasks in float64 of whatever source, one for each user."""

    def __init__(self, tasks: Any) -> None:
        self.tasks = tasks
        self.kind, self.input_shape, self.outputs = tasks.kind, tasks.input_shape, tasks.outputs

    def sample(
        self, split: Any, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        batch = self.tasks.sample(split, indices, device=device)
        return tree_map(lambda x: x.double() if x.is_floating_point() else x, batch)

    def training_units(self, users: int | None = None) -> NumberedUnits:
        return NumberedUnits(self, users)  # type: ignore[arg-type]


def waves(**settings: Any) -> Users:
    return Users(SinusoidTasks(shot=4, query=4, **settings))


def pictures() -> Users:
    return Users(FewShotTasks(patterns(), way=3, shot=2, query=2))


def network(tasks: Any) -> nn.Module:
    """Smooth, in float64; its outputs serve as logits of three classes and as features."""
    shape, outputs = tasks.input_shape, tasks.outputs
    return MLP(shape, outputs, hidden=(6,), activation="tanh").double()


def private(name: str = "maml", tasks: Any = None, **settings: Any) -> PrivateMetaTrainer:
    return made(
        PrivateMetaTrainer, name, tasks, **{"users": 40, "noise_multiplier": 1.0} | settings
    )


def made(kind: Any, name: str, tasks: Any, **settings: Any) -> Any:
    if tasks is None:
        tasks = waves() if name in WAVES | {"maml"} else pictures()
    make = LEARNERS[name].make
    own = OWN_SETTINGS.get(name)
    given: dict[str, Any] = {"steps": 6, "meta_batch": 5, "progress": False}
    if kind is PrivateMetaTrainer:
        given |= {"delta": 1e-3, "reserve": 1}
    if takes_maml(make):
        given["maml"] = MAML(inner_lr=0.05, inner_steps=2, eval_steps=2)
    given["learner"] = partial(make, **own) if own else name
    given |= settings
    model = given.pop("model", None) or network(tasks)
    return kind(model, tasks, **given)


def step_of(trainer: PrivateMetaTrainer, step: int) -> tuple[TaskBatch, dict[str, Tensor]]:
    """The tasks of a step, and the sum of their clipped gradients as the trainer takes it."""
    trainer.prepare()
    batch = trainer.objective.batch(step)
    found = trainer.objective.gradient(trainer.loop.params, batch, step=step)
    assert found.divisor == 1 and found.normalizer == trainer.meta_batch
    assert found.count == len(batch.indices) == len(batch.tasks.query[1])
    return batch.tasks, dict(found.grads)


def drawn(trainer: PrivateMetaTrainer, step: int) -> list[int]:
    """The units of a step, of seeded draws."""
    found: list[int] = trainer.objective.private.draws.draw(step).tolist()
    return found


def alone(trainer: Any, tasks: TaskBatch, t: int, step: int) -> dict[str, Tensor]:
    """The gradient of one task, as an ordinary step of it alone takes it."""
    learner = trainer.learner
    own = {name: trainer.loop.params[learner.names[name]] for name in learner.names}
    task = tree_map(lambda x: x[t : t + 1], tasks)
    grads = learner.gradient(own, task, step=step).grads
    return {learner.names[name]: grad for name, grad in grads.items()}


# --- what a step is ----------------------------------------------------------------------------


@each_learner
def test_without_clipping_it_is_the_ordinary_meta_gradient(name: str) -> None:
    trainer, plain = private(name, max_norm=1e9, **SEEDED), made(MetaTrainer, name, None)
    plain.prepare()
    step = next(s for s in range(6) if drawn(trainer, s))
    tasks, found = step_of(trainer, step)
    learner = plain.learner
    own = {n: plain.loop.params[learner.names[n]] for n in learner.names}
    wanted = learner.gradient(own, tasks, step=step).grads
    assert found.keys() == {learner.names[n] for n in wanted}
    for n, grad in wanted.items():
        mean = found[learner.names[n]] / len(tasks.query[1])
        torch.testing.assert_close(mean, grad, rtol=1e-9, atol=1e-12)


@each_learner
def test_each_task_is_clipped_by_itself(name: str) -> None:
    """Held against single tasks in a loop, at norms of which the median is C."""
    trainer = private(name, **SEEDED)
    step = next(s for s in range(6) if len(drawn(trainer, s)) > 2)
    tasks, _ = step_of(trainer, step)
    rows = [alone(trainer, tasks, t, step) for t in range(len(tasks.query[1]))]
    norms = [math.sqrt(sum(float((g**2).sum()) for g in row.values())) for row in rows]
    limit = sorted(norms)[len(norms) // 2] * 0.999
    _, found = step_of(private(name, max_norm=limit, **SEEDED), step)
    factors = [min(1.0, limit / norm) for norm in norms]
    assert min(factors) < 1 and max(factors) == 1
    for n in found:
        wanted = sum(f * row[n] for f, row in zip(factors, rows))
        torch.testing.assert_close(found[n], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip_groups", ["layers", {"head": "3.*"}])
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_groups_of_parameters_are_clipped_by_themselves(clipping: Any, clip_groups: Any) -> None:
    trainer = private(max_norm=0.05, clipping=clipping, clip_groups=clip_groups, **SEEDED)
    tasks, found = step_of(trainer, 0)
    total = {n: torch.zeros_like(g) for n, g in found.items()}
    for t in range(len(tasks.query[1])):
        row = alone(trainer, tasks, t, 0)
        for part in ("1.", "3."):
            names = [n for n in row if n.startswith(part)]
            norm = math.sqrt(sum(float((row[n] ** 2).sum()) for n in names))
            limit = 0.05 / math.sqrt(2)
            factor = min(1, limit / norm) if clipping == "flat" else limit / (norm + 0.01)
            for n in names:
                total[n] += factor * row[n]
    for n, wanted in total.items():
        torch.testing.assert_close(found[n], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_engines_and_chunks_change_nothing(engine: Any) -> None:
    wanted = step_of(private(max_norm=0.1, **SEEDED), 0)[1]
    for chunk in (None, 2):
        maml = MAML(inner_lr=0.05, inner_steps=2, eval_steps=2, engine=engine, chunk_size=chunk)
        found = step_of(private(max_norm=0.1, maml=maml, **SEEDED), 0)[1]
        for n, grad in wanted.items():
            torch.testing.assert_close(found[n], grad, rtol=1e-9, atol=1e-12)


def test_what_is_learnt_beside_the_weights_is_clipped_with_them() -> None:
    maml = MAML(inner_lr=0.05, inner_steps=2, eval_steps=2, learn=["lr"], lr_per="parameter")
    trainer = private(maml=maml, max_norm=0.2, **SEEDED)
    tasks, found = step_of(trainer, 0)
    rates = [n for n in found if n.startswith("learnt.lr")]
    assert rates and any(bool(found[n].any()) for n in rates)
    norm = math.sqrt(sum(float((g**2).sum()) for g in found.values()))
    assert norm <= 0.2 * len(tasks.query[1])


def test_with_little_noise_a_step_is_the_sum_over_the_expected_number() -> None:
    trainer = private(max_norm=1e6, noise_multiplier=1e-15, **SEEDED)
    step = next(s for s in range(6) if len(drawn(trainer, s)) not in (0, 5))  # or all is as before
    _, wanted = step_of(trainer, step)
    found = trainer.gradient(step)
    for n, grad in wanted.items():
        torch.testing.assert_close(found.grads[n], grad / 5, rtol=1e-6, atol=1e-8)


def test_noise_is_that_of_the_multiplier_and_divided_by_the_expected_number() -> None:
    trainer = private(max_norm=0.5, noise_multiplier=4.0, users=900)
    noise = []
    for step in range(40):
        quiet = trainer.objective.gradient(
            trainer.loop.params, trainer.objective.batch(step), step=step
        )
        means = {n: g / 5 for n, g in quiet.grads.items()}
        assert quiet.noise is not None
        loud = quiet.noise(means, 5.0)
        noise.append(torch.cat([(loud[n] - means[n]).flatten() for n in means]))
    rows = torch.stack(noise)
    assert_normal_spread(rows, 4.0 * 0.5 / 5)
    close = (rows[:-1] * rows[1:]).mean() / rows.var()  # noise of one step and of the next
    assert abs(float(close)) < 5 / math.sqrt(rows.numel())


def test_a_step_that_drew_nobody_is_of_noise_alone() -> None:
    trainer = private(users=30, meta_batch=1, steps=30, **SEEDED)
    empty = next(s for s in range(30) if not drawn(trainer, s))
    trainer.prepare()
    quiet = trainer.objective.gradient(
        trainer.loop.params, trainer.objective.batch(empty), step=empty
    )
    assert quiet.count == 0 and not any(bool(g.any()) for g in quiet.grads.values())
    loud = trainer.gradient(empty)
    assert all(bool(g.any()) for g in loud.grads.values())
    trainer.fit()


def test_a_task_without_a_finite_gradient_counts_as_none() -> None:
    class Broken(Users):
        def sample(self, split: Any, indices: Sequence[int], **how: Any) -> TaskBatch:
            batch = super().sample(split, indices, **how)
            for row, index in enumerate(indices):
                if split == "train" and index % 3 == 0:
                    batch.support[0][row] = torch.nan
            return batch

    tasks, found = step_of(private(tasks=Broken(waves().tasks), meta_batch=20, **SEEDED), 0)
    whole, _ = step_of(private(meta_batch=20, **SEEDED), 0)
    good = tasks.support[0].isfinite().flatten(1).all(1)
    assert 0 < int(good.sum()) < len(good)
    kept = tree_map(lambda x: x[good], whole)
    trainer = private(meta_batch=20, **SEEDED)
    rows = [alone(trainer, kept, t, 0) for t in range(int(good.sum()))]
    for n, grad in found.items():
        wanted = torch.zeros_like(grad)
        for row in rows:
            norm = math.sqrt(sum(float((g**2).sum()) for g in row.values()))
            wanted += row[n] * min(1.0, 1 / norm)
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)


# --- who takes part ----------------------------------------------------------------------------


def test_users_take_part_as_often_as_is_accounted_for() -> None:
    trainer, seen = private(users=50, meta_batch=10, steps=400), torch.zeros(50)
    sizes = []
    for step in range(400):
        units = drawn(trainer, step)
        seen[units] += 1
        sizes.append(len(units))
    rate, spread = 10 / 50, math.sqrt(0.2 * 0.8 / 400)
    assert trainer.mechanism.rate == rate
    assert float((seen / 400 - rate).abs().max()) < 5 * spread
    shifted = torch.tensor(sizes, dtype=torch.double) - 10
    assert_normal_spread(shifted, math.sqrt(8))


def test_the_tasks_of_a_step_are_those_of_the_units_that_were_drawn() -> None:
    tasks = waves()
    trainer = private(tasks=tasks, **SEEDED)
    for step in range(4):
        units = drawn(trainer, step)
        batch = trainer.objective.batch(step)
        assert batch.indices == units
        if units:
            wanted = tasks.sample("train", units)
            assert_same(batch.tasks.support[0], wanted.support[0])
            assert max(units) < 40


def in_groups(**settings: Any) -> PrivateMetaTrainer:
    """Three groups of training classes."""
    from tests.tasks.test_units import grouped

    tasks = grouped()
    model = MLP(tasks.input_shape, 2, hidden=(6,), activation="tanh")
    given: dict[str, Any] = {"users": None, "meta_batch": 2, "model": model, "delta": 1e-2}
    return private("protonet", tasks, **given | settings)


def test_groups_of_classes_are_units_with_one_task_in_a_step() -> None:
    trainer = in_groups(steps=20, **SEEDED)
    assert trainer.mechanism == SampledGaussian("poisson", 3, 2, 1.0)
    sizes = set()
    for step in range(20):
        batch = trainer.objective.batch(step).tasks
        units = drawn(trainer, step)
        sizes.add(len(units))
        if units:
            assert len(batch.query[1]) == len(units)
            assert_same(batch.support[0], trainer.units.sample(units, step).support[0])
    assert sizes >= {1, 2, 3}
    trainer.fit()
    assert math.isfinite(next(iter(trainer.test(5).headline().values())))


# --- what gets out -----------------------------------------------------------------------------


def test_nothing_of_private_tasks_is_recorded() -> None:
    seen = Recorder()
    private(tracker=seen, log_every=1).fit()
    names = {name for _, numbers in seen.numbers for name in numbers}
    assert not [n for n in names if n.startswith("train/") and "gradient_norm" not in n
                and "learning_rate" not in n]  # fmt: skip
    assert {"privacy/epsilon", "train/gradient_norm", "validation/step"} <= names
    assert "speed/memory_gb" not in names
    epsilons = [numbers["privacy/epsilon"] for _, numbers in seen.numbers
                if "privacy/epsilon" in numbers]  # fmt: skip
    assert epsilons == sorted(epsilons) and len(set(epsilons)) == 6
    assert private().data_checksum is None


def test_speed_and_losses_tell_nothing_of_how_many_took_part() -> None:
    trainer = private(**SEEDED)
    trainer.prepare()
    for step in range(4):
        batch = trainer.objective.batch(step)
        found = trainer.objective.gradient(trainer.loop.params, batch, step=step)
        assert (found.processed, found.shows_losses) == (5, False)
        assert not bool(found.losses.any()) and found.suspects() == "this step"


def test_nothing_is_decided_on_training_tasks() -> None:
    class Blind(Users):
        def sample(self, split: Any, indices: Sequence[int], **how: Any) -> TaskBatch:
            batch = super().sample(split, indices, **how)
            if split == "train":
                for part in (*batch.support, *batch.query):
                    part.fill_(torch.nan)
            return batch

    trainer, seen = private(tasks=Blind(waves().tasks)), []
    prepare, unused_in = trainer.learner.prepare, trainer.learner.unused_in
    trainer.learner.prepare = lambda tasks, *given, **named: (  # type: ignore[method-assign]
        seen.append(tasks), prepare(tasks, *given, **named)
    )[1]  # fmt: skip
    trainer.learner.unused_in = lambda task: (seen.append(task), unused_in(task))[1]  # type: ignore[method-assign, func-returns-value]
    trainer.prepare()
    assert trainer.learner.plan is not None
    assert trainer.objective.unused_parameters() == []
    assert len(seen) == 2
    for batch in seen:
        assert all(bool(part.isfinite().all()) for part in (*batch.support, *batch.query))
    before = {n: p.clone() for n, p in trainer.loop.params.items()}
    trainer.fit()  # steps of noise alone: nobody's gradient is finite
    assert all(not torch.equal(before[n], p) for n, p in trainer.loop.params.items())


def test_the_validation_split_is_read_only_where_it_is_public() -> None:
    class Closed(Users):
        def sample(self, split: Any, indices: Sequence[int], **how: Any) -> TaskBatch:
            assert split != "validation"
            return super().sample(split, indices, **how)

    closed = Closed(waves().tasks)
    quiet = private(tasks=closed)
    assert quiet.fit().best_step == 6
    assert set(quiet.reports(tasks=4)) == {"transductive", "inductive"}
    shown = private(validation="public", validation_tasks=5)
    assert shown.fit().best_name == "validation/loss_after"
    with pytest.raises(AssertionError):
        private(tasks=closed, validation="public").fit()


def test_conformal_sets_need_a_public_validation() -> None:
    hidden, shown = (in_groups(validation=v) for v in ("none", "public"))
    with pytest.raises(SettingError, match="conformal='sets': trainer.validation=public is needed"):
        hidden.test(5, conformal=ConformalSets())
    shown.test(5, conformal=ConformalSets())


def test_seeded_runs_repeat_themselves_and_have_no_epsilon() -> None:
    runs = [private(**SEEDED) for _ in range(2)]
    for run in runs:
        run.fit()
    assert_same(dict(runs[0].loop.params), dict(runs[1].loop.params))
    assert runs[0].results()["privacy"]["epsilon"] is None
    assert "none is claimed" in runs[0].remarks()[0]


def test_secure_runs_do_not_repeat_themselves() -> None:
    runs = [private(steps=2) for _ in range(2)]
    for run in runs:
        run.fit()
    assert not torch.equal(*(run.loop.params["1.weight"] for run in runs))


# --- what it has cost --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "accountant"), [("poisson", "pld"), ("fixed_size", "rdp"), ("shuffled", "pld")]
)
def test_the_account_is_that_of_its_steps(sampling: Any, accountant: Any) -> None:
    trainer = private(sampling=sampling, accountant=accountant)
    trainer.fit()
    mechanism = SampledGaussian(sampling, 40, 5, 1.0)
    counted = mechanism.counted(0, 6)
    wanted = privacy_spent([(mechanism, counted)], 1e-3, accountant)
    summary = trainer.results()["privacy"]
    assert summary["epsilon"] == pytest.approx(wanted.epsilon, rel=1e-9)
    assert (summary["examples"], summary["batch_size"], summary["steps"]) == (40, 5, counted)
    assert summary["units"] == "users" and in_groups().results()["privacy"]["units"] == "groups"
    assert trainer.remarks() == [f"privacy: {wanted}"]


def test_the_noise_keeps_to_the_epsilon_that_was_asked_for() -> None:
    trainer = private(noise_multiplier=None, epsilon=2.0, accountant="rdp")
    trainer.fit()
    assert 1.95 < trainer.account.spent().epsilon <= 2.0


def test_a_step_taken_anew_is_paid_for_anew(tmp_path: Path) -> None:
    trainer = private(folder=tmp_path, checkpoint_every=2)
    trainer.fit()
    before = trainer.account.spent().epsilon
    early = private(folder=tmp_path)
    early.resume(tmp_path / "checkpoints" / "last.pt")
    assert early.results()["privacy"]["steps"] == 6
    early.loop.step = 3  # as from an earlier checkpoint
    early.fit()
    assert early.results()["privacy"]["steps"] == 9
    assert early.account.spent().epsilon > before


def test_another_number_of_users_does_not_lower_what_was_spent(tmp_path: Path) -> None:
    private(folder=tmp_path).fit()
    more = private(folder=tmp_path, users=4000, steps=8, delta=1e-4)
    more.resume(tmp_path / "checkpoints" / "last.pt")
    before = more.account.spent().epsilon
    more.fit()
    assert more.account.spent().epsilon >= before
    assert more.results()["privacy"]["steps"] == 8
    assert [row["examples"] for row in more.results()["privacy"]["mechanisms"]] == [40, 4000]


KILLED = """
import sys
from tests.trainers.meta.test_private_meta import private
private(folder=sys.argv[1], steps=10_000, checkpoint_every=1, log_every=10_000).fit()
"""


def test_a_kill_loses_no_step(tmp_path: Path) -> None:
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3], env=place)
    while process.poll() is None and _steps(tmp_path) < 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trainer = private(folder=tmp_path, steps=10_000)
    trainer.resume(tmp_path / "checkpoints" / "last.pt")
    known = trainer.results()["privacy"]["steps"]
    assert known >= max(trainer.step, 5)
    trainer.objective.batch(trainer.step)
    assert trainer.results()["privacy"]["steps"] == known + 1 > trainer.step


def _steps(folder: Path) -> int:
    path = folder / "privacy.jsonl"
    return sum(count for _, count in PrivacyLedger(path).composed()) if path.exists() else 0


# --- what is refused ---------------------------------------------------------------------------


class OwnGradient(ProtoNet):
    """A gradient that is not the mean of those of its tasks."""

    def gradient(self, params: Any, tasks: TaskBatch, *, step: int = 0) -> Any:
        found = super().gradient(params, tasks, step=step)
        return found._replace(grads=tree_map(torch.sign, found.grads))


class Half(ProtoNet):
    def task_gradients(self, params: Any, tasks: TaskBatch, *, step: int = 0) -> Any:
        found = super().task_gradients(params, tasks, step=step)
        return dict(list(found.items())[:1])


def normed(tasks: Any = None) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("maml", {"epsilon": 1.0}, "epsilon=1.0: null is needed beside noise_multiplier=1.0"),
        ("maml", {"noise_multiplier": None}, "epsilon=None: a number above 0 is needed, or n"),
        ("maml", {"max_norm": math.inf}, "max_norm=inf: a finite number above 0"),
        ("maml", {"max_norm": 0.0}, "max_norm=0.0: "),
        ("maml", {"delta": 0.1}, r"delta=0.1: a number above 0 and below 1/N = 0.025 is needed"),
        ("maml", {"meta_batch": 41}, "meta_batch=41: a whole number of at most 40"),
        ("maml", {"meta_batch": 0}, "meta_batch=0: a whole number"),
        ("maml", {"users": None}, "users=None: a whole number is needed"),
        ("maml", {"validation_tasks": 5}, "validation_tasks=5: validation=public is needed for it"),
        ("maml", {"select_by": "inductive"}, "select_by='inductive': validation=public is needed"),
        ("maml", {"patience": 3}, "patience=3: validation=public is needed for it"),
        ("maml", {"validation": "public", "validation_tasks": 0}, "validation_tasks=0: "),
        ("maml", {"accumulate": 2}, "accumulate=2: 1 is needed: more of the data"),
        ("maml", {"precision": "bfloat16"}, "precision='bfloat16': float32 is needed"),
        ("maml", {"diagnostics": ("gradient_norms",)}, r"diagnostics=\('gradient_norms',\): \[\]"),
        ("maml", {"clipping": "hard"}, "clipping='hard'"),
        ("maml", {"clip_groups": {"x": "nothing*"}}, "groups.x='nothing"),
        ("maml", {"seed": -1}, "seed=-1"),
        ("maml", {"tasks": SinusoidTasks(), "users": None,
                  "model": MLP((1,), 1)}, "users=None: a whole number"),
        ("protonet", {"tasks": FewShotTasks(patterns(), way=3), "users": None},
         "task.within_group=False: true is needed: tasks of any classes share them"),
        ("protonet", {"tasks": FewShotTasks(patterns(), way=3)}, "task.within_group=False: true"),
        ("baseline_pp", {}, "learner='BaselinePlusPlus': one that is trained on tasks is needed"),
        ("rfs", {}, "learner='RFS': one that is trained on tasks is needed"),
        ("protonet", {"learner": partial(ProtoNet, norm="running"), "model": normed()},
         r"model='2.running_mean': one without running statistics is needed"),
        ("mamlpp", {"learner": partial(MAMLPlusPlus, statistics_per_step=True),
                    "model": normed()}, r"one without running statistics is needed"),
        ("protonet", {"learner": OwnGradient},
         "OwnGradient.task_gradients='Learner.task_gradients': a method beside its own gradient"),
        ("maml", {"model": Ensemble.from_factory(
            lambda seed: MLP((1,), 1, seed=seed).double(), range(2))},
         "model='Ensemble': one network is needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_private_is_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        private(name, **settings)


def test_gradients_of_tasks_that_leave_parameters_out_are_refused() -> None:
    trainer = private("protonet", learner=Half)
    with pytest.raises(SettingError, match=r"Half\.task_gradients=\['.*'\]: a mapping with"):
        trainer.fit()


def test_a_public_validation_needs_a_split() -> None:
    tasks = waves()
    tasks.outputs_by_split = {"train": 1, "test": 1}  # type: ignore[attr-defined]
    with pytest.raises(SettingError, match="validation='public': none is needed: the tasks have"):
        private(tasks=tasks, validation="public")
    private(tasks=tasks).fit()


def test_every_learner_is_accepted_or_refused_here() -> None:
    makers = {name: known.make for name, known in LEARNERS.items()}
    kinds: Any = {name: getattr(make, "func", make) for name, make in makers.items()}
    assert {name for name, kind in kinds.items() if kind.draws == "samples"} == SAMPLES
