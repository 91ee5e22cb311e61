"""Methods by name on one network and on members, and states of a walk in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.attribution import (
    METHODS,
    SELF_METHODS,
    Attributed,
    Curvature,
    ScoredNetwork,
    ScoreSettings,
    StatesOnDisk,
    WalkCheckpoint,
    attribute,
    conjugate_gradient_influence,
    exact_scores,
    kronecker_influence,
    retrain_subsets,
    retraining_settings,
    tracin_scores,
    training_run,
)
from metalearn.checkpoint import save_checkpoint
from metalearn.core import HyperProgress, fisher_kfac
from metalearn.errors import DataError, SettingError
from metalearn.models import Ensemble
from tests.attribution.test_training_run import TARGETS, members, net, one
from tests.support.oracles import generator
from tests.support.small_data import blobs


def scored(member: int = 0, **settings: Any) -> ScoredNetwork:
    run = training_run(members(model=_pair()), member=member)
    ((_, params),) = run.states([run.steps])
    return ScoredNetwork(run, params, TARGETS, ScoreSettings(projection=8, **settings))


def _pair() -> Any:
    return Ensemble.from_factory(net, range(2))


def test_every_method_scores_every_example() -> None:
    found = attribute([scored()], list(METHODS), list(SELF_METHODS))
    assert list(found.by_member) == list(METHODS) and list(found.self_scores) == list(SELF_METHODS)
    for scores in found.scores.values():
        assert scores.shape == (2, 48) and bool(scores.isfinite().all()) and bool(scores.any())
    assert not found.left_out and not found.warnings and not found.disagreement
    assert set(found.seconds) == {*METHODS, *SELF_METHODS}


def test_a_member_of_a_bootstrap_is_explained_by_what_it_was_trained_on() -> None:
    """As a run on the examples that were drawn, each as often; those that were not have none."""
    run = training_run(members(model=_pair(), bootstrap=True), member=1)
    ((_, params),) = run.states([run.steps])
    net = ScoredNetwork(run, params, TARGETS, ScoreSettings(check=False))
    drawn = torch.arange(48).repeat_interleave(run.counts)
    assert len(drawn) == 48 and bool((run.counts == 0).any()) and bool((run.counts > 1).any())
    pair = {"targets": net.pair["targets"], "examples": tuple(p[drawn] for p in net.examples)}
    curvature = Curvature("ggn", run.outputs, output_loss=run.loss.mean)
    fisher = fisher_kfac(
        net.explained, params, pair["examples"], likelihood="categorical", kind="exact",
        corrected=True,
    )  # fmt: skip
    states, rates = net.checkpoints
    how: Any = {"damping": 0.01}
    expected = {
        "influence": conjugate_gradient_influence(
            run.sample_loss, params, **pair, **how, curvature=curvature
        ).scores,
        "kronecker": kronecker_influence(run.sample_loss, params, **pair, **how, fisher=fisher),
        "tracin": tracin_scores(run.sample_loss, states, **pair, learning_rates=rates),
    }
    for name, scores in expected.items():
        wanted = torch.zeros(2, 48).index_add(1, drawn, scores)
        torch.testing.assert_close(METHODS[name](net), wanted, rtol=1e-2, atol=1e-4)
    for name in ("exact", *expected):
        assert not METHODS[name](net)[:, run.counts == 0].any()


def test_a_run_whose_examples_were_weighted_has_the_curvature_of_its_loss() -> None:
    weights = torch.rand(48, generator=generator(3)) * (torch.arange(48) % 3 > 0)
    run = training_run(one(member_weights=weights))
    ((_, params),) = run.states([run.steps])
    net = ScoredNetwork(run, params, TARGETS, ScoreSettings())
    curvature = Curvature("ggn", run.outputs, output_loss=run.loss.mean)
    expected = conjugate_gradient_influence(
        run.sample_loss, params, **net.pair, damping=0.01, curvature=curvature, weights=weights
    )
    torch.testing.assert_close(METHODS["influence"](net), expected.scores)
    fisher = fisher_kfac(
        net.explained, params, net.examples, likelihood="categorical", kind="exact",
        corrected=True, weights=weights,
    )  # fmt: skip
    torch.testing.assert_close(net.fisher.trace(), fisher.trace())
    expected_scores = kronecker_influence(
        run.sample_loss, params, **net.pair, damping=0.01, fisher=fisher
    )
    torch.testing.assert_close(METHODS["kronecker"](net), expected_scores)


def test_scores_of_members_are_their_mean() -> None:
    networks = [scored(0), scored(1)]
    found = attribute(networks, ["cosine", "exact"], ["el2n"])
    for name in ("cosine", "exact"):
        alone = [attribute([n], [name]).scores[name] for n in networks]
        torch.testing.assert_close(found.scores[name], torch.stack(alone).mean(0))
        a, b = (row - row.mean(-1, keepdim=True) for row in alone)
        expected = 1 - float(F.cosine_similarity(a, b).mean())
        assert found.disagreement[name] == pytest.approx(expected, abs=1e-5)


def test_a_member_agrees_with_itself() -> None:
    found = attribute([scored(0), scored(0)], ["cosine"])
    assert found.disagreement["cosine"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_disagreement_does_not_depend_on_how_large_scores_are(size: float) -> None:
    scores = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    expected = 1 - float(
        torch.stack([row.T.corrcoef()[0, 1] for row in scores.permute(1, 2, 0)]).mean()
    )
    found = Attributed(by_member={"any": size * scores}).disagreement["any"]
    assert found == pytest.approx(expected, abs=1e-5)


def test_equations_that_were_not_solved_are_told_of() -> None:
    network = scored(damping=1e-9)
    converged = network.influence.converged
    assert not bool(converged.all())
    (warning,) = attribute([network], ["influence", "cosine"]).warnings
    lost = int((~converged).sum())
    assert warning.startswith(f"influence: the equations of {lost} of 2 targets were not solved")
    assert not attribute([network], ["cosine"]).warnings


def test_checkpoints_of_tracin_have_the_rates_of_their_steps() -> None:
    network = scored(checkpoints=3)
    states, rates = network.checkpoints
    assert len(states) == 3 and sum(rates) == pytest.approx(float(network.run.rates.sum()))
    assert_same(states[-1], network.params)


def assert_same(one: Any, other: Any) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(SettingError, match="methods='exakt': did you mean exact|methods='exakt'"):
        attribute([scored()], ["exakt"])
    with pytest.raises(SettingError, match="networks=\\[\\]: at least one network"):
        attribute([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": 0.0}, "damping=0.0: a finite number above 0"),
        ({"projection": 0}, "projection=0: a whole number of at least 1"),
        ({"checkpoints": 0}, "checkpoints=0: a whole number of at least 1"),
        ({"check": 1}, "check=1: true or false"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ScoreSettings(**settings)


@pytest.mark.parametrize("make", [one, members])
def test_a_subset_with_every_example_is_the_run_itself(make: Any) -> None:
    settings: dict[str, Any] = {"clip": 0.5, "warmup": 2, "weight_decay": 0.01}
    if make is one:
        settings.pop("weight_decay")
    plain = net(seed=4).eval()
    for layer in plain.modules():
        if hasattr(layer, "p"):
            layer.p.fill_(0.0)  # masks of dropout are keyed otherwise in an ensemble
    settings["model"] = plain if make is one else Ensemble.from_modules([plain])
    run = training_run(make(**settings))
    how = retraining_settings(make(**settings))
    found = retrain_subsets(how.pop("network"), how.pop("data"), torch.ones(2, 48), TARGETS, **how)
    ((_, params),) = run.states([run.steps])
    expected = run.target_losses(params, None, TARGETS)
    torch.testing.assert_close(found.losses, expected.expand(2, 2), rtol=1e-4, atol=1e-5)


def test_a_run_that_was_weighted_is_not_trained_again() -> None:
    with pytest.raises(SettingError, match="member_weights='weights': a run without member_weig"):
        retraining_settings(one(member_weights=torch.rand(48)))
    with pytest.raises(SettingError, match="trainer='object': an EnsembleTrainer or a PerSample"):
        retraining_settings(object())  # type: ignore[arg-type]


def test_states_stand_in_files(tmp_path: Path) -> None:
    run, place = training_run(one()), StatesOnDisk(tmp_path / "states")
    most = [0]

    def told(progress: HyperProgress) -> None:
        most[0] = max(most[0], len(list((tmp_path / "states").iterdir())))

    found = exact_scores(run, TARGETS, kept=place, progress=told, check=False)
    assert torch.equal(found.scores, exact_scores(run, TARGETS, check=False).scores)
    assert most[0] == 4 and not len(place)  # ⌈√(2·6)⌉
    place[3] = ([torch.ones(2)], (1, [torch.zeros(2)]))
    assert list(place) == [3] and place[3][1][0] == 1
    del place[3]
    for broken in (lambda: place[3], lambda: place.__delitem__(3)):
        with pytest.raises(KeyError):
            broken()


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    place = StatesOnDisk(tmp_path)
    place[3] = ([torch.ones(2)], ())
    (tmp_path / "state-3.pt").write_bytes(b"no state")
    with pytest.raises(DataError, match="state-3.pt"):
        place[3]
    save_checkpoint(tmp_path / "state-3.pt", {"module": {}})  # of something else
    with pytest.raises(DataError, match="state-3.pt: this file holds no state of a run"):
        place[3]


def test_a_walk_is_saved_now_and_then(tmp_path: Path) -> None:
    run = training_run(one())
    never, always = (WalkCheckpoint(tmp_path / f"{s}.pt", seconds=s) for s in (1e9, 0.0))
    assert always.snapshot() is None
    exact_scores(run, TARGETS, progress=never, check=False)
    whole = exact_scores(run, TARGETS, progress=always, check=False)
    assert never.snapshot() is None
    found = exact_scores(run, TARGETS, resume=always.snapshot(), check=False)
    assert torch.equal(found.scores, whole.scores)
    with pytest.raises(SettingError, match="seconds=-1"):
        WalkCheckpoint(tmp_path, seconds=-1)


def test_features_are_what_the_last_layer_is_given() -> None:
    network = scored()
    x = blobs().part("test")[0]
    hidden: Tensor = network.features(network.params, x)
    last = [v for n, v in network.params.items() if v.dim() == 2][-1]
    bias = [v for n, v in network.params.items() if v.dim() == 1][-1]
    expected = network.run.outputs(network.params, x)
    torch.testing.assert_close(hidden @ last.T + bias, expected)
