"""``scripts/diagnose.py`` on runs of every trainer, and ``trainer=per_sample`` on the way."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metalearn.cli import load_module
from metalearn.trainers.diagnostics import offline_diagnostics
from tests.docs.pages import CONF
from tests.support.commands import TINY, Outcome, call

Run = Callable[..., Outcome]

SHORT = [
    "model.hidden=[8]",
    "trainer.steps=4",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.progress=false",
]
KINDS = {
    "per_sample": ["trainer=per_sample", *SHORT],
    "ensemble": ["trainer=ensemble", "trainer.members=2", *SHORT],
    "meta": TINY,
}
FAST = ["iterations=4", "eigenvalues=2", "products=6", "device=cpu"]
FEW = {"meta": ["tasks=3", "at=[initial,adapted]"]}
SAMPLES = ["samples=12"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


@pytest.fixture
def folder(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Path:
    outcome = run("train", *KINDS[request.param], f"hydra.run.dir={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.err
    return tmp_path / "out"


@pytest.mark.parametrize(("folder", "kind"), [(k, k) for k in KINDS], indirect=["folder"])
def test_everything_of_every_kind_of_run(run: Run, folder: Path, kind: str) -> None:
    outcome = run("diagnose", f"run={folder}", *FEW.get(kind, SAMPLES), *FAST)
    assert outcome.code == 0, outcome.err
    report = json.loads((folder / "diagnosis-validation.json").read_text())
    assert "torch" in report["provenance"]["versions"]
    places = set(report["findings"])
    assert places in ({"network"}, {"members"}, {"initial", "adapted", "meta_gradients"})
    for place in places - {"meta_gradients"}:
        found = report["findings"][place]
        wanted = {"gradient_norms", "noise_scale", "fisher", "eigenvalues", "density", "traces"}
        assert wanted <= set(found)
        assert ("cosines" in found) == (place != "network")
        models = {"network": 1, "members": 2}.get(place, 3)
        assert len(found["eigenvalues"]["hessian_1"]) == models
        for first, second in zip(found["eigenvalues"]["ggn_1"], found["eigenvalues"]["ggn_2"]):
            assert first >= second
        exact = found["fisher"]["trace_exact"]
        by_layer = sum(found["fisher"]["by_layer"]["diagonal_exact"].values())
        assert by_layer == pytest.approx(sum(exact) / models, rel=1e-3)
        text = re.sub(" +", " ", outcome.out)
        assert all(f"| {place} | {quantity}" in text for quantity in wanted - {"density"})
    assert list(folder.glob("events*"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(key.startswith("diagnosis_validation/") for key in lines[-1])


@pytest.mark.parametrize("folder", ["per_sample"], indirect=True)
def test_numbers_are_those_of_the_checkpoint(run: Run, folder: Path) -> None:
    """The Hessian's largest eigenvalue against the dense matrix, on the same samples."""
    settings = ["what=[eigenvalues]", "split=test", "checkpoint=last", "samples=20", "device=cpu"]
    tiny = ["eigenvalues=1", "iterations=40"]
    assert run("diagnose", f"run={folder}", *settings, *tiny).code == 0
    report = json.loads((folder / "diagnosis-test-last.json").read_text())
    module = load_module(folder, checkpoint="last")
    from metalearn.data import digits_data

    x, y = digits_data(seed=0).part("test")
    values = {n: p.detach() for n, p in module.named_parameters()}
    names = list(values)

    def loss(head: torch.Tensor) -> torch.Tensor:
        flat = torch.split(head, [values[n].numel() for n in names])
        params = {n: f.view(values[n].shape) for n, f in zip(names, flat)}
        out = torch.func.functional_call(module, params, (x[:20],))
        return torch.nn.functional.cross_entropy(out, y[:20])

    point = torch.cat([values[n].flatten() for n in names])
    dense = torch.func.hessian(loss)(point)
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert report["findings"]["network"]["eigenvalues"]["hessian_1"][0] == pytest.approx(
        top, rel=1e-3
    )


