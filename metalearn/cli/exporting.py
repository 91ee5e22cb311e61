"""Trained networks and learners in one file, which is loaded again without the data.

Axes: N support samples, B inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from metalearn.cli.building import build
from metalearn.cli.devices import device_of
from metalearn.cli.loading import trainer_of
from metalearn.cli.networks import made_model
from metalearn.cli.run_config import parsed_config, saved_config
from metalearn.cli.run_folders import existing_run
from metalearn.cli.shapes import recorded_shapes
from metalearn.core.checks import check_pair
from metalearn.errors import DataError, SettingError
from metalearn.files import failures_named, replace_file
from metalearn.models import Ensemble
from metalearn.signatures import checked
from metalearn.trainers import Learner, Trainer
from metalearn.trainers.members.trained import load_trained, trained_state
from metalearn.types import Batch

__all__ = ["ExportFormat", "export", "load_export"]

ExportFormat = Literal["safetensors", "torch_export"]

_KIND = "metalearn"
_SUPPORT = ("support.inputs", "support.targets")
_CLOSE = 1e-4  # of the largest output: what a translated program may differ by
_LONGEST = 200  # characters of torch's reasons that a sentence repeats
_NEEDED = "pip install 'torch-metalearn[safetensors]'"


@checked
def export(
    run: str | Path,
    path: str | Path,
    *,
    format: ExportFormat = "safetensors",
    support: Batch | None = None,
    checkpoint: Literal["best", "last"] = "best",
    trust: bool = False,
) -> Path:
    """Write what a run has trained as one file; gives its path.

    ``"safetensors"`` holds weights and settings, pure data, for `load_export`; with a support set
    it is the learner adapted to it. ``"torch_export"`` holds the program of a network in
    evaluation mode, for ``torch.export.load(path).module()``, which needs torch alone; a learner
    is adapted to ``support`` for it, and inputs come in batches of at least two.

    Args:
        run: the folder.
        path: of the file, which is replaced.
        format: see above.
        support: inputs ``[N, ...]`` and targets of one task, where the run is of a learner.
        checkpoint: the state at the best validation, or the last one.
        trust: see `metalearn.load`.

    Raises:
        SettingError: no run there, a format that cannot hold it, and why.
        DataError: a run that cannot be read; safetensors is not installed.
        OSError: the file cannot be written.
    """
    if format not in get_args(ExportFormat):
        accepted = f"one of {', '.join(get_args(ExportFormat))} is needed"
        raise SettingError("format", format, accepted)
    if checkpoint not in ("best", "last"):
        raise SettingError("checkpoint", checkpoint, "best or last is needed")
    folder, path = existing_run(str(run), "run"), Path(path)
    config = saved_config(folder, trust=trust)
    trainer = trainer_of(folder, config, checkpoint, "cpu", deferred=True)
    learner = getattr(trainer, "learner", None)
    if support is not None and learner is None:
        raise SettingError("support", "a support set", "None is needed: the run has no learner")
    if format == "torch_export":
        _write_program(path, *_predictor(trainer, learner, support))
    else:
        _write_tensors(path, config, trainer, support)
    return path


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
    config = parsed_config(notes["config"], path, trust=trust)
    config.device = str(where)
    support = [tensors.pop(name).to(where) for name in _SUPPORT if name in tensors]
    if "task" not in config:
        module = _bare_module(config, notes).to(where)
        _put(path, module, None, tensors)
        return module.eval()
    trainer = build(config, folder=None, deferred=True)
    _put(path, trainer.module, trainer.loop.beside, tensors)
    learner: Learner = trainer.learner  # type: ignore[attr-defined]
    if not support:
        return learner
    return learner.adapt((support[0], support[1]))


def _write_tensors(path: Path, config: DictConfig, trainer: Trainer, support: Batch | None) -> None:
    state = trained_state(trainer.module, trainer.loop.beside)
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    source: Any = getattr(trainer, "tasks", None) or getattr(trainer, "data", None)
    notes = {"format": _KIND, "step": str(trainer.step)}
    with open_dict(config):
        config.device = "cpu"
        if hasattr(trainer, "tasks"):
            config.shapes = recorded_shapes(trainer)
    notes["config"] = OmegaConf.to_yaml(config, resolve=True)
    if not hasattr(trainer, "tasks"):
        shapes = {"kind": source.kind, "input_shape": list(source.input_shape)}
        notes["data"] = json.dumps({**shapes, "outputs": int(source.outputs)})
        _check_rebuilt(config, trainer, notes, tensors)
    if support is not None:
        given = check_pair(support, "support")
        trainer.learner.adapt(given)  # type: ignore[attr-defined]  # or is refused
        tensors |= {n: v.detach().cpu().contiguous() for n, v in zip(_SUPPORT, given)}
    data = _safetensors().save(tensors, metadata=notes)
    replace_file(path, lambda file: file.write(data))


def _check_rebuilt(
    config: DictConfig, trainer: Trainer, notes: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a run whose predictions are made of more than a network of its settings."""
    predictive = getattr(trainer, "predictive", None)
    try:
        if predictive is not None and predictive() is not trainer.module:
            raise ValueError("its members are made of more than the weights")
        _bare_module(config, notes).load_state_dict(dict(tensors))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        accepted = f"a run of trainer=meta, ensemble or per_sample is needed ({reason})"
        raise SettingError("format", "safetensors", accepted) from error


