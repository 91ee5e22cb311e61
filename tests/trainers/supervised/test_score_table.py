"""Scores of an ensemble beside its members', and of a network alone.

Axes: M members.
"""

from __future__ import annotations

import torch

from metalearn.trainers.supervised.score_table import score_table


def test_an_ensemble_stands_beside_its_members() -> None:
    members = {"accuracy": torch.tensor([0.5, 0.25, 0.75]), "nll": torch.tensor([1.0, 4.0, 12.0])}
    whole = {"accuracy": 0.8125, "nll": 0.5, "entropy": 1.0}
    assert score_table("test: 8 samples", whole, members) == [
        "test: 8 samples, 3 members",
        "              ensemble   members: median    lowest   highest",
        "  accuracy      81.2 %            50.0 %    25.0 %    75.0 %",
        "  nll           0.5000            4.0000    1.0000   12.0000",
    ]


def test_a_single_network_has_no_members() -> None:
    members = {"accuracy": torch.tensor([0.5]), "nll": torch.tensor([1.0])}
    assert score_table("test: 8 samples", {"accuracy": 0.5, "nll": 1.0}, members) == [
        "test: 8 samples",
        "  accuracy      50.0 %",
        "  nll           1.0000",
    ]
