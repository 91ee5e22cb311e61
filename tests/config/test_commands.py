"""``metalearn <command>``: one table behind it and behind ``scripts/*.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import metalearn
from metalearn import cli
from metalearn.cli.command_table import COMMANDS, Command
from tests.support.commands import ROOT, TINY, Outcome

Run = Callable[..., Outcome]
SETTINGS = [name for name, command in COMMANDS.items() if command.config]
NAMES = ", ".join(COMMANDS)


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """``typed("train", …)``: as from the console script, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/metalearn", *arguments])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        printed = capsys.readouterr()
        assert sys.argv == ["/usr/bin/metalearn", *arguments]
        return Outcome(code, printed.out, printed.err)

    return command


def test_every_command_has_its_script_its_settings_and_its_check() -> None:
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert callable(command.function()) and command.name == name
        if command.config:
            assert (ROOT / "conf" / f"{command.config}.yaml").is_file()
            assert callable(command.check())
    assert {path.stem for path in (ROOT / "conf").glob("*.yaml")} == {
        command.config for command in COMMANDS.values() if command.config
    }


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_every_command_in_one_line(typed: Run, arguments: list[str]) -> None:
    outcome = typed(*arguments)
    assert outcome.code == 0 and not outcome.err
    lines = [line.split(maxsplit=1) for line in outcome.out.splitlines() if line.startswith("  ")]
    assert lines == [[name, command.summary] for name, command in COMMANDS.items()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], f"command='trian': one of {NAMES} is needed; did you mean train?"),
        (["evaluation", "run=x"], f"command='evaluation': one of {NAMES} is needed; did you mean "
         "evaluate?"),
        (["x"], f"command='x': one of {NAMES} is needed"),
        ([""], "command='': one of train, "),
        (["trainer.steps=5"], "command='trainer.steps=5': one of train, "),
        (["-m", "train"], "command='-m': one of train, "),
        (["train", "trainer.stepz=3"], "trainer.stepz: there is no such setting; did you mean "
         "trainer.steps?"),
        (["train", "task=omniglott"], "task: there is no choice 'omniglott'; known: "),
        (["train", "task=5"], "task=5: one of cifar_fs, "),
        (["evaluate"], "run: this setting has to be given"),
        (["evaluate", "trainer.steps=1"], "trainer.steps: there is no such setting"),
        (["diagnose", "run=nowhere"], "run='nowhere': the folder of a run"),
        (["benchmark", "rounds=0"], "rounds=0: a whole number of at least 1"),
        (["tour", "nowhere"], "chapter='nowhere': one of gradients, "),
        (["tour", "--lst"], "options='--lst': "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    typed: Run, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    outcome = typed(*arguments)
    assert outcome.code == 2 and not outcome.out
    assert outcome.err.startswith(f"error: {sentence}") and outcome.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_those_of_the_script(typed: Run, run: Run, name: str) -> None:
    given = ["run=somewhere"] if name in ("evaluate", "diagnose", "export") else []
    for options in (["--cfg", "job"], ["--cfg", "hydra", "--package", "hydra.job"]):
        outcome = typed(name, *given, *options)
        assert outcome.code == 0, outcome.err
        assert outcome.out == run(name, *given, *options).out and outcome.out


@pytest.mark.parametrize("name", SETTINGS)
def test_help_shows_what_is_typed(typed: Run, run: Run, name: str) -> None:
    by_name, by_script = typed(name, "--help"), run(name, "--help")
    assert by_name.code == by_script.code == 0
    assert f"metalearn {name}" in by_name.out and "python scripts" not in by_name.out
    assert by_name.out == by_script.out.replace(f"python scripts/{name}.py", f"metalearn {name}")


PROGRAMS = {
    "/usr/bin/metalearn": "metalearn {}",
    "/src/metalearn/__main__.py": "python -m metalearn {}",
    "scripts/{}.py": "python scripts/{}.py",
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_what_was_typed(
    program: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every command, by its name, as a module and as a script."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", [program.format(name), name, "--help"])
    GlobalHydra.instance().clear()
    with suppress(SystemExit):
        cli.main([name, "--help"] if "scripts" in program else None)
    printed, wanted = capsys.readouterr().out, PROGRAMS[program].format(name)
    assert wanted in printed
    others = {text.format(name) for text in PROGRAMS.values()} - {wanted}
    assert not any(other in printed.replace(wanted, "") for other in others)


def test_help_of_all_names_the_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/src/metalearn/__main__.py", "--help"])
    cli.main()
    assert "python -m metalearn <command> --help" in capsys.readouterr().out


def test_a_training_is_that_of_the_script(typed: Run, run: Run, tmp_path: Path) -> None:
    assert typed("train", *TINY, "hydra.run.dir=named").code == 0
    assert run("train", *TINY, "hydra.run.dir=script").code == 0
    configs = [(tmp_path / f / "config.yaml").read_text() for f in ("named", "script")]
    results = [json.loads((tmp_path / f / "results.json").read_text()) for f in ("named", "script")]
    assert configs[0] == configs[1]
    assert results[0]["test"] == results[1]["test"]
    assert (tmp_path / "named" / "train.log").is_file()
    command = json.loads((tmp_path / "named" / "provenance.json").read_text())["command"]
    assert command == ["/usr/bin/metalearn train", *TINY, "hydra.run.dir=named"]


def test_settings_of_ones_own(typed: Run, tmp_path: Path) -> None:
    """A folder beside ours, by option and by search path."""
    mine = tmp_path / "mine"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "tiny.yaml").write_text("_target_: metalearn.models.MLP\nhidden: [3]\n")
    for where in (["--config-dir", str(mine)], [f"hydra.searchpath=[file://{mine}]"]):
        outcome = typed("train", "model=tiny", *where, "--cfg", "job")
        assert outcome.code == 0, outcome.err
        assert "hidden:\n  - 3\n" in outcome.out


def test_a_new_command_is_one_file_and_one_line(
    typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greeting.py").write_text("def greet(words):\n    print('hello', *words)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "greet", Command("greet", "say hello", "greeting:greet"))
    assert "  greet      say hello\n" in typed("--help").out
    assert typed("greet", "all", "--of=you").out == "hello all --of=you\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "nonsense=1"]])
def test_what_needs_no_tensors_does_without_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from metalearn.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metalearn", "tour", "--list"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.startswith("1  gradients") and not done.stderr


@pytest.mark.parametrize("face", [metalearn, cli])
def test_names_that_are_imported_late_are_all_there(face: object) -> None:
    assert face.__all__ == sorted(face.__all__)
    assert set(face._PLACES) == set(face.__all__) - {"__version__"}
    assert set(face.__all__) <= set(dir(face))
    for name in face._PLACES:
        assert callable(getattr(face, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = face.nothing


def test_rooms_are_attributes_of_the_package() -> None:
    code = "import metalearn\n" + "\n".join(
        f"metalearn.{room}.__all__" for room in ("core", "data", "models", "trainers", "types")
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=True)


class _Closed:
    """A stream whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        raise OSError("no descriptor")


@pytest.mark.parametrize("words", [["--help"], ["tour", "--list"], ["reproduce", "--list"]])
def test_a_reader_that_has_seen_enough_ends_no_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", _Closed())
    with suppress(SystemExit):
        cli.main(words)
