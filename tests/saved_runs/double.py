"""Saved runs in float64: what they score, and where they go from where they stopped.

In float64 an engine, a chunk or a thread more or less moves results by 1e-12, so that what a commit
computes can be held against what an earlier one did.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from metalearn.cli.loading import trainer_of
from metalearn.cli.run_config import saved_config
from metalearn.core.tree import tree_map
from metalearn.data import ClassificationData, RegressionData
from metalearn.tasks import FewShotTasks, SinusoidTasks

PICTURES = "PICTURES"  # stands in a saved config.yaml for the folder of `draw_pictures`


def draw_pictures(root: Path) -> Path:
    """Ten folders of six digits each."""
    digits = load_digits()
    for label in range(10):
        folder = root / f"digit{label}"
        folder.mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == label][:6]):
            Image.fromarray((pixels * 15).astype("uint8")).save(folder / f"{number}.png")
    return root


def copy_of(saved: Path, folder: Path) -> Path:
    """A copy of a saved run, with pictures where its configuration looks for them."""
    shutil.copytree(saved, folder)
    path = folder / "config.yaml"
    text = path.read_text()
    if PICTURES in text:
        path.write_text(text.replace(PICTURES, str(draw_pictures(folder.parent / "pictures"))))
    return folder


@contextmanager
def float64() -> Iterator[None]:
    """New modules, labelled data and tasks are float64."""
    draws = [
        (SinusoidTasks, "sample"),
        (FewShotTasks, "sample"),
        (FewShotTasks, "training_samples"),
        (ClassificationData, "take"),
        (RegressionData, "take"),
    ]

    def doubled(values: Any) -> Any:
        return tree_map(lambda x: x.double() if x.is_floating_point() else x, values)

    with pytest.MonkeyPatch.context() as patch:
        for kind, name in draws:
            method = getattr(kind, name)
            patch.setattr(kind, name, lambda *a, method=method, **k: doubled(method(*a, **k)))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def trainer_at(folder: Path, checkpoint: str) -> Any:
    """The trainer of a run's folder at a checkpoint; call it inside `float64`."""
    return trainer_of(folder, saved_config(folder), checkpoint, "cpu")


def scores(trainer: Any) -> dict[str, Any]:
    """What the test split gives."""
    reports = trainer.reports(tasks=12)
    return {name: report.as_json() for name, report in reports.items()}


def states(trainer: Any) -> dict[str, dict[str, torch.Tensor]]:
    """A copy of the module's state, and of what is learnt beside it where something is."""
    found = {"state": trainer.module, "learnt": trainer.loop.beside}
    return {
        name: {k: v.clone() for k, v in module.state_dict().items()}
        for name, module in found.items()
        if module is not None
    }


def spent(trainer: Any) -> dict[str, Any]:
    """What a private training says that it has cost."""
    summary: dict[str, Any] = trainer.results()["privacy"]
    return {name: summary[name] for name in ("epsilon", "delta", "neighbours", "noise", "steps")}