def test_a_model_that_mixes_samples_says_what_is_left_out(run: Run, tmp_path: Path) -> None:
    settings = [s for s in TINY if not s.startswith(("task=", "model", "maml"))]
    few = ["task=glyphs", "model=conv4", "model.filters=2", "task.way=2", "device=cpu"]
    folder = tmp_path / "out"
    outcome = run("train", *settings, *few, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    outcome = run("diagnose", f"run={folder}", "what=[noise_scale,cosines]", "tasks=3")
    assert outcome.code == 0, outcome.err
    assert "left out: initial/noise_scale: BatchNorm2d blocks.0.1 normalises with" in outcome.out
    report = json.loads((folder / "diagnosis-validation.json").read_text())
    assert set(report["findings"]["meta_gradients"]) == {"noise_scale", "cosines"}


def test_the_help_says_what_is_computed_where_nothing_is_asked_for() -> None:
    config = (CONF / "diagnose.yaml").read_text()
    (asked,) = re.findall(r"^what: \[(.*)\]$", config, flags=re.MULTILINE)
    said = re.findall(r"^      (?:what: |      )(\w+)  ", config, flags=re.MULTILINE)
    assert said == asked.split(", ")
    assert set(said) <= set(offline_diagnostics())


@pytest.mark.parametrize("folder", ["per_sample"], indirect=True)
def test_bad_settings_end_in_one_sentence(run: Run, folder: Path) -> None:
    for argument, sentence in (
        (
            "what=[hessian]",
            "what='hessian': known are gradient_norms, gradient_variance, noise_scale",
        ),
        ("what=fisher", "what='fisher': a list of gradient_norms"),
        ("at=[start]", "at='start': known are initial, adapted"),
        ("split=all", "split='all': one of train, validation, test is needed"),
        ("checkpoint=first", "checkpoint='first': best or last is needed"),
        ("samples=0", "samples=0: a whole number of at least 1 is needed"),
        ("iterations=2", "iterations=2: a whole number of at least 5 is needed"),
        ("run=nowhere", "run='nowhere': the folder of a run"),
        ("tasks=3", "tasks=3: the run has no tasks, so nothing is needed here"),
        ("at=[adapted]", "at=['adapted']: the run has no tasks"),
        ("sample=3", "sample: there is no such setting"),
    ):
        outcome = run("diagnose", f"run={folder}", argument)
        assert outcome.code == 2, outcome.out + outcome.err
        assert sentence in outcome.err
        assert outcome.err.count("\n") == 1, outcome.err


def test_a_learner_without_an_inner_loop_says_what_is_left_out(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "protonet"
    trained = run(
        "train", "learner=protonet", "learner.features=4", "model.filters=2", "test_tasks=0",
        "trainer.steps=1", "trainer.meta_batch=2", "trainer.validation_tasks=2",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    outcome = run("diagnose", f"run={folder}", "what=[gradient_norms,fisher,traces]", "tasks=2")
    assert outcome.code == 0, outcome.err
    assert "meta_gradients | gradient_norms: median" in outcome.out
    assert "fisher: this run has no models that predict from their parameters alone" in outcome.out
    assert "traces: this run has no models with a loss of their parameters alone" in outcome.out
    for argument in ("at=[adapted]", "at=[initial]", "inner_steps=2"):
        outcome = run("diagnose", f"run={folder}", argument)
        assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
        assert "the run's learner has no inner loop, so nothing is needed here" in outcome.err


@pytest.mark.parametrize("folder", ["per_sample"], indirect=True)
def test_a_run_by_samples_is_evaluated_and_taken_away(run: Run, folder: Path) -> None:
    outcome = run("evaluate", f"run={folder}")
    assert outcome.code == 0, outcome.err
    assert "accuracy" in outcome.out
    assert load_module(folder)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    outcome = run("evaluate", f"run={folder}", "ood=digits")
    assert outcome.code == 2
    assert "only a run of an ensemble takes one" in outcome.err


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("trainer.diagnostics=[nose]", "trainer.diagnostics='nose': known are gradient_norms"),
        ("trainer.diagnostics_every=0", "trainer.diagnostics_every=0: a whole number of at"),
        ("trainer.max_norm=0", "trainer.max_norm=0: a number above 0 is needed, or infinity"),
        ("trainer.diagnostics=[gradient_cosines]", "'gradient_cosines': it has nothing to see"),
    ],
)
def test_bad_settings_of_training(run: Run, setting: str, sentence: str) -> None:
    outcome = run("train", *KINDS["per_sample"], setting)
    assert outcome.code == 2
    assert sentence in outcome.err
