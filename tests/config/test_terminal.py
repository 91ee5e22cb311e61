"""What a person reads at the terminal: the start, the end of a sweep, settings in ``--help``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from metalearn.cli.member_sweep import put_one_seed, sweep_of, sweep_text
from metalearn.errors import SettingError
from metalearn.tracking.band_figures import BandFigures
from tests.support.commands import Outcome

Run = Callable[..., Outcome]
SMALL = ["trainer=ensemble", "trainer.steps=2", "trainer.eval_every=2", "model.hidden=[4]"]


def _swept(run: Run, folder: Path, *more: str) -> Any:
    rates = "trainer.lr={low:0.0001,high:0.01}"
    words = [*SMALL, rates, "trainer.members=3", f"hydra.run.dir={folder}", *more]
    outcome = run("train", *words)
    assert outcome.code == 0, outcome.err
    return outcome.out


def test_the_start_says_what_is_trained_on_what_and_how_it_is_watched(
    run: Run, tmp_path: Path
) -> None:
    out = _swept(run, tmp_path / "out", "trainer.patience=5")
    block = dict(re.findall(r"^([a-z ]+): +(.+)$", out, re.MULTILINE)[:7])
    assert block["run folder"] == str(tmp_path / "out")
    assert block["data"] == "digits, 10 classes; samples: 1,078 training, 269 validation, 450 test"
    assert block["model"] == "3 × mlp, 310 parameters each"  # 64·4 + 4 + 4·10 + 10
    assert block["device"].startswith("cpu, ")
    assert block["steps"] == "2 of 64 samples"
    assert "every 2 steps, smallest kept; stops after 5 without a better" in block["watched"]
    assert block["dashboard"] == f"tensorboard --logdir {tmp_path}"
    first = out.splitlines()[:7]
    assert len({line.index(line.split(":", 1)[1].strip()) for line in first}) == 1  # aligned


def test_members_of_a_sweep_have_one_seed_unless_others_are_asked_for(
    run: Run, tmp_path: Path
) -> None:
    _swept(run, tmp_path / "one", "seed=4")
    _swept(run, tmp_path / "own", "trainer.seeds=[7,8,9]")
    seeds = {
        name: [m["seed"] for m in sorted(_sweep(tmp_path / name), key=lambda m: m["member"])]
        for name in ("one", "own")
    }
    assert seeds == {"one": [4, 4, 4], "own": [7, 8, 9]}
    assert list(OmegaConf.load(tmp_path / "one" / "config.yaml").trainer.seeds) == [4, 4, 4]


def _sweep(folder: Path) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["sweep"][
        "members"
    ]
    return members


def _trainer(values: list[float], rates: list[float], *, larger: bool = False) -> Any:
    rows = [{"seed": 3, "lr": rate} for rate in rates]
    return SimpleNamespace(
        member_settings=lambda: rows,
        best_values=torch.tensor(values),
        best_steps=torch.arange(len(values)),
        larger_is_better=larger,
        monitor="validation/member_accuracy" if larger else "validation/member_loss",
    )


def _report(accuracies: list[float]) -> Any:
    return SimpleNamespace(member_headlines=lambda: [{"test/accuracy": a} for a in accuracies])


@pytest.mark.parametrize(("larger", "order"), [(False, [2, 0, 3, 1]), (True, [3, 0, 2, 1])])
def test_the_winner_is_chosen_by_validation_and_never_by_test(
    larger: bool, order: list[int]
) -> None:
    trainer = _trainer([0.5, float("nan"), 0.25, 0.75], [1.0, 2.0, 3.0, 4.0], larger=larger)
    for accuracies in ([0.1, 0.2, 0.3, 0.4], [0.4, 0.9, 0.2, 0.1]):
        sweep = sweep_of(trainer, {"test": _report(accuracies)})
        assert sweep is not None and sweep["winner"] == order[0]
        assert [row["member"] for row in sweep["members"]] == order
        assert [row["test/accuracy"] for row in sweep["members"]] == [accuracies[m] for m in order]
        shown = f"test accuracy {100 * accuracies[order[0]]:.1f} %"
        assert re.search(
            rf"^winner by validation: member {order[0]}, .*{shown}", sweep_text(sweep), re.M
        )


def test_a_sweep_without_a_finite_score_has_no_winner() -> None:
    sweep = sweep_of(_trainer([float("nan"), float("nan")], [1.0, 2.0]), {})
    assert sweep is not None and sweep["winner"] is None
    assert "there is no winner" in sweep_text(sweep)


def test_a_winner_at_an_end_of_what_was_tried_says_so() -> None:
    at_end = sweep_of(_trainer([0.5, 0.4, 0.3], [1.0, 2.0, 3.0]), {})
    inside = sweep_of(_trainer([0.5, 0.2, 0.3], [1.0, 2.0, 3.0]), {})
    assert at_end is not None and "lr is the largest that was tried" in sweep_text(at_end)
    assert inside is not None and "that was tried" not in sweep_text(inside)


def test_members_that_differ_in_their_seeds_alone_are_no_sweep() -> None:
    trainer = _trainer([0.5, 0.4], [1.0, 1.0])
    assert sweep_of(trainer, {}) is None


def test_help_shows_what_the_yaml_says_of_the_chosen_groups(run: Run) -> None:
    out = run("train", "trainer=ensemble", "--help").out
    line = next(line for line in out.splitlines() if line.startswith("  bootstrap:"))
    assert line.endswith("# every member on a resample of its own")
    assert "\ntrainer=ensemble\n" in out and "meta_batch" not in out
    assert "# cross_entropy, gaussian_nll, mse, focal" in out  # and what goes on underneath
    assert "# null: cross_entropy or gaussian_nll, as fits the data" in out
    settings = out[out.index("\ntask=") :]
    assert max(map(len, settings.splitlines())) <= 100
    assert "seed: ${seed}" in out  # not doubled


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [
        ({"members": 4, "lr": {"low": 0.001, "high": 0.1}}, [7, 7, 7, 7]),
        ({"members": 4, "lr": [0.01, 0.01, 0.1, 0.1]}, [7, 8, 7, 8]),
        ({"members": 3, "lr": [0.01] * 3, "weight_decay": [0.0, 1.0, 0.0]}, [7, 7, 8]),
        ({"members": 3, "lr": [0.01, 0.02, 0.01], "dropout": {"low": 0.1, "high": 0.3}}, [7] * 3),
        ({"members": 3, "lr": [0.1, 0.1, 0.1]}, None),  # which differ in their seeds alone
        ({"members": 3, "lr": [0.1, 0.2]}, None),  # refused where it is read
        ({"members": 3, "lr": [0.1, 0.2, 0.3], "seeds": [4, 5, 6]}, [4, 5, 6]),
        ({"members": 3, "lr": {"low": 0.1, "high": 0.2}, "_target_": "SWAGTrainer"}, None),
    ],
    ids=str,
)
def test_members_of_a_sweep_have_one_seed_and_those_of_equal_settings_further_ones(
    settings: dict[str, Any], seeds: list[int] | None
) -> None:
    kind = settings.get("_target_", "EnsembleTrainer")
    trainer = {"seeds": None, **settings, "_target_": f"metalearn.trainers.{kind}"}
    config = OmegaConf.create({"seed": 7, "trainer": trainer})
    put_one_seed(config)
    assert config.trainer.seeds == seeds


def test_a_sweep_of_more_members_than_memory_holds_is_refused_at_once() -> None:
    rates = {"low": 0.001, "high": 0.1}
    trainer = {"_target_": "metalearn.trainers.EnsembleTrainer", "seeds": None, "lr": rates}
    config = OmegaConf.create({"seed": 0, "trainer": {**trainer, "members": 10**12}})
    with pytest.raises(SettingError, match=r"^trainer\.members="):
        put_one_seed(config)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "validation/loss": [1]}',
        '{"validation/loss": 1}',
        "[1]",
        '{"step": "x", "validation/loss": 1}',
        "{",
        '{"step": 1, "validation/loss": {}}',
    ],
)
def test_lines_of_records_that_are_damaged_cost_themselves_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    name = "validation/loss"
    values = {name: 1.0, f"{name}_low": 0.5, f"{name}_high": 2.0}
    whole = [json.dumps({"step": step, **values}) for step in (1, 2)]
    path.write_text("\n".join([whole[0], line, whole[1]]) + "\n")
    found = BandFigures({"loss": [name]}, path)
    found.take(3, values)
    ((step, _),) = found.left().values()
    assert step == 3
