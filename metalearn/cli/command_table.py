"""All commands. A new one is a file in `metalearn.cli.commands` and a line here.

Commands are named, not imported, so that a list of them costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """What ``metalearn <name>`` and ``scripts/<name>.py`` do.

    Attributes:
        name: typed after ``metalearn``.
        summary: one line of ``metalearn --help``.
        place: ``"module:function"``. The function takes the composed configuration; without a
            ``config`` it takes the arguments as a list of texts.
        config: name of the YAML in ``conf/`` that the settings are composed from. The module then
            has a function ``check(config, given)`` beside the command, which refuses settings
            before a folder is made.
        words: setting that is a list of the words which are no settings, ``setting=[word,word]``.
    """

    name: str
    summary: str
    place: str
    config: str | None = None
    words: str | None = None

    def function(self) -> Callable[[Any], Any]:
        """The function, imported now."""
        module, _, name = self.place.partition(":")
        found: Callable[[Any], Any] = getattr(import_module(module), name)
        return found

    def check(self) -> Callable[[Any, Any], None]:
        """The check of its settings, imported now."""
        found: Callable[[Any, Any], None] = import_module(self.place.partition(":")[0]).check
        return found


def _command(
    name: str, summary: str, function: str, config: str | None = None, words: str | None = None
) -> Command:
    return Command(name, summary, f"metalearn.cli.commands.{name}:{function}", config, words)


COMMANDS = {
    command.name: command
    for command in (
        _command("train", "train a meta-learner, an ensemble or a network", "train", "train"),
        _command("evaluate", "score a trained run", "evaluate", "evaluate"),
        _command("compare", "put runs side by side", "compare", "compare", words="runs"),
        _command("report", "one page of runs, to be mailed", "report", "report", words="run"),
        _command("diagnose", "gradients and curvature of a trained run", "diagnose", "diagnose"),
        _command("attribute", "which examples made a run's network", "attribute_run", "attribute"),
        _command("audit", "whether a private run is as private as it says", "audit", "audit"),
        _command("export", "write a trained run as one file", "export_run", "export"),
        _command("benchmark", "measure speed and memory beside peers", "benchmark", "benchmark"),
        _command("reproduce", "train and test rows of the ledger of reproductions", "reproduce"),
        _command("study", "try attribution and hypergradients against what else would do", "study"),
        _command("tour", "walk through the mathematics, each line computed twice", "take_tour"),
    )
}
"""By name, in the order of ``metalearn --help``."""
