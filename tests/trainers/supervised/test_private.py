"""Private training: what a step adds up, what gets out of it, and what it is said to have cost.

Axes: N samples of a batch, B expected ones.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.data import ClassificationData
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP
from metalearn.privacy import PrivacyLedger
from metalearn.trainers import PrivateTrainer
from tests.support.builders import Recorder, assert_same
from tests.support.diagnostic_cases import COMMON, blobs, clipped_sum
from tests.support.spreads import assert_normal_spread

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
SEEDED: Any = {"noise": "seeded"}


def private(data: ClassificationData | None = None, **settings: Any) -> PrivateTrainer:
    given: Any = {**COMMON, "batch_size": 8, "noise_multiplier": 1.0, "clip": None, "reserve": 1}
    given |= settings
    model = given.pop("model", None) or MLP((4,), 3, hidden=(5,), activation="tanh")
    return PrivateTrainer(model, blobs() if data is None else data, **given)


class Centred(torch.nn.Module):
    """Takes the mean over a batch away, without being a norm that torch knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def noiseless(trainer: PrivateTrainer, step: int) -> tuple[Any, dict[str, Tensor]]:
    """A batch, and the sum of its clipped gradients as the trainer takes it."""
    trainer.prepare()
    batch = trainer.objective.batch(step)
    found = trainer.objective.gradient(trainer.params, batch, step=step)
    return batch, {n: g * found.divisor for n, g in found.grads.items()}


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("method", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("sampling", ["poisson", "fixed_size", "shuffled"])
def test_a_step_is_the_sum_of_clipped_gradients(
    sampling: Any, method: Any, chunk_size: Any
) -> None:
    trainer = private(
        max_norm=0.5, chunk_size=chunk_size, method=method, sampling=sampling, **SEEDED
    )
    sizes = []
    for step in range(4):
        batch, found = noiseless(trainer, step)
        sizes.append(len(batch[1]))
        for name, wanted in clipped_sum(trainer, batch, 0.5).items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)
    assert sizes == [8] * 4 or (sampling == "poisson" and len(set(sizes)) > 1)


def test_noise_is_that_of_the_multiplier_and_divided_by_the_expected_size() -> None:
    trainer = private(max_norm=0.5, noise_multiplier=4.0)
    trainer.prepare()
    noise = []
    for step in range(60):
        batch = trainer.objective.batch(step)
        quiet = trainer.objective.gradient(trainer.params, batch, step=step)
        assert quiet.noise is not None and quiet.normalizer == 8
        means = {n: g * quiet.divisor / 8 for n, g in quiet.grads.items()}
        loud = quiet.noise(means, 8.0)
        noise.append(torch.cat([(loud[n] - means[n]).flatten() for n in means]))
    rows = torch.stack(noise).double()
    assert_normal_spread(rows, 4.0 * 0.5 / 8)
    close = (rows[:-1] * rows[1:]).mean() / rows.var()  # noise of one step and of the next
    assert abs(float(close)) < 5 / math.sqrt(rows.numel())


def test_an_empty_batch_takes_a_step_of_noise_alone() -> None:
    trainer = private(batch_size=1, steps=40, noise_multiplier=0.5, **SEEDED)
    empty = [step for step in range(40) if not len(trainer.objective.batch(step)[1])]
    assert empty
    for step in empty[:2]:
        _, found = noiseless(trainer, step)
        assert not any(bool(g.any()) for g in found.values())
    before = {n: p.clone() for n, p in trainer.params.items()}
    trainer = private(batch_size=1, steps=empty[0] + 1, noise_multiplier=0.5, **SEEDED)
    trainer.fit()
    assert all(not torch.equal(trainer.params[n], before[n]) for n in before)


def test_a_sample_without_a_finite_gradient_counts_as_none() -> None:
    data = blobs()
    inputs = data.inputs.clone()
    inputs[data.splits["train"][:5]] = torch.inf
    broken = ClassificationData(inputs, data.targets, data.class_names, data.splits)
    trainer = private(broken, batch_size=30, sampling="fixed_size", **SEEDED)
    batch, found = noiseless(trainer, 0)
    kept = batch[0].isfinite().all(1)
    assert int(kept.sum()) == 25
    for name, wanted in clipped_sum(trainer, [part[kept] for part in batch], 1.0).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)


