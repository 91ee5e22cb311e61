"""Completion of ``metalearn <command> setting=…`` in bash, by what Hydra knows of each command."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.cli.command_table import COMMANDS
from metalearn.errors import SettingError

__all__ = ["FLAGS", "completion_script"]

FLAGS = ("-sc", "--shell-completion")
"""As Hydra has them for a command: ``metalearn --shell-completion install=bash``."""

_SCRIPT = r"""_metalearn()
{
    local command="${COMP_WORDS[1]}" word="${COMP_WORDS[COMP_CWORD]}" line known
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "<commands>" -- "$word"))
        return
    fi
    case " <composed> " in *" $command "*) ;; *) return ;; esac
    line="${COMP_LINE#*"${COMP_WORDS[0]}"}"
    line="metalearn${line#*"$command"}"
    known="$(
        export COMP_LINE="$line" COMP_POINT="${#line}"
        "${COMP_WORDS[0]}" "$command" -sc query=bash 2> /dev/null
    )"
    COMPREPLY=($(compgen -o nospace -o default -W "$known" -- "$word"))
}
COMP_WORDBREAKS="${COMP_WORDBREAKS//=}"
COMP_WORDBREAKS="${COMP_WORDBREAKS//:}"
complete -o nospace -o default -F _metalearn metalearn
"""


def completion_script(words: Sequence[str]) -> str:
    """What a shell evaluates to complete the words of ``metalearn``.

    Args:
        words: after the flag.

    Raises:
        SettingError: another shell, or something else than to install.
    """
    if list(words) != ["install=bash"]:
        accepted = "install=bash is needed; zsh takes that after bashcompinit"
        raise SettingError("--shell-completion", " ".join(words) or None, accepted)
    composed = [name for name, command in COMMANDS.items() if command.config is not None]
    script = _SCRIPT.replace("<commands>", " ".join(COMMANDS))
    return script.replace("<composed>", " ".join(composed)).rstrip()
