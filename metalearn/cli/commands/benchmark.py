"""``metalearn benchmark``: what is raced, and where its table and figures go."""

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
from metalearn.benchmarks.processes import on_processors
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.run_folders import existing_run
from metalearn.cli.timed_run import time_run
from metalearn.core.checks import as_device
from metalearn.errors import SettingError, check_whole
from metalearn.near_names import check_known
from metalearn.tracking import device_name, provenance, write_json

__all__ = ["benchmark", "check"]

_CURVE_WORKLOAD = "W2"
_CURVE = ("batched", "mixed", "first_order", "implicit", "vmap_grad")
_META = "meta_gradient"
_MOST_THREADS = 4096
_RANKS = "ranks"
_OF_RACE = ("workloads", "contestants", "memory", "curve", "device", "parallel_metalearn")


@one_sentence_errors()
def benchmark(config: DictConfig) -> None:
    """Measure as the configuration says; prints tables and leaves them with figures in a folder.

    Raises:
        SettingError: an unknown suite, workload or contestant, a number out of range.
    """
    check(config, given_settings(HydraConfig.get()))
    folder = Path(HydraConfig.get().runtime.output_dir)
    names = _contestants(config.contestants)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    numbers: dict[str, Any] = {}
    for suite in config.suites:
        with on_processors(config.threads):
            if suite == _META:
                result = _meta_gradients(config, names)
            elif suite == _RANKS and config.run is not None:
                result = _layouts(config)
            else:
                print(f"{suite}: {(SUITES[suite].__doc__ or '').strip()}", flush=True)
                result = SUITES[suite](config.rounds)
                print(result.table, flush=True)
        numbers[suite] = result.numbers
        (folder / f"{suite}.md").write_text(result.table + "\n", encoding="utf-8")
        for name, figure in result.figures.items():
            figure.savefig(folder / f"{name}.png", dpi=120)
    report = {"rounds": config.rounds, "threads": torch.get_num_threads(), **numbers}
    report["device"] = device_name(torch.device(config.device))
    write_json(folder / "results.json", report | {"provenance": provenance()})
    print(f"written: {folder}")


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, or that the chosen suites have no use for.

    Raises:
        SettingError: the first of them.
    """
    suites = {_META: None, **SUITES}
    for name, known in (("suites", suites), ("workloads", WORKLOADS)):
        _known(name, plain_value(config[name]), known)
    if not config.suites:
        raise SettingError("suites", [], f"at least one of {', '.join(suites)} is needed")
    if config.parallel_metalearn is not None:
        _name_folder(plain_value(config.parallel_metalearn))
    _contestants(plain_value(config.contestants))
    _check_device(plain_value(config.device), plain_value(config.suites))
    check_whole("rounds", plain_value(config.rounds), 1)
    if not isinstance(config.memory, bool):
        raise SettingError("memory", plain_value(config.memory), "true or false is needed")
    if not isinstance(plain_value(config.curve), list):
        raise SettingError("curve", plain_value(config.curve), "a list of whole numbers is needed")
    for steps in plain_value(config.curve):
        check_whole("curve", steps, 1)
    if config.threads is not None:
        check_whole("threads", plain_value(config.threads), 1, _MOST_THREADS)
    if _META in config.suites and not (config.workloads or config.curve):
        raise SettingError("workloads", [], f"one of {', '.join(WORKLOADS)} is needed, or a curve")
    for setting in given:
        if setting.name in _OF_RACE and setting.value is not None and _META not in config.suites:
            raise setting.refusal(f"suites=[{_META}] is needed for it")
    _check_run(config, given)


def _layouts(config: DictConfig) -> SuiteResult:
    """How many ranks of this machine would share the training of a run best."""
    print(f"ranks: a training step of {config.run}, by one process and by several", flush=True)
    timing = time_run(config.run, trust=config.trust, rounds=config.rounds)
    table = f"{timing.table()}\n\n{timing.sentence()}"
    print(table, flush=True)
    return SuiteResult(table, {}, timing.numbers())


def _meta_gradients(config: DictConfig, names: Sequence[str]) -> SuiteResult:
    """The race on every workload, and the curve against inner steps."""
    results: dict[str, list[Timing]] = {}
    how: Any = {"memory": config.memory, "device": config.device}
    racing = [name for name in names if CONTESTANTS[name].raced] or names
    for workload in config.workloads:
        print(f"{workload}: {WORKLOADS[workload].title}", flush=True)
        here = [name for name in racing if config.contestants or _fits(name, workload)]
        results[workload] = race(workload, here, rounds=config.rounds, **how)
        print(race_table({workload: results[workload]}), flush=True)
    tables, figures = [race_table(results)] if results else [], {}
    numbers: dict[str, Any] = {name: [asdict(t) for t in found] for name, found in results.items()}
    if results:
        figures["race"] = race_figure(results)
    if config.curve:
        wanted = [name for name in _CURVE if name in names] or list(names)
        measured = curve(_CURVE_WORKLOAD, wanted, list(config.curve), device=config.device)
        figures["curve"] = curve_figure(_CURVE_WORKLOAD, measured)
        numbers["curve"] = measured
        tables.append(_curve_table(measured))
        print(tables[-1], flush=True)
    return SuiteResult("\n\n".join(tables), figures, numbers)


def _fits(contestant: str, workload: str) -> bool:
    """Whether it takes part unasked: torch's compiler does not take our convolutions."""
    return not (CONTESTANTS[contestant].compiles and WORKLOADS[workload].has_convolutions)


