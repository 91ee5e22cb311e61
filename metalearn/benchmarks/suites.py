"""What ``scripts/benchmark.py`` can measure beside meta-gradients, each as tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from matplotlib.figure import Figure

from metalearn.benchmarks.clipped_networks import CLIPPED_NETWORKS
from metalearn.benchmarks.clipped_steps import clipped_race, clipped_table
from metalearn.benchmarks.clipping_costs import (
    clipping_race,
    clipping_table,
    step_memory,
    step_memory_table,
)
from metalearn.benchmarks.counted_steps import counted_steps
from metalearn.benchmarks.curvature_problem import ProblemNorm, trained_conv4
from metalearn.benchmarks.derivatives import derivative_race, derivative_table
from metalearn.benchmarks.ensembles import (
    ENSEMBLES,
    ensemble_figure,
    ensemble_race,
    ensemble_table,
)
from metalearn.benchmarks.per_sample import (
    SAMPLE_WORKLOADS,
    ghost_memory,
    memory_table,
    sample_race,
    sample_table,
)
from metalearn.benchmarks.runs.attribution_suite import attribution_race, attribution_table
from metalearn.benchmarks.runs.hyper_suite import hyper_figure, hyper_race, hyper_table
from metalearn.benchmarks.scaling import scaling_table
from metalearn.benchmarks.shared_trainings import TRAININGS, shared_race, shared_table
from metalearn.benchmarks.spectrum import spectrum_figure, spectrum_race, spectrum_table
from metalearn.benchmarks.sweep import sweep_race
from metalearn.benchmarks.uncertainty import (
    uncertainty_comparison,
    uncertainty_figure,
    uncertainty_table,
)
from metalearn.data import digits_data

__all__ = ["SUITES", "SuiteResult"]


@dataclass(frozen=True)
class SuiteResult:
    """What a suite leaves."""

    table: str
    """Markdown."""
    figures: Mapping[str, Figure]
    """By file name without ending."""
    numbers: Any
    """For JSON."""


def ensembles(rounds: int) -> SuiteResult:
    """Stacked training steps against loops, and a sweep of 32 learning rates."""
    timings = [t for name in ENSEMBLES for t in ensemble_race(name, rounds=rounds)]
    sweep = sweep_race(digits_data(seed=0))
    line = (
        f"A sweep of {sweep.members} learning rates on digits, {sweep.steps} steps each: "
        f"{sweep.at_once:.1f} s in one run, {sweep.one_by_one:.1f} s "
        f"in {sweep.members} runs of `EnsembleTrainer` with one member."
    )
    return SuiteResult(
        f"{ensemble_table(timings)}\n\n{line}",
        {"ensembles": ensemble_figure(timings)},
        {"steps": [asdict(t) for t in timings], "sweep": asdict(sweep)},
    )


def curvature(rounds: int) -> SuiteResult:
    """Hessian products, eigenvalues and densities of a small conv4 against curvlinops."""
    tables: list[str] = []
    figures: dict[str, Figure] = {}
    numbers: dict[str, Any] = {}
    for norm in get_args(ProblemNorm):
        problem = trained_conv4(norm=norm)
        rows, curves = spectrum_race(problem, rounds=rounds)
        tables.append(f"**{problem.title}**\n\n{spectrum_table(rows)}")
        figures[f"spectrum_{norm}"] = spectrum_figure(problem.title, curves)
        numbers[problem.title] = [asdict(row) for row in rows]
    return SuiteResult("\n\n".join(tables), figures, numbers)


def per_sample(rounds: int) -> SuiteResult:
    """Per-sample and clipped gradients against torch.func, opacus, BackPACK; ways of clipping."""
    results = {name: sample_race(name, rounds=rounds) for name in SAMPLE_WORKLOADS}
    peaks = {name: ghost_memory(name, (64, 256, 1024)) for name in SAMPLE_WORKLOADS}
    clipped = {name: clipped_race(name, rounds=rounds) for name in CLIPPED_NETWORKS}
    costs = {name: clipping_race(name, rounds=rounds) for name in CLIPPED_NETWORKS}
    grown = {name: step_memory(name, _BATCHES) for name in CLIPPED_NETWORKS}
    tables = [sample_table(results), memory_table(peaks), clipped_table(clipped)]
    tables += [clipping_table(costs), step_memory_table(grown)]
    timed = {"timings": results, "clipped": clipped, "clipping_costs": costs}
    numbers: dict[str, Any] = {
        key: {name: [asdict(t) for t in rows] for name, rows in found.items()}  # type: ignore[attr-defined]
        for key, found in timed.items()
    }
    numbers |= {"peak_bytes": peaks, "peak_bytes_of_steps": grown}
    return SuiteResult("\n\n".join(tables), {}, numbers)


def derivatives(rounds: int) -> SuiteResult:
    """Jacobians, Hessians and Hessian products against row-by-row autograd and torch.func."""
    timings = derivative_race(rounds=rounds)
    return SuiteResult(derivative_table(timings), {}, [asdict(t) for t in timings])


def uncertainty(rounds: int) -> SuiteResult:
    """Deep ensemble, MC-dropout, BatchEnsemble, snapshots and SWAG on digits; rounds are seeds."""
    rows = uncertainty_comparison(range(1, rounds + 1))
    numbers = [
        asdict(row) | {"scores": {k: v.tolist() for k, v in vars(row.scores).items()}}
        for row in rows
    ]
    return SuiteResult(uncertainty_table(rows), {"uncertainty": uncertainty_figure(rows)}, numbers)


def hyper(rounds: int) -> SuiteResult:
    """Gradients through training runs against loops, higher, TorchOpt, betty and bergson."""
    tables, figures, numbers = [], {}, {}
    for name, steps, losses in _HYPER:
        field = hyper_race(name, steps, losses=losses, rounds=rounds)
        title = f"{_HYPER_TITLES[name]}, {'one outer loss' if losses == 1 else f'{losses} at once'}"
        tables.append(f"**{title}**\n\n{hyper_table(name, field)}")
        if len(steps) > 1:
            figures[f"{name}_{losses}"] = hyper_figure(name, field, title)
        numbers[title] = {
            count: [finish.numbers() for finish in found.values()] for count, found in field.items()
        }
    return SuiteResult("\n\n".join(tables), figures, numbers)


def attribution(rounds: int) -> SuiteResult:
    """Scores of training examples and retraining against loops, dattri, traker and bergson."""
    found = attribution_race(rounds=rounds)
    numbers = [finish.numbers() for finish in found.values()]
    return SuiteResult(attribution_table(found), {}, numbers)


_BATCHES = (64, 256, 1024, 4096)
"""Sizes N at which the memory of clipped steps is measured."""

_HYPER = (
    ("hyper", (20, 100, 400), 1),
    ("hyper", (100,), 20),
    ("implicit", (150,), 1),
    ("implicit", (150,), 20),
)
"""Races, numbers of steps K and of outer losses R."""


def ranks(rounds: int) -> SuiteResult:
    """Training steps that two processes share, against those of one."""
    timings = shared_race(list(TRAININGS), rounds=rounds)
    return SuiteResult(shared_table(timings), {}, [asdict(t) for t in timings])


def scaling(rounds: int) -> SuiteResult:
    """Efficiency on 8, 64 and 512 cards: a calculation, from counted bytes and operations."""
    steps = counted_steps()
    return SuiteResult(scaling_table(steps), {}, [asdict(step) for step in steps])


_HYPER_TITLES = {
    "hyper": "Through K steps of an MLP 64-64-64-10 on digits",
    "implicit": "At the minimum of a logistic regression on digits",
}

SUITES: dict[str, Callable[[int], SuiteResult]] = {
    "ensembles": ensembles,
    "per_sample": per_sample,
    "derivatives": derivatives,
    "curvature": curvature,
    "uncertainty": uncertainty,
    "hyper": hyper,
    "attribution": attribution,
    "ranks": ranks,
    "scaling": scaling,
}
"""By name; each takes the number of rounds."""
