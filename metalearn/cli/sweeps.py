"""What a sweep comes to: its runs side by side, those that differ in their seeds alone as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metalearn.evaluation.seeds import SeedMean, mean_over_seeds
from metalearn.files import read_regular
from metalearn.tracking import write_json

__all__ = ["summarize_sweep"]

_LARGEST = 2**26  # bytes of a file of a run
_SUMMARY = "sweep.json"
_SEEDS = ("seed", "seeds", "eval_seed")


@dataclass(frozen=True)
class _Run:
    name: str
    settings: dict[str, Any]
    """By name, but for seeds: as they were typed, or all of them."""
    seed: int
    headline: Mapping[str, float]


def summarize_sweep(folder: Path, typed: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """A table of the runs in a sweep's folder, in words, which is also written there as JSON.

    Empty where there are not two runs. Runs without results are passed over.

    Args:
        folder: of the sweep.
        typed: of each run, by the name of its folder, the settings as they were typed, by which
            the table names runs; without it, all settings in which runs differ do.
    """
    typed = typed or {}
    runs = [run for place in _by_number(folder) if (run := _read(place, typed)) is not None]
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings, sort_keys=True, default=str), []).append(run)
    if len(runs) < 2:
        return []
    differing = _differing([several[0] for several in groups.values()])
    found = []
    lines = [f"{len(runs)} runs"]
    if any(len(several) > 1 for several in groups.values()):
        lines = [f"{len(runs)} runs; over seeds, mean ± 95 % interval by Student's t"]
    for several in groups.values():
        own = {name: several[0].settings.get(name) for name in differing}
        means = _means(several)
        found.append(_as_json(own, several, means))
        lines += _lines(own, several, means)
    path = folder / _SUMMARY
    write_json(path, {"groups": found}, make_folder=False)
    return [*lines, f"written: {path}"]


def _by_number(folder: Path) -> list[Path]:
    places = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(places, key=lambda p: (int(p.name) if p.name.isdigit() else -1, p.name))


def _read(place: Path, typed: Mapping[str, Sequence[str]]) -> _Run | None:
    """A finished run; None of anything else."""
    try:
        config = yaml.safe_load(read_regular(place / "config.yaml", _LARGEST))
        results = json.loads(read_regular(place / "results.json", _LARGEST))
        headline, seed = dict(results["headline"]), int(config["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return None
    settings = _flat(config)
    if place.name in typed:
        settings = dict(text.lstrip("+").split("=", 1) for text in typed[place.name] if "=" in text)
    settings = {n: v for n, v in settings.items() if n.rpartition(".")[2] not in _SEEDS}
    numbers = {k: v for k, v in headline.items() if isinstance(v, int | float)}
    return _Run(place.name, settings, seed, numbers)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _differing(runs: Sequence[_Run]) -> list[str]:
    """Names of the settings in which some of the runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    first = runs[0].settings
    return [n for n in names if any(run.settings.get(n) != first.get(n) for run in runs)]


def _means(runs: Sequence[_Run]) -> dict[str, SeedMean]:
    """Of the numbers that all runs have."""
    names = [n for n in runs[0].headline if all(n in run.headline for run in runs)]
    return {name: mean_over_seeds([run.headline[name] for run in runs]) for name in names}


def _as_json(
    settings: Mapping[str, Any], runs: Sequence[_Run], means: Mapping[str, SeedMean]
) -> dict[str, Any]:
    return {
        "settings": dict(settings),
        "seeds": [run.seed for run in runs],
        "runs": [run.name for run in runs],
        "numbers": {
            name: {**mean._asdict(), "values": [run.headline[name] for run in runs]}
            for name, mean in means.items()
        },
    }


def _lines(
    settings: Mapping[str, Any], runs: Sequence[_Run], means: Mapping[str, SeedMean]
) -> list[str]:
    what = " ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    seeds = ", ".join(str(run.seed) for run in runs)
    lines = [f"  {what or 'all'}, seed{'s' * (len(runs) > 1)} {seeds}"]
    width = max((len(name) for name in means), default=0)
    for name, (mean, half, deviation) in means.items():
        shown = "{:.2%}" if "accuracy" in name else "{:.4f}"
        text = shown.format(mean)
        if len(runs) > 1:
            text += f" ± {shown.format(half)} (deviation {shown.format(deviation)})"
        lines.append(f"    {name:<{width}}  {text}")
    return lines
