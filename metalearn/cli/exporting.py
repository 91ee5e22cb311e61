"""Trained networks and learners in one file, which is loaded again without the data.

Axes: N support samples, B inputs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from metalearn.cli.exported import KIND, SUPPORT, bare_module, safetensors_of_torch
from metalearn.cli.given_settings import plain_value
from metalearn.cli.loading import trainer_of
from metalearn.cli.networks import kept_weights
from metalearn.cli.run_config import saved_config
from metalearn.cli.run_folders import existing_run
from metalearn.cli.shapes import recorded_shapes
from metalearn.core.checks import check_pair
from metalearn.errors import SettingError
from metalearn.files import replace_file
from metalearn.models import Ensemble
from metalearn.signatures import checked
from metalearn.trainers import Learner, Trainer
from metalearn.trainers.members.trained import trained_state
from metalearn.types import Batch

__all__ = ["ExportFormat", "export"]

ExportFormat = Literal["safetensors", "torch_export"]

_CLOSE = 1e-4  # of the largest output: what a translated program may differ by
_LONGEST = 200  # characters of torch's reasons that a sentence repeats


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
    """Write what a run has trained as one file, whole or not at all; gives its path.

    ``"safetensors"`` holds weights and settings, pure data, for `load_export`; with a support set
    it is the learner adapted to it. Of a run with ``model.frozen_features`` it is what was trained,
    which takes features. ``"torch_export"`` holds the program of a network in
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


def _write_tensors(path: Path, config: DictConfig, trainer: Trainer, support: Batch | None) -> None:
    state = trained_state(trainer.module, trainer.loop.beside)
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    source: Any = getattr(trainer, "tasks", None) or getattr(trainer, "data", None)
    notes = {"format": KIND, "step": str(trainer.step)}
    config = _own_config(config, trainer)
    notes["config"] = OmegaConf.to_yaml(config, resolve=True)
    if not hasattr(trainer, "tasks"):
        shapes = {"kind": source.kind, "input_shape": list(source.input_shape)}
        notes["data"] = json.dumps({**shapes, "outputs": int(source.outputs)})
        _check_rebuilt(config, trainer, notes, tensors)
    if support is not None:
        given = check_pair(support, "support")
        trainer.learner.adapt(given)  # type: ignore[attr-defined]  # or is refused
        tensors |= {n: v.detach().cpu().contiguous() for n, v in zip(SUPPORT, given)}
    data = safetensors_of_torch().save(tensors, metadata=notes)
    replace_file(path, lambda file: file.write(data))


def _own_config(config: DictConfig, trainer: Trainer) -> DictConfig:
    """The settings by which what was trained is made anew, of nothing but the file's tensors."""
    found = copy.deepcopy(kept_weights(config))
    with open_dict(found):
        found.device, found.init_from, found.init_skip = "cpu", None, None
        if hasattr(trainer, "tasks"):
            found.shapes = recorded_shapes(trainer)
        frozen = plain_value(found.model.get("frozen_features"))
        if frozen:  # the network of ``model`` described pictures; this one learnt
            hidden = frozen if isinstance(frozen, list) else []
            found.model = {"_target_": "metalearn.models.MLP", "hidden": hidden}
    return found


def _check_rebuilt(
    config: DictConfig, trainer: Trainer, notes: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a run whose predictions are made of more than a network of its settings."""
    predictive = getattr(trainer, "predictive", None)
    try:
        if predictive is not None and predictive() is not trainer.module:
            raise ValueError("its members are made of more than the weights")
        bare_module(config, notes).load_state_dict(dict(tensors))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        accepted = f"a run of trainer=meta, ensemble or per_sample is needed ({reason})"
        raise SettingError("format", "safetensors", accepted) from error


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
    if not isinstance(predictive, nn.Module) or hasattr(trainer, "train_network"):
        accepted = "a run of trainer=meta, ensemble or per_sample is needed"
        raise SettingError("format", "torch_export", accepted)
    return predictive.eval(), torch.zeros(2, *source.input_shape)


def _write_program(path: Path, module: nn.Module, example: Tensor) -> None:
    """Trace the module for batches of any size, hold it against the module, and write it.

    An ensemble of one architecture is called member after member, which traces.
    """
    traced = _Members(module) if isinstance(module, Ensemble) else _OfOneInput(module)
    batch = torch.export.Dim("batch", min=2)
    try:
        with torch.no_grad():
            program = torch.export.export(traced, (example,), dynamic_shapes=({0: batch},))
            wanted, found = module(example), program.module()(example)
    except Exception as error:  # torch's kinds are many
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())
        accepted = f"torch cannot trace this network ({reason[:_LONGEST]}); safetensors holds it"
        raise SettingError("format", "torch_export", accepted) from error
    apart, size = float((wanted - found).abs().max()), float(wanted.abs().max())
    if not apart <= _CLOSE * max(size, 1e-6):  # NaN is refused too
        accepted = "what torch made of this network predicts otherwise; safetensors holds it"
        raise SettingError("format", "torch_export", accepted)
    replace_file(path, lambda file: torch.export.save(program, file))


class _OfOneInput(nn.Module):
    """A module that may take more than its inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()

    def forward(self, inputs: Tensor) -> Any:
        return self.module(inputs)


class _Members(nn.Module):
    """Members as modules of their own: outputs ``[M, B, ...]``."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.members = nn.ModuleList(ensemble.members()).eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members])