def _check_device(device: object, suites: Sequence[str]) -> None:
    """Refuse what computes nothing, and a card beside suites that stay on the processor."""
    accepted = "cpu or a card of this machine is needed, such as cuda:0"
    if not isinstance(device, str) or as_device(device).type == "meta":
        raise SettingError("device", device, accepted)
    others = [suite for suite in suites if suite != _META]
    if as_device(device).type != "cpu" and others:
        raise SettingError("device", device, f"cpu is needed for suites=[{', '.join(others)}]")


def _check_run(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse a run that is none, or that nothing is asked of."""
    if not isinstance(config.trust, bool):
        raise SettingError("trust", plain_value(config.trust), "true or false is needed")
    for setting in given:
        if setting.name == "run" and setting.value is not None and _RANKS not in config.suites:
            raise setting.refusal(f"suites=[{_RANKS}] is needed for it")
        if setting.name == "trust" and config.run is None:
            raise setting.refusal("run=<folder> is needed for it")
        if setting.name == "threads" and config.run is not None and setting.value is not None:
            raise setting.refusal("null is needed: a run is timed on all processors")
    if config.run is not None:
        existing_run(plain_value(config.run), "run")


def _name_folder(folder: object) -> None:
    """Tell this process and those it starts where parallel-metalearn is."""
    accepted = "the folder of a pip install --target is needed"
    if not isinstance(folder, str) or not folder:
        raise SettingError("parallel_metalearn", folder, accepted)
    os.environ["PARALLEL_METALEARN"] = str(Path(folder).absolute())
    if not available(CONTESTANTS["parallel_metalearn"]):
        raise SettingError("parallel_metalearn", folder, accepted)


def _contestants(asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return [name for name, contestant in CONTESTANTS.items() if available(contestant)]
    _known("contestants", asked, CONTESTANTS)
    if not asked:
        raise SettingError("contestants", [], f"one of {', '.join(CONTESTANTS)} is needed, or null")
    for name in asked:
        if not available(CONTESTANTS[name]):
            needs = CONTESTANTS[name].needs
            raise SettingError("contestants", name, f"the package {needs} has to be installed")
    return list(asked)


def _known(setting: str, names: object, known: Mapping[str, object]) -> None:
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise SettingError(setting, names, f"a list of {', '.join(known)} is needed")
    for name in names:
        check_known(setting, name, known, "one of {} is needed")


def _curve_table(measured: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    steps = list(next(iter(measured.values())))
    lines = ["| inner steps | " + " | ".join(map(str, steps)) + " |"]
    lines.append("| --- " * (len(steps) + 1) + "|")
    for name, points in measured.items():
        for quantity, factor, unit in (("memory", 1e-6, "MB"), ("seconds", 1.0, "s")):
            values = " | ".join(f"{p[quantity] * factor:.3g}" for p in points.values())
            lines.append(f"| {CONTESTANTS[name].title}, {unit} | {values} |")
    return "\n".join(lines)
