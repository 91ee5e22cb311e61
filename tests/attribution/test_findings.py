"""What an attribution found: refused where it does not fit, kept in a file, told in numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metalearn.attribution import (
    Findings,
    RunCurvature,
    SubsetOutcomes,
    TargetSamples,
    TrainingExamples,
    linear_datamodeling_score,
    load_findings,
    rank_correlations,
    save_findings,
    subset_outcomes,
)
from metalearn.attribution.ranking import agreement, highest, most_harmful, most_helpful
from metalearn.core.tree import leaves
from metalearn.errors import DataError, SettingError
from tests.support.found import found


def test_ranks_have_signs_and_leave_nan_aside() -> None:
    scores = torch.tensor([0.5, math.nan, -2.0, 3.0, 0.0, -1.0, math.inf])
    assert highest(scores, 3) == ([6, 3, 0], [math.inf, 3.0, 0.5])
    assert most_helpful(scores, 9).examples == [6, 3, 0]
    assert most_harmful(scores, 9) == ([2, 5], [-2.0, -1.0])
    assert most_harmful(scores, 1).examples == [2]
    assert most_harmful(scores.abs(), 3) == ([], [])
    assert highest(torch.ones(4), 2).examples == [0, 1]  # of equal ones the earlier


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64, torch.bfloat16])
def test_scores_of_any_kind_of_number_have_ranks(kind: torch.dtype) -> None:
    scores = torch.tensor([1, 0, 1]).to(kind)
    assert most_helpful(scores, 3) == ([0, 2], [1.0, 1.0])
    assert most_harmful(scores, 3) == ([], [])


def test_agreement_is_the_mean_over_targets_that_have_ranks() -> None:
    one = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    other = one.exp() + 0.5 * one.flip(0)
    other[1, 3] = math.nan
    other[2] = 1.0
    wanted = rank_correlations(one[[0, 3]], other[[0, 3]]).mean()
    matrix = agreement({"a": one, "b": other, "c": torch.full_like(one, math.inf)})
    assert matrix[0, 0] == pytest.approx(1.0)
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(float(wanted))
    assert bool(matrix[2].isnan().all())


def test_outcomes_of_subsets_are_held_against_every_method_that_is_finite() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = (torch.rand(12, 10, generator=generator) > 0.3).float()
    scores = torch.randn(2, 10, generator=generator)
    outcomes = torch.randn(12, 2, generator=generator)
    broken = torch.full_like(scores, math.nan)
    subsets = subset_outcomes({"good": scores, "bad": broken}, weights, outcomes)
    assert list(subsets.lds) == list(subsets.predicted) == ["good"]
    expected = linear_datamodeling_score(scores, weights, outcomes)
    assert torch.equal(subsets.lds["good"].correlations, expected.correlations)
    loop = [[sum((1 - w) * s for w, s in zip(row, target)) for row in weights] for target in scores]
    assert subsets.predicted["good"].float() == pytest.approx(torch.tensor(loop), abs=1e-6)
    assert subsets.left_out == pytest.approx(1 - float(weights.mean()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scores": {"exact": torch.ones(2, 20)}},
            r"shape of scores\[exact\]=\[2, 20\]: \[3, 20\]",
        ),
        (
            {"scores": {"exact": torch.ones(3, 19)}},
            r"scores\[exact\]=\[3, 19\]: \[3, 20\] is needed",
        ),
        ({"scores": {"exact": [1.0]}}, r"scores\[exact\]='list': a torch.Tensor is needed"),
        ({"scores": {"": torch.ones(3, 20)}}, "scores='': a method is named by a text"),
        ({"scores": {}, "self_scores": {}}, "at least one method is needed"),
        ({"scores": {"el2n": torch.ones(3, 20)}}, "each name once"),
        ({"scores": {"exact": torch.ones(3, 20) * 1j}}, "real numbers are needed"),
        ({"self_scores": {"el2n": torch.ones(3)}}, r"self_scores\[el2n\]=\[3\]: \[20\] is needed"),
        ({"seconds": {"exact": -1.0}}, r"seconds\[exact\]=-1.0: a number of at least 0"),
        ({"seconds": {"exact": math.nan}}, r"seconds\[exact\]=nan"),
        ({"class_names": ["a", "b"]}, r"class_names=.*: a name for each of 3 classes is needed"),
        ({"class_names": [1, 2, 3]}, "class_names="),
        ({"walk_norms": torch.ones(2, 5)}, r"walk_norms=\[2, 5\]: \[3, K \+ 1\] is needed"),
        ({"walk_norms": torch.ones(())}, r"walk_norms=\[\]: \[K \+ 1\] is needed"),
        (
            {"curvature": RunCurvature([1, 2], [1.0], [1.0])},
            "as many eigenvalues and rates as steps",
        ),
        ({"curvature": RunCurvature([], [], [])}, "at least one"),
        ({"curvature": RunCurvature([1], ["a"], [1.0])}, "lists of numbers are needed"),  # type: ignore[list-item]
        ({"curvature": RunCurvature(1, 2.0, 3.0)}, "lists of numbers are needed"),  # type: ignore[arg-type]
        ({"settings": {"a": object()}}, "settings='dict': JSON's own types"),
        ({"provenance": {"a": {1, 2}}}, "provenance='dict': JSON's own types"),
        ({"warnings": "one"}, "warnings='one'"),
        ({"run": None}, "run=None: a text is needed"),
        ({"leave_k_out": found(2).leave_k_out}, r"leave_k_out.changes\[exact\]=\[2, 2\]: \[3, K\]"),
        ({"retrained": found(2).retrained}, r"retrained.outcomes=\[6, 2\]: \[M, 3\] is needed"),
    ],
)
def test_findings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        found(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: TargetSamples(t(()), t(3), t(3).long()), r"targets.labels=\[\]: \[R, ...\]"),
        (lambda t: TargetSamples(t(0), t(0), t(0).long()), r"targets.labels=\[0\]: \[R, ...\]"),
        (lambda t: TargetSamples(t(3), t(2), t(3).long()), r"targets.losses=\[2\]: \[3\] is"),
        (lambda t: TargetSamples(t(3), t(3), t(3)), "targets.rows=.*: whole numbers are needed"),
        (lambda t: TargetSamples(t(3), t(3), t(3).long(), t(2, 4)), r"targets.inputs=\[2, 4\]"),
        (
            lambda t: TargetSamples(t(3), t(3), t(3).long(), None, t(3)),
            r"probabilities=\[3\]: \[3, C\] is needed",
        ),
        (
            lambda t: TargetSamples(t(3), t(3), t(3).long(), None, t(3, 2).bool()),
            "targets.probabilities='torch.bool': floats are needed",
        ),
        (
            lambda t: TargetSamples(t(3), t(3), t(3).to(torch.uint16)),
            "targets.rows='torch.uint16': whole numbers are needed, such as int64",
        ),
        (lambda t: TrainingExamples(t(3), t(4, 2)), r"examples.inputs=\[4, 2\]: \[3, ...\] is"),
        (
            lambda t: SubsetOutcomes(0.1, t(4, 2), {"a": t(4, 2)}, {}),
            r"predicted\[a\]=\[4, 2\]: \[2, 4\]",
        ),
        (lambda t: SubsetOutcomes(0.1, t(4, 2), {"a": t(2, 4)}, {}), "lds=.*one for each of"),
    ],
)
def test_samples_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(lambda *shape: torch.ones(*shape) if shape != ((),) else torch.tensor(1.0))


def test_numbers_name_examples_labels_and_correlations() -> None:
    findings = found()
    numbers = json.loads(json.dumps(findings.as_json(top=2), allow_nan=False))
    assert (numbers["targets"], numbers["examples"]) == (3, 20)
    first = numbers["of_targets"][0]
    assert (first["row"], first["label"]) == (10, "ant")
    scores = findings.scores["tracin"][0]
    best, worst = int(scores.argmax()), int(scores.argmin())
    assert first["most_helpful"]["tracin"][0] == {
        "example": best,
        "label": ("ant", "bee", "cat")[best % 3],
        "score": float(scores[best].double()),
    }
    assert first["most_harmful"]["tracin"][0]["example"] == worst
    assert len(first["most_harmful"]["tracin"]) == 2
    (retraining,) = numbers["methods"]["exact"]["retraining"]
    assert retraining["rank_correlation"] == findings.retrained[0].lds["exact"].mean
    assert numbers["methods"]["tracin"]["seconds"] is None
    left = findings.leave_k_out
    assert left is not None
    assert numbers["methods"]["exact"]["leave_k_out"] == left.as_json("exact")
    assert numbers["leave_k_out_by_chance"] == left.as_json("chance")
    assert (
        first["leave_k_out"] == left.of_target(0)
        and numbers["methods"]["el2n"]["leave_k_out"] == []
    )
    assert numbers["agreement"]["exact"]["tracin"] == float(findings.agreement[0, 1])
    assert len(numbers["suspected"]["el2n"]) == 2
    with pytest.raises(SettingError, match="top=0: a whole number of at least 1"):
        findings.as_json(top=0)


def test_numbers_of_regression_and_of_scores_that_are_not_finite() -> None:
    scores = torch.full((1, 20), math.nan)
    findings = found(
        1, regression=True, scores={"exact": scores}, retrained=[], walk_norms=None, curvature=None
    )
    numbers = json.loads(json.dumps(findings.as_json(), allow_nan=False))
    only = numbers["of_targets"][0]
    assert only["prediction"] is None
    assert float(only["label"]) == pytest.approx(float(findings.targets.labels[0, 0]), abs=1e-3)
    assert only["most_helpful"] == {"exact": []}
    assert numbers["agreement"] == {"exact": {"exact": None}}
    assert findings.label(torch.arange(6.0)) == "0, 1, 2, …"


def test_the_best_method_is_the_one_that_foretold_best() -> None:
    findings = found()
    means = {name: one.mean for name, one in findings.retrained[0].lds.items()}
    assert findings.best_method == max(means, key=lambda name: means[name])
    assert found(retrained=[]).best_method == "exact"
    assert found(scores={}, retrained=[]).best_method is None


def _tensors(findings: Findings) -> list[Tensor]:
    targets, examples = vars(findings.targets), vars(findings.examples)
    others = [findings.scores, findings.self_scores, findings.walk_norms]
    kept = [
        [s.outcomes, s.predicted, {n: v[0] for n, v in s.lds.items()}] for s in findings.retrained
    ]
    left = findings.leave_k_out
    left_out = left and [left.changes, left.predicted, {n: tuple(f) for n, f in left.flips.items()}]
    return [x for x in leaves([targets, examples, others, kept, left_out]) if x is not None]


@pytest.mark.parametrize("regression", [False, True])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, regression: bool) -> None:
    findings = found(regression=regression)
    save_findings(tmp_path / "new" / "findings.npz", findings)
    again = load_findings(tmp_path / "new" / "findings.npz")
    pairs = list(zip(_tensors(findings), _tensors(again), strict=True))
    assert len(pairs) == (15 + 5 if regression else 16 + 5 + 12)
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
    assert again.as_json() == findings.as_json()
    assert again.curvature is not None and findings.curvature is not None
    assert list(again.curvature.rates) == list(findings.curvature.rates)
    assert list(again.warnings) == list(findings.warnings)


def test_a_file_of_little_and_without_inputs(tmp_path: Path) -> None:
    path = tmp_path / "findings.npz"
    half = {"exact": torch.ones(3, 20, dtype=torch.bfloat16)}
    little = found(
        scores=half, self_scores={}, retrained=[], curvature=None, walk_norms=None, warnings=[],
        leave_k_out=None,
    )  # fmt: skip
    save_findings(path, little, with_inputs=False)
    again = load_findings(path)
    assert again.examples.inputs is None and again.targets.inputs is None
    assert again.scores["exact"].dtype is torch.float32
    assert (again.curvature, again.walk_norms, list(again.retrained)) == (None, None, [])
    assert again.leave_k_out is None
    one = found(1)
    assert math.isnan(one.retrained[0].lds["exact"].interval95)
    save_findings(path, one)
    assert math.isnan(load_findings(path).retrained[0].lds["exact"].interval95)
    save_findings(path, found(curvature=RunCurvature([1], [math.nan], [0.1])))
    trace = load_findings(path).curvature
    assert trace is not None and math.isnan(trace.eigenvalues[0])


def test_a_file_of_before_examples_were_left_out(tmp_path: Path) -> None:
    path = tmp_path / "findings.npz"
    save_findings(path, found(leave_k_out=None))
    _rewritten(path, lambda header, arrays: header.pop("leave_k_out"))
    assert load_findings(path).leave_k_out is None


def _rewritten(path: Path, change: Any) -> None:
    """A file with a checksum that fits, of another header."""
    from metalearn.data.packed import Pack, load_pack, save_pack

    pack = load_pack(path)
    header, arrays = json.loads(pack.source), dict(pack.arrays)
    change(header, arrays)
    save_pack(path, Pack(arrays, json.dumps(header)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a: h.update(version=2), "version 2 is not known here, but 1 is"),
        (lambda h, a: h.pop("run"), "no findings of an attribution .*run is missing"),
        (lambda h, a: h.update(seconds=3), "seconds is 3, but a mapping is needed"),
        (lambda h, a: h["seconds"].update(exact=10**400), "seconds.exact is .*a number is needed"),
        (lambda h, a: h["retrained"][0].update(left_out=10**400), "left_out is .*a number is need"),
        (lambda h, a: a.pop("scores.1"), "no findings of an attribution .*scores.1 is missing"),
        (lambda h, a: a.pop("targets.labels"), "targets.labels|labels=None"),
        (lambda h, a: a.update({"scores.0": np.ones((3, 2))}), r"scores\[exact\]=\[3, 2\]"),
        (lambda h, a: a.update({"scores.0": np.array(["x"])}), "no findings of an attribution"),
        (lambda h, a: a.update({"scores.0": a["scores.0"].astype("u2")}), "real numbers are need"),
        (lambda h, a: a.update({"targets.probabilities": np.ones((3, 3), "?")}), "floats are need"),
        (lambda h, a: h.update(curvature={"steps": [1]}), "curvature.eigenvalues is missing"),
        (lambda h, a: h["leave_k_out"].update(counts=[1]), "leave_k_out|changes"),
        (lambda h, a: a.pop("leave_k_out.changes.1"), "changes="),
        (lambda h, a: h["retrained"][0].update(lds={"x": {}}), "mean is missing"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_a_sentence(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "findings.npz"
    save_findings(path, found())
    _rewritten(path, change)
    with pytest.raises(DataError, match=message) as caught:
        load_findings(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "rubbish", "empty", "pickle", "folder"])
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "findings.npz"
    save_findings(path, found())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    if damage == "pickle":
        np.savez(path, header=np.array([{}], dtype=object))
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        contents = {"cut": whole[:-60], "flipped": bytes(flipped), "rubbish": b"x" * 99}
        path.write_bytes(contents.get(damage, b""))
    with pytest.raises(DataError, match="findings.npz is damaged: ") as caught:
        load_findings(path)
    assert "\n" not in str(caught.value)


def test_no_file_and_another_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no such findings"):
        load_findings(tmp_path / "findings.npz")
    with pytest.raises(SettingError, match=r"the name of a file .npz is needed"):
        save_findings(tmp_path / "findings.pt", found())
    assert replace(found(), run="b").run == "b"
