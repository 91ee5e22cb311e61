"""The comparison of ways to an ensemble: equal budgets, what its rows, table and figure say."""

from __future__ import annotations

import pytest
import torch

from metalearn.benchmarks.uncertainty import (
    METHODS,
    UncertaintyRow,
    UncertaintyScores,
    uncertainty_comparison,
    uncertainty_figure,
    uncertainty_table,
)
from metalearn.data import ClassificationData
from metalearn.errors import SettingError


def _pictures(seed: int, low: int) -> ClassificationData:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(160) % 2
    inputs = torch.randint(low, low + 60, (160, 1, 3, 3), generator=generator)
    inputs[targets == 1, 0, 0] += 100
    parts = torch.arange(160).split([80, 40, 40])
    splits = dict(zip(("train", "validation", "test"), parts))
    return ClassificationData(inputs.to(torch.uint8), targets, ("a", "b"), splits)  # type: ignore[arg-type]


def _compare(**settings: object) -> list[UncertaintyRow]:
    small = {"members": 2, "steps": 8, "hidden": (4,), "init_scale": 1.0, "init_bias": 0.0}
    data = {"data": _pictures(0, 0), "ood": _pictures(1, 90)}
    return uncertainty_comparison(**small | data | settings)  # type: ignore[arg-type]


def test_every_method_spends_the_same() -> None:
    rows = _compare(seeds=[1])
    assert [row.method for row in rows] == list(METHODS)
    assert {row.member_steps for row in rows} == {16}
    one = 9 * 4 + 4 + 4 * 2 + 2
    kept = {row.method: row.parameters for row in rows}
    assert kept["MC-dropout"] == one
    assert kept["deep ensemble"] == kept["snapshots"] == kept["SWAG"] == 2 * one
    assert one < kept["BatchEnsemble"] == one + 6 + 2 * (9 + 4 + 4 + 2)
    cheap = _compare(seeds=[1], methods=["SWAG", "BatchEnsemble"], budget="network", steps=16)
    assert [row.member_steps for row in cheap] == [16, 16]


def test_scores_have_a_row_for_each_seed_and_come_again() -> None:
    one, same = (_compare(seeds=[1, 2], methods=["deep ensemble"])[0] for _ in range(2))
    for name, values in vars(one.scores).items():
        assert values.shape == (2,) and bool(torch.isfinite(values).all())
        if name != "seconds":
            assert torch.equal(values, getattr(same.scores, name))
    assert not torch.equal(one.scores.nll[:1], one.scores.nll[1:])


def test_table_and_figure_show_mean_and_interval() -> None:
    values = torch.tensor([0.5, 0.7], dtype=torch.float64)
    rows = [UncertaintyRow("deep ensemble", 15000, 1234, UncertaintyScores(*[values] * 11))]
    line = uncertainty_table(rows).splitlines()[-1]
    assert line.startswith("| deep ensemble | 60.0 ± 19.6 (60.0 ± 19.6) | 0.600 ± 0.196 (")
    assert "| 15,000 |" in line and line.endswith("| 1,234 |")
    axes = uncertainty_figure(rows).axes
    assert axes[0].get_title() == "NLL" and len(axes) == 3
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["deep ensemble"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": []}, "seeds"),
        ({"methods": ["bagging"]}, "methods.*deep ensemble"),
        ({"budget": "none"}, "budget.*ensemble, network"),
        ({"members": 0}, "members"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        _compare(**settings)
