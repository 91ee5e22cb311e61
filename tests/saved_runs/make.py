"""How the saved runs were made: ``python -m tests.saved_runs.make v2``.

Written for the commits whose runs they are (v1: the last one before runs had versions; v2: one of
the first with learners as a group of settings; v3: the first with real targets; v4: one of the
first that train step sizes beside the weights; v5: the first of the family of learners; v6: one of
the first with private training; v7: the first with private batches that grow, a private validation
split and private meta-learners) and kept as the record of what stands in them. A
version has the runs alone that it added. Each run is trained for 40 steps; ``interrupted`` is the
same run told to stop by SIGTERM at step 20. ``expected.pt`` has, in float64, what the state that is
on disk scores, and for an interrupted run the state and the scores after the 20 steps that were
left.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from metalearn.trainers.loop.loop import Loop
from tests.saved_runs.double import (
    PICTURES,
    copy_of,
    draw_pictures,
    float64,
    scores,
    spent,
    states,
    trainer_at,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEPS = 40

_LOOP = [
    f"trainer.steps={STEPS}",
    "trainer.eval_every=10",
    "trainer.checkpoint_every=10",
    "trainer.log_every=10",
    "trainer.progress=false",
    "device=cpu",
]
_META = [*_LOOP, "trainer.meta_batch=4", "trainer.validation_tasks=8", "test_tasks=12"]
_SINE = ["task=sinusoid", "model=mlp", "model.hidden=[8]", "maml.inner_lr=0.01", *_META]
_DIGITS = ["data=digits", "model.hidden=[8]", "trainer.batch_size=32", *_LOOP]
_PICTURES = [
    *_META,
    "task=folder",
    "task.root={pictures}",
    "task.way=2",
    "task.query=3",
    "task.channels=1",
    "task.image_size=16",
    "model=conv4",
    "model.filters=3",
]
_V1 = {
    "meta_sinusoid": [*_SINE, "trainer.diagnostics=[gradient_norms,noise_scale]"],
    "meta_mixed_adamw": [
        *_SINE,
        "maml.inner_optimizer=adam",
        "maml.method=mixed",
        "maml.inner_steps=2",
        "optimizer._target_=torch.optim.AdamW",
        "+optimizer.weight_decay=0.01",
    ],
    "meta_members": [*_SINE, "trainer.members=2", "maml.first_order=true"],
    "meta_pictures": _PICTURES,
    "ensemble": [
        "trainer=ensemble",
        *_DIGITS,
        "trainer.members=3",
        "trainer.lr={low:1e-3,high:1e-1}",
        "trainer.max_shift=1",
    ],
    "per_sample": ["trainer=per_sample", *_DIGITS, "trainer.noise_multiplier=0.1"],
    "mc_dropout": ["trainer=mc_dropout", *_DIGITS, "trainer.members=3"],
    "batch_ensemble": ["trainer=batch_ensemble", *_DIGITS, "trainer.members=3"],
    "snapshot": ["trainer=snapshot", *_DIGITS, "trainer.members=4"],
    "swag": [
        "trainer=swag",
        *_DIGITS,
        "trainer.members=3",
        "trainer.start=0.25",
        "trainer.every=5",
    ],
}
_PROTONET = ["learner=protonet", *_PICTURES, "learner.features=4"]
_V2 = {
    "meta_protonet": [*_PROTONET, "task.way={train: 3, validation: 2, test: 2}"],
    "meta_protonet_members": [*_PROTONET, "trainer.members=2"],
    "meta_fomaml": ["learner=fomaml", *_SINE, "trainer.diagnostics=[gradient_norms]"],
    "meta_multi_step": [
        "learner=multi_step",
        *_SINE,
        "maml.inner_steps=2",
        "learner.weights=[0.2,0.3,0.5]",
        "learner.anneal=30",
    ],
}
_WAVES = ["data=waves", "data.samples=200", "model.hidden=[8]", "trainer.batch_size=32", *_LOOP]
_V3 = {
    "regression": ["trainer=ensemble", *_WAVES, "trainer.members=3", "data.targets=2"],
    "regression_swag": [
        "trainer=swag",
        *_WAVES,
        "trainer.members=3",
        "trainer.start=0",
        "trainer.every=5",
        "optimizer.lr=0.01",
    ],
    "per_sample_regression": ["trainer=per_sample", *_WAVES, "trainer.loss=mse"],
}
_V4 = {
    "meta_learnt_rates": [
        *_SINE,
        "maml.inner_steps=2",
        "maml.inner_momentum=0.5",
        "maml.learn=[lr,momentum]",
        "maml.lr_per=parameter_and_step",
    ],
    "meta_learnt_members": [
        *_SINE,
        "maml.inner_steps=2",
        "maml.inner_optimizer=adamw",
        "maml.inner_betas=[0.8,0.9]",
        "maml.inner_weight_decay=0.01",
        "maml.learn=[lr,betas,weight_decay]",
        "maml.lr_per=step",
        "trainer.members=2",
        "trainer.clip=1.0",
    ],
}
_FEATURES = [*_PICTURES, "learner.features=4"]
_V5 = {
    "meta_sgd_members": ["learner=meta_sgd", *_SINE, "trainer.members=2"],
    "meta_cavia": ["learner=cavia", *_SINE, "learner.context_size=2", "trainer.average=0.9"],
    "meta_mamlpp": [
        "learner=mamlpp",
        *_PICTURES,
        "maml.inner_steps=2",
        "learner.multi_step_steps=30",
        "learner.first_order_steps=5",
        "learner.affine_per_step=true",
        "learner.statistics_per_step=true",
    ],
    "meta_anil_running": [
        "learner=anil",
        *_PICTURES,
        "maml.norm=running",
        "trainer.select_by=inductive",
    ],
    "meta_protomaml": ["learner=protomaml", *_FEATURES, "maml.inner_lr=0.05"],
    "meta_r2d2": ["learner=r2d2", *_FEATURES, "task.way={train: 3, validation: 2, test: 2}"],
    "meta_rfs": ["learner=rfs", *_FEATURES, "learner.batch_size=8"],
}
_PRIVATE = ["trainer=private", *_DIGITS, "trainer.epsilon=null", "trainer.noise_multiplier=1.5"]
_V6 = {
    "private": [*_PRIVATE, "trainer.noise=seeded", "trainer.max_shift=1"],
    "private_secure": _PRIVATE,
}
_SEEDED = [*_PRIVATE, "trainer.noise=seeded"]
_V7 = {
    "private_quantile": [*_SEEDED, "trainer.clip_quantile=0.5", "trainer.validation=noisy"],
    "private_bands": [
        *_SEEDED,
        "trainer.noise_bands=4",
        "optimizer._target_=torch.optim.SGD",
        "trainer.schedule=constant",
    ],
    "private_growth": [
        *_SEEDED,
        "trainer.accountant=rdp",
        "trainer.batch_growth={most: 128, window: 4}",
    ],
    "meta_private": [
        *_SINE,
        "trainer=private_meta",
        "trainer.users=200",
        "trainer.epsilon=null",
        "trainer.noise_multiplier=1.0",
        "trainer.noise=seeded",
        "trainer.validation=public",
    ],
}
ADDED = {"v1": _V1, "v2": _V2, "v3": _V3, "v4": _V4, "v5": _V5, "v6": _V6, "v7": _V7}
"""By version, the runs that it added."""
RUNS = _V1 | _V2 | _V3 | _V4 | _V5 | _V6 | _V7


def with_pictures(settings: list[str], pictures: Path) -> list[str]:
    """The settings of a run with the folder of its pictures in them."""
    return [setting.replace("{pictures}", str(pictures)) for setting in settings]


def train(arguments: list[str], folder: Path, *, stop_at: int | None) -> None:
    """Run ``scripts/train.py`` in this process."""
    taken = Loop._take_step

    def step(self: Any, *args: Any) -> None:
        taken(self, *args)
        if self.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    GlobalHydra.instance().clear()
    script = str(ROOT / "scripts" / "train.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_take_step", step)
        patch.setattr(sys, "argv", [script, *arguments, f"hydra.run.dir={folder}"])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ending:
            if ending.code != 128 + signal.SIGTERM:
                raise


def keep(folder: Path, place: Path, pictures: Path) -> None:
    """The part of a run's folder that loading, scoring and resuming read."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "checkpoints").mkdir(parents=True)
    config = (folder / "config.yaml").read_text().replace(str(pictures), PICTURES)
    (place / "config.yaml").write_text(config)
    kept = ["checkpoints/best.pt", "checkpoints/last.pt", "metrics.jsonl"]
    for name in [*kept, "privacy.jsonl", "privacy.validation.jsonl"]:
        if (folder / name).exists():
            shutil.copy(folder / name, place / name)
    if (folder / "results.json").exists():
        results = (folder / "results.json").read_text().replace(str(folder), place.name)
        (place / "results.json").write_text(results)


