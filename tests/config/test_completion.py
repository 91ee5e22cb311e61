"""``metalearn`` completes its commands, and of each the settings and choices that Hydra knows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.cli import main

BASH = shutil.which("bash")
CASES = [
    ("metalearn ev", {"evaluate"}),
    ("metalearn ", {"train", "tour", "report"}),
    ("metalearn train trainer=priv", {"trainer=private", "trainer=private_meta"}),
    ("metalearn train seed=1 maml.inner_l", {"maml.inner_lr="}),
    ("metalearn evaluate ru", {"run="}),
]


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_words_are_completed_as_bash_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--shell-completion", "install=bash"])
    lines = [f'metalearn() {{ "{sys.executable}" -m metalearn "$@"; }}', capsys.readouterr().out]
    for line, _ in CASES:
        words = [*line.split(), *([""] if line.endswith(" ") else [])]
        quoted = " ".join(f'"{word}"' for word in words)
        lines.append(f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE="{line}"')
        lines.append(f"COMP_POINT={len(line)}; COMPREPLY=(); _metalearn")
        lines.append('echo "${COMPREPLY[@]}"')
    assert BASH is not None
    command = [BASH, "--norc", "-c", "\n".join(lines)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = found.stdout.splitlines()
    assert len(rows) == len(CASES)
    for row, (line, wanted) in zip(rows, CASES):
        begin = line.rpartition(" ")[2]
        assert wanted <= set(row.split()), line
        assert all(word.startswith(begin) for word in row.split()), line
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["install=fish"], [], ["query=bash"], ["install=bash", "train"]):
        with pytest.raises(SystemExit) as ended:
            main(["--shell-completion", *words])
        assert ended.value.code == 2
        assert "install=bash is needed" in capsys.readouterr().err
