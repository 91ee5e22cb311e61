"""What every way to an ensemble promises: one interface, the same run again and after a save."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.evaluation import EnsembleStatistics
from metalearn.models import Ensemble
from metalearn.trainers import EnsembleTrainer
from tests.support.builders import assert_same, last, signal_in_step, state_of
from tests.support.devices import DEVICE
from tests.support.small_data import KINDS, MEMBERS, blobs, network
from tests.support.small_data import trainer as small_trainer

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
of_one = pytest.mark.parametrize("kind", list(KINDS.values())[1:], ids=list(KINDS)[1:])

Kind = type[EnsembleTrainer]
trainer = partial(small_trainer, device=DEVICE)


@kinds
def test_members_predict_side_by_side(kind: Kind) -> None:
    data = blobs()
    made = trainer(kind, data=data)
    made.fit()
    made.load_best()
    x, y = data.part("test", device=DEVICE)
    model = made.predictive()
    logits = made.predict(x)
    assert len(model) == MEMBERS and logits.shape == (MEMBERS, 24, 3)
    assert not logits.requires_grad
    for engine in ("batched", "vmap", "loop"):
        torch.testing.assert_close(model.eval()(x, engine=engine), logits)
    statistics = EnsembleStatistics(MEMBERS, 3)
    statistics.update(logits, y)
    report = statistics.compute()
    assert float(report.by_size.accuracy[-1]) > 0.7
    assert torch.equal(made.test().report.by_size.nll, report.by_size.nll)
    assert len(made.member_settings()) == MEMBERS


@kinds
def test_members_differ(kind: Kind) -> None:
    made = trainer(kind)
    made.fit()
    logits = made.predict(blobs().part("test", device=DEVICE)[0])
    for i in range(MEMBERS):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 1e-3


@kinds
def test_a_second_data_set_is_scored(kind: Kind) -> None:
    made = trainer(kind, ood=blobs(1, shift=20.0))
    made.fit()
    found = made.test().ood
    assert set(found) == {"max_probability", "entropy", "mutual_information"}


@kinds
def test_a_run_comes_again_and_seeds_change_it(kind: Kind) -> None:
    x, _ = blobs().part("test", device=DEVICE)
    found = []
    nets = kind.networks or MEMBERS
    for seed in (0, 0, 7):
        torch.manual_seed(len(found))  # the global state is not read
        made = trainer(kind, seeds=[seed + i for i in range(nets)])
        made.fit()
        found.append(made.predict(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@kinds
@pytest.mark.parametrize("stop", [2, 7, 10])
def test_an_interrupted_run_is_the_whole_run(kind: Kind, stop: int, tmp_path: Path) -> None:
    whole, stopped, resumed = (trainer(kind, folder=tmp_path / n) for n in ("w", "p", "p"))
    whole.fit()
    signal_in_step(stopped, stop, signal.SIGTERM)
    assert stopped.fit().reason == "interrupted"
    resumed.resume(last(tmp_path / "p"))
    resumed.fit()
    assert_same(state_of(resumed), state_of(whole))
    x, _ = blobs().part("test", device=DEVICE)
    assert torch.equal(resumed.predict(x), whole.predict(x))


@kinds
@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_has_all_that_predicts(kind: Kind, name: str, tmp_path: Path) -> None:
    made, loaded = trainer(kind, folder=tmp_path), trainer(kind)
    made.fit()
    if name == "best":
        made.load_best()
    loaded.resume(tmp_path / "checkpoints" / f"{name}.pt")
    x, _ = blobs().part("test", device=DEVICE)
    assert torch.equal(loaded.predict(x), made.predict(x))


@kinds
def test_predictions_are_finite_parameters_too(kind: Kind) -> None:
    made = trainer(kind)
    made.fit()
    values = leaves(dict(made.predictive().named_parameters()))
    assert values and all(bool(torch.isfinite(value).all()) for value in values)


@of_one
def test_bad_settings_of_one_network(kind: Kind) -> None:
    two = Ensemble.from_factory(network, range(2))
    with pytest.raises(SettingError, match="model.*2 networks.*one network"):
        trainer(kind, model=two)
    bad: Any = {"members": 0}
    with pytest.raises(SettingError, match="members"):
        kind(Ensemble.from_factory(network, [0]), blobs(), **bad)
    with pytest.raises(SettingError, match="lr.*1 values are needed"):
        trainer(kind, lr=[0.1, 0.2])
