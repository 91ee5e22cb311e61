"""Ways to an ensemble of M members on digits: scores, calibration, letters told from digits.

One split of the data for all; seeds change weights, data order and draws alone.
Axes: M members, R seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn.data import ClassificationData, digits_data, glyphs_data, resized
from metalearn.errors import SettingError, check_whole
from metalearn.models import MLP, Ensemble
from metalearn.trainers import (
    BatchEnsembleTrainer,
    EnsembleTest,
    EnsembleTrainer,
    MCDropoutTrainer,
    SnapshotTrainer,
    SWAGTrainer,
    mean_interval,
)

__all__ = [
    "METHODS",
    "UncertaintyRow",
    "UncertaintyScores",
    "uncertainty_comparison",
    "uncertainty_figure",
    "uncertainty_table",
]

EnsembleKind = (
    type[EnsembleTrainer]
    | type[MCDropoutTrainer]
    | type[BatchEnsembleTrainer]
    | type[SnapshotTrainer]
    | type[SWAGTrainer]
)
"""A trainer of an ensemble."""

METHODS: dict[str, EnsembleKind] = {
    "deep ensemble": EnsembleTrainer,
    "MC-dropout": MCDropoutTrainer,
    "BatchEnsemble": BatchEnsembleTrainer,
    "snapshots": SnapshotTrainer,
    "SWAG": SWAGTrainer,
}

Budget = Literal["ensemble", "network"]
"""What each method may spend: the steps of M networks, or those of one. A step of M members in one
pass counts as M."""

_DROPOUT = 0.05
_RATES: dict[EnsembleKind, float] = {SnapshotTrainer: 3e-3}  # of Adam; 1e-3 for the others
_SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}  # of SWAG
_SETTINGS: dict[EnsembleKind, dict[str, Any]] = {
    BatchEnsembleTrainer: {"factors": "normal"},
    SWAGTrainer: {"final_rate": 1.0},
}
# All of these: least validation NLL after 1,500 steps among two to seven values, seed 0.
_SEED_STRIDE = 100  # between the seeds of two runs, so that no two share a member


@dataclass(frozen=True)
class UncertaintyScores:
    """Of one run, on the test split; or of R runs, each ``[R]``."""

    accuracy: Any
    nll: Any
    brier: Any
    ece: Any
    member_accuracy: Any
    """Mean over members, as the next three."""
    member_nll: Any
    member_brier: Any
    member_ece: Any
    auroc_mutual_information: Any
    """Letters as positives."""
    auroc_entropy: Any
    seconds: Any
    """Of training and validation."""


@dataclass(frozen=True)
class UncertaintyRow:
    """One method."""

    method: str
    member_steps: int
    """What training cost: gradient steps times members in a step."""
    parameters: int
    """Numbers that are kept to predict with."""
    scores: UncertaintyScores
    """Each ``[R]``."""


def uncertainty_comparison(
    seeds: Sequence[int] = range(1, 6),
    *,
    methods: Sequence[str] = tuple(METHODS),
    members: int = 10,
    steps: int = 1500,
    budget: Budget = "ensemble",
    hidden: Sequence[int] = (128, 128, 128),
    init_scale: float = 2.0,
    init_bias: float = 1.0,
    data: ClassificationData | None = None,
    ood: ClassificationData | None = None,
) -> list[UncertaintyRow]:
    """Train every method from the same weights and score it on the test split.

    Args:
        seeds: of R runs.
        methods: keys of `METHODS`.
        members: M.
        steps: of one network of the deep ensemble.
        budget: see `Budget`; a deep ensemble always has that of M networks.
        hidden: of the `metalearn.models.MLP`; MC-dropout's has dropout as well.
        init_scale: of its weights.
        init_bias: of its biases.
        data: None is the digits of scikit-learn, their split of seed 0.
        ood: None is the letters at the size of the digits.

    Raises:
        SettingError: an unknown method or budget, no seed, a number out of range.
    """
    if not len(seeds):
        raise SettingError("seeds", list(seeds), "at least one is needed")
    if budget not in get_args(Budget):
        raise SettingError("budget", budget, f"one of {', '.join(get_args(Budget))} is needed")
    for name in methods:
        if name not in METHODS:
            raise SettingError("methods", name, f"one of {', '.join(METHODS)} is needed")
    check_whole("members", members, 1)
    data = data or digits_data(seed=0)
    ood = ood or resized(glyphs_data(seed=0), image_size=data.input_shape[-1], channels=1)
    shape = {"hidden": hidden, "init_scale": init_scale, "init_bias": init_bias}
    rows = []
    for method in methods:
        kind = METHODS[method]
        taken = _steps(kind, members, steps, budget)
        runs = [_run(kind, seed, members, taken, shape, data, ood) for seed in seeds]
        scores = [
            torch.tensor([getattr(run[0], field.name) for run in runs], dtype=torch.float64)
            for field in fields(UncertaintyScores)
        ]
        at_once = members if kind in (EnsembleTrainer, BatchEnsembleTrainer) else 1
        rows.append(UncertaintyRow(method, taken * at_once, runs[0][1], UncertaintyScores(*scores)))
    return rows


def uncertainty_table(rows: Sequence[UncertaintyRow]) -> str:
    """A Markdown table: mean ± half-width of the 95 % interval over seeds; (members' mean)."""
    lines = [
        "| | accuracy, % (members) | NLL (members) | Brier (members) | ECE, % (members) "
        "| AUROC, mutual information | AUROC, entropy | member-steps | s | numbers kept |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        s = row.scores
        cells = [
            f"{_shown(100 * s.accuracy, 1)} ({_shown(100 * s.member_accuracy, 1)})",
            f"{_shown(s.nll, 3)} ({_shown(s.member_nll, 3)})",
            f"{_shown(s.brier, 3)} ({_shown(s.member_brier, 3)})",
            f"{_shown(100 * s.ece, 1)} ({_shown(100 * s.member_ece, 1)})",
            _shown(s.auroc_mutual_information, 3),
            _shown(s.auroc_entropy, 3),
            f"{row.member_steps:,}",
            f"{float(s.seconds.median()):.0f}",
            f"{row.parameters:,}",
        ]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def uncertainty_figure(rows: Sequence[UncertaintyRow]) -> Figure:
    """NLL and calibration error of members and ensemble, and AUROC, with intervals over seeds."""
    panels = (
        ("NLL", ("nll", "member_nll")),
        ("expected calibration error", ("ece", "member_ece")),
        ("AUROC, letters from digits", ("auroc_mutual_information", "auroc_entropy")),
    )
    labels = (("ensemble", "members' mean"),) * 2 + (("mutual information", "entropy"),)
    figure = Figure(figsize=(10, 1.5 + 0.45 * len(rows)), layout="constrained")
    for axes, (title, names), pair in zip(figure.subplots(1, 3, sharey=True), panels, labels):
        for name, label, colour, lift in zip(names, pair, ("#0072B2", "#8A8A8A"), (-0.12, 0.12)):
            found = [mean_interval(getattr(row.scores, name)) for row in rows]
            axes.errorbar(
                [float(mean) for mean, _ in found],
                [place + lift for place in range(len(rows))],
                xerr=[float(half) for _, half in found],
                fmt="o",
                color=colour,
                capsize=3,
                label=label,
            )
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(len(rows)), [row.method for row in rows])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    axes.invert_yaxis()
    return figure


def _steps(kind: EnsembleKind, members: int, steps: int, budget: Budget) -> int:
    """How many steps a method takes for a budget."""
    if kind is EnsembleTrainer:
        return steps
    total = steps * (members if budget == "ensemble" else 1)
    return math.ceil(total / members) if kind is BatchEnsembleTrainer else total


def _run(
    kind: EnsembleKind,
    seed: int,
    members: int,
    steps: int,
    shape: dict[str, Any],
    data: ClassificationData,
    ood: ClassificationData,
) -> tuple[UncertaintyScores, int]:
    """Scores of one run, and how many numbers its predictions need."""
    networks = members if kind.networks is None else kind.networks
    seeds = [_SEED_STRIDE * seed + index for index in range(networks)]
    dropout = _DROPOUT if kind is MCDropoutTrainer else 0.0

    def make(number: int) -> nn.Module:
        return MLP(data.input_shape, data.outputs, dropout=dropout, seed=number, **shape)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        if kind is SWAGTrainer:
            return torch.optim.SGD(parameters, **_SGD)
        return torch.optim.Adam(parameters, lr=_RATES.get(kind, 1e-3), fused=True)

    trainer = kind(
        Ensemble.from_factory(make, seeds),
        data,
        members=members,
        seeds=seeds,
        steps=steps,
        ood=ood,
        optimizer=optimizer,
        eval_every=min(100, steps) if kind.networks is None else max(1, steps // 15),
        engine="batched" if kind.networks is None else "loop",
        progress=False,
        **_SETTINGS.get(kind, {}),
    )
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    trainer.load_best()
    kept = sum(value.numel() for value in trainer.predictive().parameters())
    test = trainer.test()
    assert isinstance(test, EnsembleTest)
    return _scores(test, seconds), kept


def _scores(test: EnsembleTest, seconds: float) -> UncertaintyScores:
    whole, each = test.report.ensemble(), test.report.members
    return UncertaintyScores(
        accuracy=whole["accuracy"],
        nll=whole["nll"],
        brier=whole["brier"],
        ece=whole["ece"],
        member_accuracy=float(each.accuracy.mean()),
        member_nll=float(each.nll.mean()),
        member_brier=float(each.brier.mean()),
        member_ece=float(each.ece.mean()),
        auroc_mutual_information=float(test.ood["mutual_information"].auroc),
        auroc_entropy=float(test.ood["entropy"].auroc),
        seconds=seconds,
    )


def _shown(values: Tensor, digits: int) -> str:
    mean, half = mean_interval(values)
    return f"{float(mean):.{digits}f} ± {float(half):.{digits}f}"