def _bare_module(config: DictConfig, notes: Mapping[str, str]) -> nn.Module:
    """The network, or networks, of a run on samples, without its data."""
    known = json.loads(notes["data"])
    source = SimpleNamespace(**{**known, "input_shape": tuple(known["input_shape"])})
    return made_model(config, source, None)


def _put(path: Path, module: nn.Module, beside: nn.Module | None, tensors: Any) -> None:
    try:
        load_trained(module, beside, tensors)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:_LONGEST]
        raise DataError(f"{path}: its weights do not fit its settings ({reason})") from error


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    _safetensors()
    from safetensors import safe_open

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library's own kind of error, or the system's
        raise DataError(f"{path}: this file holds no safetensors") from error
    if notes.get("format") != _KIND or "config" not in notes:
        raise DataError(f"{path}: this file was not written by metalearn.export")
    if any(v.is_floating_point() and not bool(v.isfinite().all()) for v in tensors.values()):
        raise DataError(f"{path}: it has numbers that are not finite")
    return tensors, notes


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise DataError(f"safetensors is needed for this format: {_NEEDED}") from error
    return safetensors.torch


def _predictor(
    trainer: Trainer, learner: Learner | None, support: Batch | None
) -> tuple[nn.Module, Tensor]:
    """What predicts, and an example of its inputs, a batch of two."""
    if learner is not None:
        if support is None:
            accepted = "a support set is needed: torch_export holds a learner that is adapted"
            raise SettingError("support", None, accepted)
        module = learner.adapt(support)
        return module, support[0][:1].repeat(2, *[1] * (support[0].dim() - 1))
    source: Any = trainer.data  # type: ignore[attr-defined]
    predictive: Any = getattr(trainer, "predictive", lambda: trainer.module)()
    if not isinstance(predictive, nn.Module):
        accepted = "a run of trainer=meta, ensemble or per_sample is needed"
        raise SettingError("format", "torch_export", accepted)
    return predictive.eval(), torch.zeros(2, *source.input_shape)


def _write_program(path: Path, module: nn.Module, example: Tensor) -> None:
    """Trace the module for batches of any size, hold it against the module, and write it.

    An ensemble of one architecture is called member after member, which traces.
    """
    traced = _Members(module) if isinstance(module, Ensemble) else module
    batch = torch.export.Dim("batch", min=2)
    try:
        with torch.no_grad():
            program = torch.export.export(traced, (example,), dynamic_shapes=({0: batch},))
            wanted, found = module(example), program.module()(example)
    except Exception as error:  # torch's kinds are many
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())
        accepted = f"torch cannot trace this network ({reason[:_LONGEST]}); safetensors holds it"
        raise SettingError("format", "torch_export", accepted) from error
    if float((wanted - found).abs().max()) > _CLOSE * max(float(wanted.abs().max()), 1e-6):
        accepted = "what torch made of this network predicts otherwise; safetensors holds it"
        raise SettingError("format", "torch_export", accepted)
    with failures_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path)


class _Members(nn.Module):
    """Members as modules of their own: outputs ``[M, B, ...]``."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.members = nn.ModuleList(ensemble.members()).eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members])
