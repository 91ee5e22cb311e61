"""Run the scripts inside this process, as a user would from a shell."""

import logging
import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.support.composing import composed_once

ROOT = Path(__file__).parents[2]

TINY = [
    "task=sinusoid",
    "model=mlp",
    "model.hidden=[8]",
    "maml.inner_lr=0.01",
    "trainer.steps=4",
    "trainer.meta_batch=2",
    "trainer.validation_tasks=4",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.progress=false",
    "test_tasks=4",
]


class Outcome:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def call(
    script: str,
    *arguments: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Outcome:
    """Run ``scripts/<script>.py`` with arguments; a traceback would fail the test."""
    path = ROOT / "scripts" / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    composed_once(monkeypatch)
    GlobalHydra.instance().clear()
    capsys.readouterr()
    code = 0
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    finally:  # Hydra leaves handlers that write to this call's streams and folder
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    printed = capsys.readouterr()
    return Outcome(code, printed.out, printed.err)
