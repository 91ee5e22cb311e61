"""Trainers plan once how meta-gradients are taken, say it, keep it, and answer a lack of memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.errors import SettingError
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MetaLearner, MetaTrainer
from metalearn.trainers.meta import network
from tests.support.builders import sinusoid_trainer


def test_the_plan_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer = sinusoid_trainer()
        trainer.gradient(0)
        trainer.validate()
    lines = [r.getMessage() for r in caplog.records if "meta-gradient:" in r.getMessage()]
    assert len(lines) == 1
    assert "method reverse, engine batched, all tasks at once, about " in lines[0]


def test_a_resumed_run_keeps_its_plan(tmp_path: Path) -> None:
    trainer = sinusoid_trainer(maml=MAML(inner_lr=0.01, engine="loop"), folder=tmp_path)
    trainer.gradient(0)
    path = trainer.save("last")
    assert path is not None
    later = sinusoid_trainer(folder=tmp_path)
    later.resume(path)
    assert later.learner.plan is not None and later.learner.plan.engine == "loop"


def test_a_budget_that_nothing_fits_names_the_setting() -> None:
    trainer = sinusoid_trainer(maml=MAML(inner_lr=0.01, memory="1kB"))
    with pytest.raises(SettingError, match=r"^maml\.memory='1 kB': at least .* is needed, with"):
        trainer.gradient(0)


@pytest.mark.parametrize("value", ["lots", "0GB", -1, "8 parsecs"])
def test_a_budget_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^memory=.*such as 8GB"):
        MAML(memory=value)


def test_out_of_memory_is_answered_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = sinusoid_trainer(meta_batch=8)
    trainer.gradient(0)

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(network, "meta_gradient", fails)
    message = r"^out of memory with method reverse, 8 of 8 tasks at a time; about .* would do with "
    with pytest.raises(MemoryError, match=message + r"maml\.method=\w+ maml\.chunk_size=[1-7]$"):
        trainer.gradient(1)


def test_recurrent_layers_run_on_the_loop_and_the_plan_says_why() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.lstm(x[:, None])[0][:, -1])
            return out

    waves = SinusoidTasks(shot=4, query=4)
    trainer = MetaTrainer(Net(), waves, maml=MAML(inner_lr=0.01), meta_batch=2, validation_tasks=2)
    trainer.gradient(0)
    plan = trainer.learner.plan
    assert plan is not None and plan.engine == "loop" and "vmap cannot take" in plan.notes[0]
    with pytest.raises(SettingError, match="vmap cannot take"):
        MetaLearner(Net(), MAML(engine="vmap"), kind="regression")


def test_first_order_and_an_exact_method_contradict_one_another() -> None:
    with pytest.raises(SettingError, match=r"^method='mixed': auto is needed with first_order"):
        MAML(first_order=True, method="mixed")