def test_seeded_runs_repeat_themselves_and_have_no_epsilon() -> None:
    runs = [private(**SEEDED) for _ in range(2)]
    for run in runs:
        run.fit()
    assert_same(dict(runs[0].params), dict(runs[1].params))
    assert runs[0].results()["privacy"]["epsilon"] is None
    with pytest.raises(SettingError, match="secure=False"):
        runs[0].account.spent()


def test_secure_runs_do_not_repeat_themselves() -> None:
    runs = [private(steps=2) for _ in range(2)]
    for run in runs:
        run.fit()
    assert not torch.equal(*(run.params["1.weight"] for run in runs))


def test_what_it_cost_is_what_the_accountant_says_of_its_steps(tmp_path: Path) -> None:
    import dp_accounting

    trainer = private(folder=tmp_path)
    trainer.fit()
    accountant = dp_accounting.pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    event = dp_accounting.PoissonSampledDpEvent(8 / 30, dp_accounting.GaussianDpEvent(1.0))
    accountant.compose(event, 6)
    wanted = accountant.get_epsilon(1e-5)
    summary = trainer.results()["privacy"]
    assert summary["epsilon"] == pytest.approx(wanted, rel=1e-6)
    assert summary["steps"] == 6 and summary["neighbours"] == "add_or_remove_one"
    assert summary["noise"] == "secure" and summary["delta"] == 1e-5


def test_the_noise_keeps_to_the_epsilon_that_was_asked_for() -> None:
    trainer = private(noise_multiplier=None, epsilon=2.0)
    trainer.fit()
    assert 1.95 < trainer.account.spent().epsilon <= 2.0


def test_nothing_of_private_batches_is_recorded() -> None:
    seen = Recorder()
    trainer = private(tracker=seen, log_every=1)
    trainer.fit()
    names = {name for _, numbers in seen.numbers for name in numbers}
    assert {"train/loss", "train/clipped_fraction", "speed/memory_gb"}.isdisjoint(names)
    assert {"privacy/epsilon", "train/gradient_norm", "validation/step"} <= names
    losses = [trainer.objective.gradient(trainer.params, b, step=0).losses
              for b in [trainer.objective.batch(0)]]  # fmt: skip
    assert not any(bool(loss.any()) for loss in losses)
    epsilons = [numbers["privacy/epsilon"] for _, numbers in seen.numbers
                if "privacy/epsilon" in numbers]  # fmt: skip
    assert epsilons == sorted(epsilons) and len(set(epsilons)) == 6


def test_the_validation_split_is_read_only_where_it_is_public() -> None:
    data = blobs()
    inputs = data.inputs.clone()
    inputs[data.splits["validation"]] = torch.nan
    hidden = ClassificationData(inputs, data.targets, data.class_names, data.splits)
    quiet = private(hidden)
    assert quiet.fit().best_step == 6
    assert quiet.test().temperature is None  # type: ignore[union-attr]
    assert "temperature" not in quiet.test().as_json()
    assert not any("temperature" in line for line in quiet.test().lines("test"))
    seen = Recorder()
    shown = private(validation="public", tracker=seen)
    assert shown.fit().best_name == "validation/nll"
    names = {name for _, numbers in seen.numbers for name in numbers}
    assert {"validation/clipping_cosine", "validation/clipping_norm_ratio"} <= names


def test_nothing_that_is_written_follows_from_the_samples_alone(tmp_path: Path) -> None:
    trainer = private(folder=tmp_path)
    trainer.fit()
    assert trainer.data_checksum is None
    assert [run.data for run in PrivacyLedger(tmp_path / "privacy.jsonl").runs()] == [""]


def test_what_is_done_to_a_picture_cannot_be_foretold() -> None:
    """Draws go by places in a batch, which one sample more moves for all after it."""
    places = torch.arange(30)
    parts: Any = {"train": places[:20], "validation": places[20:25], "test": places[25:]}
    pictures = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = ClassificationData(pictures, places % 3, ("a", "b", "c"), parts)

    def batch(noise: Any) -> Tensor:
        model = MLP((1, 8, 8), 3, hidden=(2,))
        given: Any = {"model": model, "max_shift": 3, "noise": noise}
        given |= {"batch_size": 20, "sampling": "fixed_size", "accountant": "rdp"}
        x = private(data, **given).objective.batch(0)[0].flatten(1)
        return x[x.sum(1).argsort()]

    assert torch.equal(batch("seeded"), batch("seeded"))
    assert not torch.allclose(batch("secure"), batch("secure"))


