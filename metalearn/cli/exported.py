"""What was exported as safetensors, made anew of its settings and weights, without the data.

Axes: N support samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from metalearn.cli.building import build, groups_of
from metalearn.cli.devices import device_of
from metalearn.cli.given_settings import plain_value
from metalearn.cli.networks import kept_weights, made_model
from metalearn.cli.run_config import parsed_config
from metalearn.core import per_sample_module
from metalearn.errors import DataError
from metalearn.schema import Kind, choice, like, list_of, mapping, whole
from metalearn.signatures import checked
from metalearn.trainers import Learner
from metalearn.trainers.members.trained import load_trained, trained_state

__all__ = ["KIND", "SUPPORT", "bare_module", "load_export", "safetensors_of_torch"]

KIND = "metalearn"
"""What the notes of a file of ours say of its format."""
SUPPORT = ("support.inputs", "support.targets")
"""Names of the tensors of a support set."""

_LONGEST = 200  # characters of a reason that a sentence repeats
_NEEDED = "pip install 'torch-metalearn[safetensors]'"
_DATA: Kind = mapping(
    {
        "kind": choice("classification", "regression"),
        "input_shape": list_of(whole(1), most=8),
        "outputs": whole(1),
    }
)
"""What the notes say of the samples of a run without tasks."""


@checked
def load_export(
    path: str | Path, *, device: str | torch.device = "cpu", trust: bool = False
) -> Learner | nn.Module:
    """What `export` wrote as safetensors, made anew of its settings and weights, without data.

    A learner, to `adapt`; where a support set was given, the module that is adapted to it; else an
    `Ensemble` or a network, in evaluation mode.

    Args:
        path: of the file.
        device: where to put it.
        trust: whether the settings in the file may name any importable object to be called.

    Raises:
        DataError: no such file, or settings that are none of ours.
    """
    path, where = Path(path), device_of(str(device))
    tensors, notes = _read_tensors(path)
    config = kept_weights(parsed_config(notes["config"], path, trust=trust))
    config.device = str(where)
    support = [tensors.pop(name).to(where) for name in SUPPORT if name in tensors]
    tasks = "task" in groups_of(config)
    if len(support) not in (0, 2 if tasks else 0):
        raise DataError(f"{path}: it has a part of a support set, or one for no learner")
    if not tasks:
        with _named(path, "its settings make no network"):
            module = bare_module(config, notes).to(where)
        _put(path, module, None, tensors)
        return module.eval()
    with _named(path, "its settings make no learner"):
        if config.get("shapes") is None or config.model.get("frozen_features"):
            raise DataError("they do not say what its tasks are like")
        trainer = build(config, folder=None, deferred=True)
        learner: Learner = trainer.learner  # type: ignore[attr-defined]
    _put(path, trainer.module, trainer.loop.beside, tensors)
    if not support:
        return learner
    with _named(path, "its learner cannot adapt to its support set"):
        return learner.adapt((support[0], support[1]))


def bare_module(config: DictConfig, notes: Mapping[str, str]) -> nn.Module:
    """The network, or networks, of a run on samples, without its data."""
    known = json.loads(notes["data"])
    _DATA(known, "data")
    source = SimpleNamespace(**{**known, "input_shape": tuple(known["input_shape"])})
    module = made_model(config, source, None)
    policy = plain_value(config.trainer.get("batch_norm"))
    return module if policy is None else per_sample_module(module, batch_norm=policy)


def safetensors_of_torch() -> Any:
    """The library that writes and reads these files.

    Raises:
        DataError: it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise DataError(f"safetensors is needed for this format: {_NEEDED}") from error
    return safetensors.torch


def _put(
    path: Path, module: nn.Module, beside: nn.Module | None, tensors: dict[str, Tensor]
) -> None:
    with _named(path, "its weights do not fit its settings"):
        like(trained_state(module, beside))(tensors, "")
        load_trained(module, beside, tensors)


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """Whatever a file's contents make fail, in one sentence."""
    try:
        yield
    except Exception as error:  # settings and weights of someone else's may fail in any way
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise DataError(f"{path}: {what} ({reason})") from error


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors_of_torch()
    from safetensors import safe_open

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library's own kind of error, or the system's
        raise DataError(f"{path}: this file holds no safetensors") from error
    if notes.get("format") != KIND or "config" not in notes:
        raise DataError(f"{path}: this file was not written by metalearn.export")
    if any(v.is_floating_point() and not bool(v.isfinite().all()) for v in tensors.values()):
        raise DataError(f"{path}: it has numbers that are not finite")
    return tensors, notes
