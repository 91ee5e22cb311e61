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
    SUITES,
    WORKLOADS,
    SuiteResult,
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
_CURVE = ("batched", "mixed", "first_order", "implicit", "vmap_grad")
_META = "meta_gradient"


@one_sentence_errors()
def benchmark(config: DictConfig) -> None:
    """Measure as the configuration says; prints tables and leaves them with figures in a folder.

    Raises:
        SettingError: an unknown suite, workload or contestant, a number out of range.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        _known("suites", config.suites, {_META: None, **SUITES})
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
    numbers: dict[str, Any] = {}
    for suite in config.suites:
        if suite == _META:
            result = _meta_gradients(config, names)
        else:
            print(f"{suite}: {(SUITES[suite].__doc__ or '').strip()}", flush=True)
            result = SUITES[suite](config.rounds)
            print(result.table, flush=True)
        numbers[suite] = result.numbers
        (folder / f"{suite}.md").write_text(result.table + "\n", encoding="utf-8")
        for name, figure in result.figures.items():
            figure.savefig(folder / f"{name}.png", dpi=120)
    report = {"rounds": config.rounds, "threads": torch.get_num_threads(), **numbers}
    write_json(folder / "results.json", report | {"provenance": provenance()})
    print(f"written: {folder}")


def _meta_gradients(config: DictConfig, names: Sequence[str]) -> SuiteResult:
    """The race on every workload, and the curve against inner steps."""
    results: dict[str, list[Timing]] = {}
    racing = [name for name in names if CONTESTANTS[name].raced] or names
    for workload in config.workloads:
        print(f"{workload}: {WORKLOADS[workload].title}", flush=True)
        results[workload] = race(workload, racing, rounds=config.rounds, memory=config.memory)
        print(race_table({workload: results[workload]}), flush=True)
    tables, figures = [race_table(results)] if results else [], {}
    numbers: dict[str, Any] = {name: [asdict(t) for t in found] for name, found in results.items()}
    if results:
        figures["race"] = race_figure(results)
    if config.curve:
        wanted = [name for name in _CURVE if name in names] or list(names)
        measured = curve(_CURVE_WORKLOAD, wanted, list(config.curve))
        figures["curve"] = curve_figure(_CURVE_WORKLOAD, measured)
        numbers["curve"] = measured
        tables.append(_curve_table(measured))
        print(tables[-1], flush=True)
    return SuiteResult("\n\n".join(tables), figures, numbers)


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
