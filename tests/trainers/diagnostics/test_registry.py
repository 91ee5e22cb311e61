"""One table of diagnostics: the same numbers in a training and of a finished run, for all of them.

Axes: G populations or models, N units of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import (
    Reduction,
    gradient_mean,
    gradient_norms,
    gradient_variance,
    norm_quantiles,
)
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.trainers import LoopSettings
from metalearn.trainers.diagnostics import (
    DIAGNOSTICS,
    CurvatureSettings,
    Diagnostic,
    DiagnosticResult,
    DiagnosticRunner,
    GradientDiagnostic,
    GradientUnits,
    ModelDiagnostic,
    ModelSource,
    PredictiveModels,
    UnitSource,
    check_diagnostics,
    describe_diagnostics,
    diagnose,
    offline_diagnostics,
    record_diagnosis,
    register_diagnostic,
    registry,
    training_diagnostics,
)
from metalearn.trainers.diagnostics.models import map_models
from metalearn.trainers.diagnostics.reducing import reduce_units
from tests.config.test_diagnose import KINDS
from tests.support.builders import Recorder, batch_of, source_of
from tests.support.commands import Outcome, call
from tests.support.diagnostic_cases import per_sample

BOTH = [
    (name, kind)
    for name, found in DIAGNOSTICS.items()
    if issubclass(found, GradientDiagnostic)
    for kind in found.kinds
]
OURS = {
    name: found.reduction
    for name, found in DIAGNOSTICS.items()
    if issubclass(found, GradientDiagnostic)
}


def _chunks(grads: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    count = next(iter(grads.values())).shape[1]
    for start in range(0, count, size):
        yield {name: g[:, start : start + size] for name, g in grads.items()}


def _units(kind: str, size: int = 3, blocks: int = 2) -> GradientUnits:
    """Two blocks of two populations of seven units."""
    draws = torch.Generator().manual_seed(0)
    parts = [
        {
            "a.weight": torch.randn(2, 7, 3, 2, generator=draws, dtype=torch.float64) + 1,
            "b.scale": torch.randn(2, 7, generator=draws, dtype=torch.float64),
        }
        for _ in range(blocks)
    ]
    return GradientUnits(kind, lambda: [_chunks(part, size) for part in parts], 7)


# --- written once -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_equal_gradients_give_equal_numbers_in_training_and_after_it(name: str, kind: str) -> None:
    source, told = UnitSource(_units(kind)), Recorder()
    DiagnosticRunner([name], 1, source).run(4, None, {}, told)
    offline = DIAGNOSTICS[name].offline_name or name
    found = diagnose([("here", source)], [offline]).findings["here"][offline]
    recorded = {key: value for step, row in told.numbers for key, value in row.items() if step == 5}
    assert found.scalars()
    for key, value in found.scalars().items():
        tags = (
            f"{name}/{kind}_{key}",
            f"{name}/{kind}{key.removeprefix(name)}",
            f"gradient_{key}/{kind}",
        )
        (tag,) = {tag for tag in tags if tag in recorded}
        assert recorded[tag] == pytest.approx(value, rel=1e-12, abs=0), tag


def test_the_trace_of_a_fisher_matrix_is_the_same_by_every_name() -> None:
    trainer, told = per_sample(), Recorder()
    source, batch = source_of(trainer), batch_of(trainer, 0)
    DiagnosticRunner(["fisher_trace"], 1, source).run(0, batch, {}, told)
    (models,) = source.predictive_models(batch)
    found = DIAGNOSTICS["fisher"]()
    assert isinstance(found, ModelDiagnostic)
    after = found.result([models], CurvatureSettings()).values
    for kind in ("exact", "empirical"):
        (value,) = told.series(f"fisher_trace/{kind}")
        assert value == float(after[f"trace_{kind}"])


# --- reductions over populations and chunks -----------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize(
    "reduction",
    [gradient_mean(), gradient_variance(), gradient_norms(), norm_quantiles(), *OURS.values()],
)
def test_any_reduction_of_core_is_mapped_over_populations(reduction: Reduction, size: int) -> None:
    units = _units("sample", size)
    found = reduce_units(units, [reduction])[reduction]
    at = 0
    for block in _units("sample", 7).blocks():
        (whole,) = block
        for index in range(2):
            grads = {name: g[index] for name, g in whole.items()}
            state = reduction.init({name: g[0] for name, g in grads.items()})
            wanted = reduction.finish(reduction.update(state, grads))
            mine = tree_map(lambda x, at=at: x[at], found)
            torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
            at += 1
    assert at == 4


def test_what_is_no_tensor_is_the_same_for_all_populations() -> None:
    counted = Reduction(lambda params: 0, lambda n, grads: n + len(grads["b.scale"]), lambda n: n)
    assert reduce_units(_units("sample"), [counted]) == {counted: 7}
    told = counted._replace(finish=torch.tensor)
    assert reduce_units(_units("sample"), [told])[told].tolist() == [7] * 4


def test_of_an_empty_batch_there_are_no_results() -> None:
    layer, told = nn.Linear(3, 2), Recorder()
    params = {name: value.detach()[None] for name, value in layer.named_parameters()}
    empty = (torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long))
    outputs: Any = lambda extra: lambda p, x: torch.func.functional_call(layer, p, (x,))  # noqa: E731
    source = ModelSource(PredictiveModels(outputs, params, {}, empty, "categorical"), layer)
    runner = DiagnosticRunner(["gradient_norms", "noise_scale", "fisher_trace"], 1, source)
    before = deepcopy(runner.state())
    runner.run(0, None, {}, told)
    assert runner.state() == before
    ((_, numbers),) = told.numbers
    assert numbers and all(name.startswith("diagnostics/") for name in numbers)


# --- a diagnostic of one's own: one file, one registration --------------------------------------


class GradientSparsity(GradientDiagnostic):
    """Share of the elements of a gradient that are 0."""

    name = "gradient_sparsity"
    kinds = ("sample", "task")
    reduction = Reduction(
        lambda params: [],
        lambda shares, grads: [
            *shares,
            torch.cat([g.reshape(len(g), -1) for g in grads.values()], 1).eq(0).double().mean(1),
        ],
        torch.cat,
    )

    def result(self, reduced: Any, units: GradientUnits) -> DiagnosticResult:
        return DiagnosticResult(
            {"mean": reduced.mean(), "by_model": reduced.mean(1)},
            {"all": {"network": float(reduced.mean())}},
            distribution=reduced.flatten(),
        )


class Confidence(ModelDiagnostic):
    """Mean of the largest predicted probability."""

    name = "confidence"

    def result(
        self, models: Sequence[PredictiveModels], settings: CurvatureSettings
    ) -> DiagnosticResult:
        def of(one: PredictiveModels, params: Any, extra: Any, batch: Any) -> Tensor:
            outputs = one.outputs_fn(extra)(params, batch[0])
            return outputs.softmax(1).amax(1).mean()

        return DiagnosticResult({"mean": map_models(of, models)})


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> tuple[type[Diagnostic], ...]:
    for kind in (GradientSparsity, Confidence):
        monkeypatch.setitem(DIAGNOSTICS, kind.name, kind)  # taken out again afterwards
        assert register_diagnostic(kind) is kind
    return GradientSparsity, Confidence


@pytest.mark.parametrize("trainer", ["per_sample", "ensemble", "meta"])
def test_a_new_diagnostic_is_in_the_records_of_a_training_and_in_what_diagnose_finds(
    own: tuple[type[Diagnostic], ...],
    trainer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    asked = "[gradient_sparsity,confidence]"
    outcome = run("train", *KINDS[trainer], f"trainer.diagnostics={asked}", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    records = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    known = {key for record in records for key in record}
    unit = "task" if trainer == "meta" else "sample"
    wanted = {f"gradient_sparsity/{unit}_mean", "confidence/mean"}
    assert wanted <= known
    few = ["tasks=3"] if trainer == "meta" else ["samples=12"]
    outcome = run("diagnose", "run=out", f"what={asked}", *few, "device=cpu")
    assert outcome.code == 0, outcome.err
    findings = json.loads(Path("out/diagnosis-validation.json").read_text())["findings"]
    place = {"per_sample": "network", "ensemble": "members", "meta": "initial"}[trainer]
    assert 0 <= findings[place]["gradient_sparsity"]["mean"] <= 1
    assert findings[place]["gradient_sparsity"]["by_layer"].keys() == {"all"}
    assert all(0 < value <= 1 for value in findings[place]["confidence"]["mean"])
    assert ("meta_gradients" in findings) == (trainer == "meta")
    rows = [[cell.strip() for cell in line.split("|")] for line in outcome.out.splitlines()]
    assert any(row[1:3] == [place, "confidence: mean"] for row in rows)


def test_its_curves_histograms_and_figures_need_no_further_line(
    own: tuple[type[Diagnostic], ...],
) -> None:
    told = Recorder()
    source = UnitSource(_units("sample"))
    DiagnosticRunner(["gradient_sparsity"], 1, source).run(0, None, {}, told)
    assert told.series("gradient_sparsity/sample_all_by_layer/network") == [0.0]
    assert told.series("gradient_sparsity/sample_by_model_high") == [0.0]
    ((step, name, tensors),) = told.distributions
    assert (step, name, len(tensors["sample"])) == (1, "gradient_sparsity", 28)
    record_diagnosis(told, 3, "test", diagnose([("here", source)], ["gradient_sparsity"]))
    drawn = [(step, name) for step, name, _ in told.drawn]
    names = ("diagnosis_test/here/gradient_sparsity/all", "diagnosis_test/table")
    assert drawn == [(3, name) for name in names]


# --- what is told and refused -------------------------------------------------------------------


def test_a_quantity_that_a_run_has_nothing_for_is_told() -> None:
    found = diagnose(
        [("here", UnitSource(_units("sample")))], ["gradient_norms", "cosines", "traces"]
    )
    assert found.findings["here"].keys() == {"gradient_norms"}
    assert found.left_out == {
        "cosines": "this run has no gradients of tasks or members",
        "traces": "this run has no models with a loss of their parameters alone",
    }


def test_unknown_quantities_are_refused() -> None:
    meant = "^what='fish': known are gradient_norms, .*, traces; did you mean fisher.$"
    with pytest.raises(SettingError, match=meant):
        diagnose([], ["fish"])
    with pytest.raises(SettingError, match="^diagnostics='eigenvalues': known are gradient_no.*"):
        LoopSettings(diagnostics=["eigenvalues"])  # of finished runs alone


def test_names_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DIAGNOSTICS", dict(DIAGNOSTICS))
    for name in ("gradient_norms", "cosines"):
        twin = type("Twin", (GradientSparsity,), {"name": name})
        with pytest.raises(SettingError, match=f"^diagnostic='{name}': a name that no other"):
            register_diagnostic(twin)
    with pytest.raises(SettingError, match="a subclass of GradientDiagnostic or ModelDiagnostic"):
        register_diagnostic(int)  # type: ignore[type-var]
    for left_out in ("name", "kinds", "reduction"):
        given = {"name": "half", "kinds": ("sample",), "reduction": gradient_norms()}
        del given[left_out]
        with pytest.raises(SettingError, match=f"^diagnostic='Half': its class needs {left_out} ="):
            register_diagnostic(type("Half", (GradientDiagnostic,), given))


@pytest.mark.parametrize(
    ("attribute", "value", "accepted"),
    [
        ("name", "two words", "letters, digits and underscores"),
        ("name", 3, "letters, digits and underscores"),
        ("offline_name", "a/b", "letters, digits and underscores"),
        ("kinds", ("samples",), "a tuple of some of loss, member, predictive, sample, shot, task"),
        ("kinds", "task", "a tuple of some of"),
        ("reduction", torch.mean, "a Reduction"),
    ],
)
def test_what_a_class_says_of_itself_has_to_be_of_use(
    attribute: str, value: object, accepted: str
) -> None:
    given = {"name": "odd", "kinds": ("sample",), "reduction": gradient_norms()}
    kind = type("Odd", (GradientDiagnostic,), given | {attribute: value})
    with pytest.raises(SettingError, match=rf"^Odd\.{attribute}=.*: {accepted}"):
        register_diagnostic(kind)
    assert "odd" not in DIAGNOSTICS


def test_a_result_is_a_record_of_numbers() -> None:
    found = DiagnosticResult({"share": 0.25, "count": 3})
    assert found.scalars() == {"share": 0.25, "count": 3.0} == found.as_json()
    for value in ("many", None, True):
        with pytest.raises(SettingError, match=r"^values\.share=.*: a number or a tensor"):
            DiagnosticResult({"share": value})  # type: ignore[dict-item]


def test_what_a_diagnostic_gives_has_to_be_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"name": "bare", "kinds": ("sample",), "reduction": gradient_norms()}
    given["result"] = lambda self, reduced, units: {"share": 1.0}
    monkeypatch.setitem(DIAGNOSTICS, "bare", type("Bare", (GradientDiagnostic,), given))
    chunk = {"w": torch.ones(1, 2, 3)}
    source = UnitSource(GradientUnits("sample", lambda: [[chunk]], 2))
    with pytest.raises(SettingError, match=r"^Bare\.result='dict': a DiagnosticResult is needed"):
        diagnose([("network", source)], ["bare"])


def test_option_lists_are_those_of_the_table() -> None:
    check_diagnostics(list(training_diagnostics()))
    assert set(training_diagnostics()) < set(DIAGNOSTICS)
    assert len(offline_diagnostics()) == len(DIAGNOSTICS)
    lines = describe_diagnostics(offline_diagnostics()).splitlines()
    assert [line.split()[0] for line in lines] == list(offline_diagnostics())
    assert all(len(line.split()) > 2 for line in lines)
