"""What ranks look into together is what one process finds: diagnoses, attributions, tests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.attribution import attribute
from metalearn.attribution.attributing import attribute_by_ranks
from metalearn.ranks import Ranks
from metalearn.ranks.told import from_bytes, to_bytes
from metalearn.trainers.diagnostics import DiagnosisData, diagnose, offline_diagnostics
from metalearn.trainers.diagnostics.offline import diagnose_by_ranks
from tests.attribution.test_attributing import scored
from tests.ranks.test_processes import Started
from tests.support.commands import Outcome
from tests.support.diagnostic_cases import ensemble, few_shot
from tests.support.rank_threads import on_ranks


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 0, 2),
        torch.tensor(1.5, dtype=torch.float64),
        torch.arange(6).view(2, 3).T,
        torch.tensor([True, False]),
        torch.tensor([math.nan, -0.0, 1e-45]),
        torch.tensor([1.0, 2.0]).bfloat16(),
        {"deep": [{"er": torch.ones(2)}, {"tensor": 1, "type": 2}]},
        {"a": [1, 0.1, math.inf]},
        [torch.arange(5), {"x": torch.zeros(0)}, torch.arange(3.0), torch.ones(2).bool()],
    ],
)
def test_values_arrive_as_they_were(value: Any) -> None:
    torch.testing.assert_close(from_bytes(to_bytes(value)), value, rtol=0, atol=0, equal_nan=True)


def test_plain_values_arrive_as_they_were() -> None:
    value = {"a": [None, "ß", True, -1], "b": {"c": []}}
    assert from_bytes(to_bytes(value)) == value


def test_tensors_travel_as_their_bits() -> None:
    told = to_bytes({"scores": torch.zeros(1000, 100)})
    assert len(told) < 4 * 100_000 + 200


def test_what_is_no_value_is_not_told() -> None:
    with pytest.raises(TypeError, match="a Linear is not told to other ranks"):
        to_bytes({"a": torch.nn.Linear(1, 1)})


@pytest.mark.parametrize("count", [2, 11])
@pytest.mark.parametrize("make", [ensemble, few_shot])
def test_a_diagnosis_is_that_of_one_process(make: Any, count: int) -> None:
    """With more ranks than quantities, too."""
    names = [*offline_diagnostics()] if count == 2 else ["gradient_norms", "cosines"]
    trainer, *trainers = [make(steps=1) for _ in range(count + 1)]
    data = DiagnosisData(run="x", samples=12, tasks=3)
    wanted = diagnose(trainer.diagnosis_sources(data), names)

    def found(ranks: Ranks) -> Any:
        sources = partial(trainers[ranks.rank].diagnosis_sources, data)
        return diagnose_by_ranks(sources, names, None, ranks)

    for one in on_ranks(count, found):
        assert one.left_out == wanted.left_out
        assert list(one.findings) == list(wanted.findings)
        for place, results in wanted.findings.items():
            assert list(one.findings[place]) == list(results)
            for name, result in results.items():
                theirs = one.findings[place][name]
                torch.testing.assert_close(theirs.as_json(), result.as_json(), equal_nan=True)
                assert theirs.scalars().keys() == result.scalars().keys()


@pytest.mark.parametrize("members", [[0], [0, 1]])
def test_an_attribution_is_that_of_one_process(members: list[int]) -> None:
    """Of two members on two ranks, and of one, for which the second rank has nothing to do."""
    methods, alone = ["exact", "cosine"], ["el2n"]
    wanted = attribute([scored(member) for member in members], methods, alone)
    networks = [scored(member) for member in members]

    def found(ranks: Ranks) -> Any:
        return attribute_by_ranks(ranks.share.of(networks), methods, alone, ranks)

    for one in on_ranks(2, found):
        for name in ("by_member", "self_scores"):
            torch.testing.assert_close(getattr(one, name), getattr(wanted, name))
        assert one.left_out == wanted.left_out and set(one.seconds) == set(wanted.seconds)


def _numbers(folder: Path) -> dict[str, Any]:
    """What commands have written into a run's folder, but for the clock and where it is."""
    found = {}
    for path in sorted(folder.glob("*-test.json")):
        values = json.loads(path.read_text())
        for name in ("seconds", "provenance", "settings", "run"):
            values.pop(name, None)
        for method in values.get("methods", {}).values():
            method["seconds"] = 0
        found[path.name] = values
    return found


def _assert_near(one: Any, other: Any) -> None:
    if isinstance(other, dict):
        assert list(one) == list(other)
        for name, value in other.items():
            _assert_near(one[name], value)
    elif isinstance(other, list):
        assert len(one) == len(other)
        for left, right in zip(one, other):
            _assert_near(left, right)
    else:
        assert one == (pytest.approx(other, rel=1e-3, abs=1e-5) if type(other) is float else other)


def test_commands_of_two_processes_leave_what_those_of_one_do(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    small = ["model=mlp", "model.hidden=[6]", "trainer.members=2", "device=cpu"]
    train = ["trainer=ensemble", *small, "trainer.steps=8", "trainer.progress=false"]
    commands = {
        "evaluate": ["run=run"],
        "attribute": [
            "run=run", "targets=3", "methods=[cosine,representation]", "subsets=3",
            "leave_k_out=[20]", "leave_out=[0.1]",
        ],
    }  # fmt: skip
    assert run("train", *train, "hydra.run.dir=run").code == 0
    for name, words in commands.items():
        assert run(name, *words).code == 0
    wanted = _numbers(tmp_path / "run")
    assert list(wanted) == ["attribution-test.json", "evaluation-test.json"]
    for path in (tmp_path / "run").glob("*-test.*"):
        path.unlink()
    for name, words in commands.items():
        started = Started(tmp_path, [words] * 2, command=name)
        (first, out, err), (second, *rest) = started.ends()
        assert first == second == 0, err
        assert out and rest == ["", ""]
    _assert_near(_numbers(tmp_path / "run"), wanted)
