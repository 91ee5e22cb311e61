"""What holds for every test, whatever started them."""

from __future__ import annotations

import gc
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.commands import Outcome, call
from tests.support.composing import parsed_once


def pytest_configure(config: pytest.Config) -> None:
    """Let absl hold no stream of pytest, which it would close where logging is configured anew."""
    with suppress(ImportError):
        handler = import_module("absl.logging").get_absl_handler().python_handler
        handler.setStream(sys.__stderr__)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no walk of the collector takes half a second for them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _hangups_are_heard() -> Iterator[None]:
    """As in a terminal: what runs under nohup ignores them, and so would all that it starts."""
    number = getattr(signal, "SIGHUP", None)  # none on Windows
    if number is None or signal.getsignal(number) != signal.SIG_IGN:
        yield
        return
    signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True, scope="session")
def _yamls_are_parsed_once() -> Iterator[None]:
    with parsed_once():
        yield


@pytest.fixture(autouse=True)
def _levels_of_logging_stay() -> Iterator[None]:
    """What a command in this process asks to be logged is not asked of the next test."""
    loggers = [logging.getLogger(name) for name in (None, "metalearn")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels):
        logger.setLevel(level)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """``run(script, *arguments)``: a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command
