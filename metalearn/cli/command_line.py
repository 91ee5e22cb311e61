"""``metalearn <command> …``: finds the command and hands its arguments over."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from metalearn.cli.command_table import COMMANDS
from metalearn.cli.completion import FLAGS, completion_script
from metalearn.cli.processes import shared_by_ranks
from metalearn.cli.standard_streams import tolerant_streams
from metalearn.cli.usage import typed
from metalearn.cli.words import with_words
from metalearn.near_names import check_known

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command: ``main(["train", "task=omniglot"])``.

    Args:
        arguments: the name of a command and what it is given; None takes those of this process.

    Raises:
        SystemExit: with the command's exit code; 2 where no command has that name.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        with tolerant_streams():
            print(_help())
        return
    from metalearn.cli.error_messages import one_sentence_errors  # which takes Hydra along

    name, *rest = words
    if name in FLAGS:
        with one_sentence_errors(), tolerant_streams():
            print(completion_script(rest))
        return
    with one_sentence_errors():
        _check_name(name)
    command = COMMANDS[name]
    if command.words is not None:
        with one_sentence_errors():
            rest = with_words(rest, command.words)
    program = sys.argv[0] if arguments is not None else f"{sys.argv[0]} {name}"
    with one_sentence_errors(), shared_by_ranks(name, rest) as own, _called_as(program, own):
        if command.config is None:
            with tolerant_streams():
                command.function()(own)
            return
        from metalearn.cli.hydra_commands import run_command

        run_command(command)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    head = "Meta-learning, ensembles and per-sample gradients on torch.func.\n\nCommands:\n"
    tail = f"\n\n{typed()} <command> --help shows the settings of one."
    return f"{head}\n" + "\n".join(lines) + tail


def _check_name(name: str) -> None:
    check_known("command", name, COMMANDS, "one of {} is needed")


@contextmanager
def _called_as(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """Have Hydra, argparse and the record of the run see a command of its own."""
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before