def expected(folder: Path, *, interrupted: bool) -> dict[str, Any]:
    """What this commit makes of a saved run, in float64."""
    found: dict[str, Any] = {}
    with float64():
        for checkpoint in ("best", "last"):
            trainer = trainer_at(folder, checkpoint)
            found[checkpoint] = {"step": trainer.step, "scores": scores(trainer)}
            if hasattr(trainer, "account"):
                found[checkpoint]["privacy"] = spent(trainer)
        if interrupted:
            trainer.fit()
            found["after"] = {"step": trainer.step, **states(trainer), "scores": scores(trainer)}
            if hasattr(trainer, "account"):
                found["after"]["privacy"] = spent(trainer)
            trainer.load_best()
            found["after_best"] = {"step": trainer.best_step, "value": trainer.best_value}
    return found


def main(version: str) -> None:
    """Make the runs that a version added."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = draw_pictures(Path(scratch) / "pictures")
        for name, settings in ADDED[version].items():
            arguments = with_pictures(settings, pictures)
            for ending, stop_at in (("finished", None), ("interrupted", STEPS // 2)):
                folder = Path(scratch) / f"{name}-{ending}"
                train(arguments, folder, stop_at=stop_at)
                place = HERE / version / f"{name}-{ending}"
                keep(folder, place, pictures)
                copy = copy_of(place, Path(scratch) / "copies" / f"{name}-{ending}" / "run")
                torch.save(expected(copy, interrupted=stop_at is not None), place / "expected.pt")


if __name__ == "__main__":
    main(sys.argv[1])
