"""What a checkpoint has to hold, for the loop that is to go on from it.

Axes: M members.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from metalearn.schema import (
    Kind,
    Misfit,
    anything,
    flag,
    like,
    list_of,
    map_of,
    mapping,
    number,
    text,
    whole,
)

__all__ = ["check_module", "check_state"]


def check_state(
    state: Mapping[str, Any],
    *,
    module: nn.Module,
    beside: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Any],
    kinds: Iterable[Kind],
) -> None:
    """Refuse a state that a loop could not load, before any of it is.

    Args:
        state: of a checkpoint.
        module: that is to take it.
        beside: what is learnt beside the module, if anything.
        optimizer: the same.
        parts: what the other parts of the loop kept.
        kinds: what that has to be.

    Raises:
        Misfit: says which entry is what, and what it should be.
    """
    fields: dict[str, Kind] = {
        "step": whole(),
        **_of_trained(module, beside),
        "optimizer": _of_optimizer(optimizer),
        "best_step": whole(-1),
        "best_value": number(nan=True),
        "stale": whole(),
        "seconds": number(0),
    }
    mapping(fields, {"validation_due": flag, "cpu_seconds": number(0, nan=True)})(state, "")
    if state["best_step"] > state["step"]:
        raise Misfit("best_step", state["best_step"], f"at most step={state['step']}")
    for kind in kinds:
        kind(parts, "extra")


def check_module(
    module: nn.Module, state: Mapping[str, Any], beside: nn.Module | None = None
) -> None:
    """Refuse a checkpoint whose module has entries of other shapes than this one.

    So of what is learnt ``beside`` it.

    Raises:
        Misfit: as `check_state`.
    """
    mapping(_of_trained(module, beside))(state, "")


def _of_trained(module: nn.Module, beside: nn.Module | None) -> dict[str, Kind]:
    found = {"module": like(module.state_dict())}
    return found if beside is None else {**found, "learnt": like(beside.state_dict())}


def _of_optimizer(optimizer: torch.optim.Optimizer) -> Kind:
    """Groups of as many parameters; of each parameter, what one step of a copy would keep of it."""
    kept = _trial_state(optimizer)
    counts = [len(group["params"]) for group in optimizer.param_groups]

    def groups(value: Any, where: str) -> None:
        list_of(mapping({"params": list_of(whole())}), length=len(counts))(value, where)
        for index, (group, count) in enumerate(zip(value, counts)):
            list_of(whole(), length=count)(group["params"], f"{where}[{index}].params")

    each = {index: mapping({k: like(v) for k, v in state.items()}) for index, state in kept.items()}
    entries = map_of(whole(most=sum(counts) - 1), map_of(text, anything))

    def states(value: Any, where: str) -> None:
        entries(value, where)
        mapping({}, each)(value, where)

    return mapping({"param_groups": groups, "state": states})


def _trial_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """What a step keeps of each parameter, by its number; nothing where a step needs a closure."""
    try:
        trial = copy.deepcopy(optimizer)
        trial.state.clear()
        for group in trial.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        trial.step()
    except (TypeError, RuntimeError):
        return {}
    found: dict[int, dict[str, Any]] = trial.state_dict()["state"]
    return found
