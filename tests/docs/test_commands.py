"""Commands and settings that README and the pages name are there."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from metalearn.cli.command_table import COMMANDS as TABLE
from metalearn.cli.command_table import Command
from metalearn.tracking.backends import BACKENDS
from tests.docs.pages import CONF, PAGES, ROOT, blocks, code_spans, commands, name
from tests.support.commands import Outcome

COMMANDS = sorted({command for page in PAGES for command in commands(page)})
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
SPANS = sorted({(name(page), span) for page in PAGES for span in code_spans(page)})


def _launcher(plugins: Plugins, **given: Any) -> BasicLauncher:
    launcher = BasicLauncher()
    launcher.setup(**given)
    return launcher


@pytest.fixture(autouse=True)
def checked_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands end where what they do would begin; there are runs to name, and a sweep."""

    def stop(given: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(Command, "function", lambda self: stop)
    monkeypatch.setattr(Plugins, "instantiate_launcher", _launcher)  # whichever is named
    for kind in BACKENDS.values():  # and of optional packages none has to be there
        monkeypatch.setattr(kind, "package", None)
    saved = ROOT / "tests" / "saved_runs" / "v1" / "meta_sinusoid-finished"
    for folder in ("mine", "other", "sweep-mine/0"):
        shutil.copytree(saved, tmp_path / "outputs" / folder)
    (own,) = (b for b in blocks(ROOT / "docs" / "your-own.md", "python") if "# mine.py" in b)
    (tmp_path / "mine.py").write_text(own)
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which the current folder is added
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, that optuna uses
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command: str, run: Callable[..., Outcome], tmp_path: Path) -> None:
    _, script, *arguments = shlex.split(command, comments=True)
    # Tests run on machines without the card that a page is written for.
    arguments = ["device=cpu" if a.startswith("device=cuda") else a for a in arguments]
    if Path(script).stem == "attribute" and "training_tasks" not in command:  # on labelled data
        shutil.rmtree(tmp_path / "outputs" / "mine")
        saved = ROOT / "tests" / "saved_runs" / "v1" / "ensemble-finished"
        shutil.copytree(saved, tmp_path / "outputs" / "mine")
    if Path(script).stem == "audit":  # of a private run; its configuration alone is looked at
        config = tmp_path / "outputs" / "mine" / "config.yaml"
        saved = ROOT / "tests" / "saved_runs" / "v1" / "per_sample-finished" / "config.yaml"
        config.write_text(saved.read_text().replace("PerSampleTrainer", "PrivateTrainer"))
    assert (ROOT / script).is_file()
    outcome = run(Path(script).stem, *arguments)
    assert outcome.code == 0, outcome.err
    assert "error: " not in outcome.err


def test_a_misspelt_command_is_not(run: Callable[..., Outcome]) -> None:
    assert run("train", "trainer.stepz=5").code == 2


def test_commands_are_found() -> None:
    assert {shlex.split(line)[1] for line in COMMANDS} == {f"scripts/{name}.py" for name in TABLE}


def settings_of(group: str) -> set[str]:
    """Names of all settings that choices of a group have, or take from another group."""
    found: set[str] = set()
    for path in (CONF / group).glob("*.yaml"):
        choice = OmegaConf.load(path)
        found |= {str(key) for key in choice}
        for default in OmegaConf.select(choice, "defaults", default=[]):
            for source in default if OmegaConf.is_dict(default) else ():
                if str(source).endswith("@_here_"):
                    found |= settings_of(str(source).strip("/").removesuffix("@_here_"))
    return found


def unknown(span: str) -> str:
    """The first ``group=choice`` or ``group.setting=`` of a span that ``conf`` does not have."""
    for word in span.split():
        found = re.match(rf"({'|'.join(GROUPS)})(\.?)([a-z_]*)(=?)(\w*)", word.lstrip("'"))
        if not found or "(" in word:
            continue
        group, dot, setting, equals, choice = found.groups()
        if dot and equals and setting not in {*settings_of(group), "_target_"}:
            return word
        if not dot and not setting and choice and not (CONF / group / f"{choice}.yaml").is_file():
            return word
    return ""


@pytest.mark.parametrize("page", [name(page) for page in PAGES])
def test_settings_in_prose_are_there(page: str) -> None:
    assert [unknown(span) for where, span in SPANS if where == page and unknown(span)] == []


def test_what_is_not_there_is_noticed() -> None:
    assert unknown("trainer.stepz=5") and unknown("trainer=metta") and unknown("maml.lr=1")
    assert not unknown("trainer.steps=5") and not unknown("trainer=meta")