@pytest.mark.parametrize("sampling", ["poisson", "fixed_size", "shuffled"])
@pytest.mark.parametrize("noise", ["secure", "seeded"])
def test_steps_are_on_the_disk_before_their_batch_is_drawn(
    sampling: Any, noise: Any, tmp_path: Path
) -> None:
    trainer: Any = private(folder=tmp_path, sampling=sampling, noise=noise, accountant="rdp")
    batches, seen = trainer.objective.batches, []
    right = batches.sampling

    class Watched:
        def draw(self, step: int) -> Tensor:
            seen.append(
                (step, sum(n for _, n in PrivacyLedger(tmp_path / "privacy.jsonl").composed()))
            )
            drawn: Tensor = right.draw(step)
            return drawn

    batches.sampling = Watched()
    trainer.fit()
    assert [step for step, _ in seen] == [*range(6)]
    assert all(written > step for step, written in seen)
    assert getattr(right, "seed", None) == (0 if noise == "seeded" else None) or (
        noise == "secure" and sampling == "shuffled" and right.seed > 2**32
    )


def test_speeds_do_not_tell_how_large_batches_were() -> None:
    trainer = private(**SEEDED)
    trainer.prepare()
    batches = [trainer.objective.batch(step) for step in range(4)]
    assert len({len(batch[1]) for batch in batches}) > 1
    for step, batch in enumerate(batches):
        assert trainer.objective.gradient(trainer.params, batch, step=step).processed == 8


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


def test_it_is_said_where_more_was_spent_than_was_asked_for(tmp_path: Path) -> None:
    asked: Any = {"noise_multiplier": None, "epsilon": 2.0, "folder": tmp_path}
    trainer = private(**asked)
    trainer.fit()
    assert len(trainer.remarks()) == 1
    again = private(**asked)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.loop.step = 3
    again.fit()
    assert again.remarks()[1].startswith("privacy: more than the ε of 2 that was asked for")


def test_other_settings_do_not_lower_what_was_spent(tmp_path: Path) -> None:
    private(folder=tmp_path, noise_multiplier=0.6).fit()
    quiet = private(folder=tmp_path, noise_multiplier=50.0, batch_size=2, steps=8)
    quiet.resume(tmp_path / "checkpoints" / "last.pt")
    before = quiet.account.spent().epsilon
    quiet.fit()
    assert quiet.account.spent().epsilon >= before > 3
    assert quiet.results()["privacy"]["steps"] == 8


def test_runs_of_one_ledger_add_up(tmp_path: Path) -> None:
    ledger = tmp_path / "shared.jsonl"
    runs = [private(ledger=ledger, seed=s, folder=tmp_path / str(s)) for s in range(2)]
    for run in runs:
        run.fit()
    assert not (tmp_path / "0" / "privacy.jsonl").exists()
    summary = runs[1].results()["privacy"]
    twelve = private(steps=12)
    twelve.fit()
    assert summary["epsilon_of_ledger"] == pytest.approx(twelve.account.spent().epsilon, rel=1e-6)
    assert summary["epsilon"] < summary["epsilon_of_ledger"]


@pytest.mark.parametrize("how", [{}, {"noise_bands": 2}, {"sampling": "shuffled"}])
def test_runs_share_the_epsilon_that_was_asked_for(how: dict[str, Any], tmp_path: Path) -> None:
    asked: Any = {"noise_multiplier": None, "epsilon": 4.0, "ledger": tmp_path / "shared.jsonl"}
    runs = [private(**asked, **how, runs=3, steps=5, seed=seed) for seed in range(4)]
    spent = []
    for run in runs:
        run.fit()
        spent.append(run.account.spent_together().epsilon)
    assert 3.9 < spent[2] <= 4.0 < spent[3]
    assert runs[0].account.spent().epsilon < 4.0
    assert runs[3].remarks()[1].endswith(f"of all 4 runs of {asked['ledger']}")
    assert "by more runs than trainer.runs says" in runs[3].remarks()[2]


