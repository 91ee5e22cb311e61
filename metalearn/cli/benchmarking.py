"""The benchmark script: what is raced, and where its table and figures go."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metalearn.benchmarks import (
    CONTESTANTS,
    WORKLOADS,
    Timing,
    available,
    curve,
    curve_figure,
    race,
    race_figure,
    race_table,
)
from metalearn.cli.complaints import one_sentence_errors
from metalearn.errors import SettingError, check_whole
from metalearn.tracking import provenance, write_json

__all__ = ["benchmark"]

_CURVE_WORKLOAD = "W2"
_CURVE = ("batched", "mixed", "first_order", "vmap_grad")


@one_sentence_errors()
def benchmark(config: DictConfig) -> None:
    """Measure as the configuration says; prints the table and leaves it with figures in a folder.

    Raises:
        SettingError: an unknown workload or contestant, a number out of range.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        if config.parallel_metalearn is not None:
            _name_folder(config.parallel_metalearn)
        names = _contestants(config.contestants)
        _known("workloads", config.workloads, WORKLOADS)
        check_whole("rounds", config.rounds, 1)
        for steps in config.curve:
            check_whole("curve", steps, 1)
        if config.threads is not None:
            check_whole("threads", config.threads, 1)
            torch.set_num_threads(config.threads)
    except SettingError:
        folder.rmdir()
        raise
    results: dict[str, list[Timing]] = {}
    for workload in config.workloads:
        print(f"{workload}: {WORKLOADS[workload].title}", flush=True)
        results[workload] = race(workload, names, rounds=config.rounds, memory=config.memory)
        print(race_table({workload: results[workload]}), flush=True)
    report: dict[str, Any] = {
        "rounds": config.rounds,
        "threads": torch.get_num_threads(),
        "workloads": {name: [asdict(t) for t in timings] for name, timings in results.items()},
        "provenance": provenance(),
    }
    if results:
        (folder / "table.md").write_text(race_table(results) + "\n", encoding="utf-8")
        race_figure(results).savefig(folder / "race.png", dpi=120)
    if config.curve:
        wanted = [name for name in _CURVE if name in names] or names
        measured = curve(_CURVE_WORKLOAD, wanted, list(config.curve))
        curve_figure(_CURVE_WORKLOAD, measured).savefig(folder / "curve.png", dpi=120)
        report["curve"] = measured
        print(_curve_table(measured))
    write_json(folder / "results.json", report)
    print(f"written: {folder}")


def _name_folder(folder: str) -> None:
    """Tell this process and those it starts where parallel-metalearn is."""
    os.environ["PARALLEL_METALEARN"] = str(Path(folder).absolute())
    if not available(CONTESTANTS["parallel_metalearn"]):
        raise SettingError(
            "parallel_metalearn", folder, "the folder of a pip install --target is needed"
        )


def _contestants(asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return [name for name, contestant in CONTESTANTS.items() if available(contestant)]
    _known("contestants", asked, CONTESTANTS)
    for name in asked:
        if not available(CONTESTANTS[name]):
            needs = CONTESTANTS[name].needs
            raise SettingError("contestants", name, f"the package {needs} has to be installed")
    return list(asked)


def _known(setting: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise SettingError(setting, name, f"one of {', '.join(known)} is needed")


def _curve_table(measured: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    steps = list(next(iter(measured.values())))
    lines = ["| inner steps | " + " | ".join(map(str, steps)) + " |"]
    lines.append("| --- " * (len(steps) + 1) + "|")
    for name, points in measured.items():
        for quantity, factor, unit in (("memory", 1e-6, "MB"), ("seconds", 1.0, "s")):
            values = " | ".join(f"{p[quantity] * factor:.3g}" for p in points.values())
            lines.append(f"| {CONTESTANTS[name].title}, {unit} | {values} |")
    return "\n".join(lines)