def test_runs_that_do_not_compose_share_no_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "shared.jsonl"
    private(ledger=ledger).fit()
    message = "ledger=.*another file is needed: its runs are accounted for with add_or_remove_one"
    with pytest.raises(SettingError, match=message):
        private(ledger=ledger, sampling="shuffled")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses_of_samples_may_be_added_or_averaged(reduction: str) -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    own_loss, known = private(loss=own, **SEEDED), private(**SEEDED)
    own_loss.fit()
    known.fit()
    assert_same(dict(own_loss.params), dict(known.params))


KILLED = """
import sys
from tests.trainers.supervised.test_private import private
trainer = private(folder=sys.argv[1], steps=10_000, checkpoint_every=1, log_every=10_000,
                  eval_every=10_000)
if len(sys.argv) > 2:
    trainer.resume(sys.argv[2])
trainer.fit()
"""


def test_kills_at_any_moment_lose_no_step(tmp_path: Path) -> None:
    last, known = tmp_path / "checkpoints" / "last.pt", 0
    for number in range(3):
        given = [str(last)] if last.exists() else []
        place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", KILLED, str(tmp_path), *given]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3], env=place)
        wanted = known + 5 + 3 * number
        while process.poll() is None and _steps(tmp_path) < wanted:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        trainer = private(folder=tmp_path, steps=10_000)
        trainer.resume(last)
        spent = trainer.results()["privacy"]["steps"]
        assert spent >= max(trainer.step, wanted) > known
        known = spent


def _steps(folder: Path) -> int:
    path = folder / "privacy.jsonl"
    return sum(count for _, count in PrivacyLedger(path).composed()) if path.exists() else 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 1.0}, "epsilon=1.0: null is needed beside noise_multiplier=1.0"),
        ({"noise_multiplier": None}, "epsilon=None: a number above 0 is needed, or noise_mult"),
        ({"noise_multiplier": 0.0}, "noise_multiplier=0.0: "),
        ({"noise_multiplier": None, "epsilon": 0.0}, "epsilon=0.0: "),
        ({"max_norm": math.inf}, "max_norm=inf: a finite number above 0"),
        ({"delta": 0.1}, r"delta=0.1: a number above 0 and below 1/N = 0.033 is needed"),
        ({"delta": 0.0}, "delta=0.0: "),
        ({"batch_size": 31}, "batch_size=31: a whole number of at most 30"),
        ({"sampling": "epochs"}, "sampling='epochs': "),
        ({"accountant": "moments"}, "accountant='moments': "),
        ({"sampling": "fixed_size", "accountant": "pld"}, "accountant='pld': batches of"),
        ({"noise": "none"}, "noise='none': "),
        ({"reserve": 0}, "reserve=0: "),
        ({"runs": 0}, "runs=0: "),
        ({"runs": 2}, "runs=2: 1 is needed beside noise_multiplier"),
        ({"runs": 2, "noise_multiplier": None, "epsilon": 1.0}, "ledger=None: a file is needed in"),
        ({"monitor": "accuracy"}, "monitor='accuracy': validation=public or noisy is needed"),
        ({"patience": 3}, "patience=3: validation=public or noisy is needed for it"),
        ({"validation": "private"}, "validation='private': "),
        ({"accumulate": 2}, "accumulate=2: 1 is needed: more of the data"),
        ({"precision": "bfloat16"}, "precision='bfloat16': float32 is needed"),
        ({"diagnostics": ("gradient_norms",)}, r"diagnostics=\('gradient_norms',\): \[\] is need"),
        ({"clip_groups": {"a": "b*"}}, r"clip_groups.a='b\*': a pattern that matches"),
        ({"loss": lambda o, t: (o - o.mean(0)).square().sum(1)}, "loss='a function of several"),
        ({"loss": lambda o, t: torch.pdist(o).mean()}, "loss='a function of several"),
        ({"model": torch.nn.Sequential(Centred(), torch.nn.Linear(4, 3))},
         "model='Sequential': outputs are needed that depend on no other sample"),
        ({"model": torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))},
         "batch_norm=groupnorm"),
    ],
)  # fmt: skip
def test_what_cannot_be_private_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        private(**settings)


def test_a_damaged_ledger_is_told(tmp_path: Path) -> None:
    private(folder=tmp_path).fit()
    path = tmp_path / "privacy.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(DataError, match=r"privacy\.jsonl: this is no ledger, or a damaged one"):
        private(folder=tmp_path)
