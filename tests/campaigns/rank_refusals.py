"""Ranks that were not started alike: ``… tests.campaigns.rank_refusals``.

Two ranks are started as torchrun would, the second with other settings, code, versions, data, with
another command or for another number of ranks. Both have to end within a stated time, by a
sentence that names what differs and the rank, without a traceback, and no run may be left.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds in which both have to have ended."""
TIMEOUT = 20.0
"""Seconds that ranks wait for each other."""
_SINUSOID = (
    "train", "task=sinusoid", "model=mlp", "maml.inner_lr=0.01", "trainer.meta_batch=2",
)  # fmt: skip
_SMALL = ("model=mlp", "model.hidden=[4]", "device=cpu", "trainer.progress=false")
_TASKS = ("train", "task=folder", "task.root=pictures", "task.way=2", "task.query=2", *_SMALL)
_MEMBERS = (
    "train",
    "trainer=ensemble",
    "data=folder",
    "data.root=pictures",
    "trainer.batch_size=8",
    *_SMALL,
)
_PRIVATE = (
    "train",
    "trainer=private",
    "data=folder",
    "data.root=pictures",
    "trainer.batch_size=8",
    *_SMALL,
)
_STEPS = ("trainer.steps=2", "device=cpu", "trainer.progress=false")


@dataclass(frozen=True)
class Case:
    """What the second of two ranks has otherwise."""

    said: str
    """By one of them: a pattern."""
    command: tuple[str, ...] = _SINUSOID
    other: tuple[str, ...] | None = None
    """The second's command; None is the first's."""
    first: dict[str, str] = field(default_factory=dict)
    """Of the environment."""
    second: dict[str, str] = field(default_factory=dict)
    change: Callable[[Path], dict[str, str]] = lambda folder: {}
    """Changes what is in the second's folder; gives more of its environment."""
    codes: tuple[int, int] = (2, 2)


def _other_code(folder: Path) -> dict[str, str]:
    """The package, of which one file differs by a comment."""
    _copied(folder)
    with open(folder / "copy" / "metalearn" / "core" / "tree.py", "a") as file:
        file.write("# not as it was\n")
    return {"PYTHONPATH": str(folder / "copy")}


def _other_defaults(folder: Path) -> dict[str, str]:
    """The package, of whose YAML a default differs that no command has named."""
    _copied(folder)
    path = folder / "copy" / "conf" / "task" / "sinusoid.yaml"
    text = path.read_text()
    assert "\nshot: 5 " in text
    path.write_text(text.replace("\nshot: 5 ", "\nshot: 6 "))
    return {"PYTHONPATH": str(folder / "copy")}


def _copied(folder: Path) -> None:
    for name in ("metalearn", "conf"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=ignore)


def _other_torch(folder: Path) -> dict[str, str]:
    """What is installed says that it were another version."""
    (folder / "versions").mkdir()
    (folder / "versions" / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "known = metadata.version\n"
        "metadata.version = lambda name: '0.0.1' if name == 'torch' else known(name)\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder / "versions"), str(ROOT)])}


def _other_pixel(folder: Path) -> dict[str, str]:
    path = folder / "pictures" / "class-1" / "3.png"
    picture = Image.open(path).copy()
    picture.putpixel((4, 4), 255 - int(picture.getpixel((4, 4))))  # type: ignore[arg-type]
    picture.save(path)
    return {}


def _a_class_less(folder: Path) -> dict[str, str]:
    shutil.rmtree(folder / "pictures" / "class-9")
    return {}


def _none(folder: Path) -> dict[str, str]:
    shutil.rmtree(folder / "pictures")
    return {}


CASES = {
    "setting": Case(r"command of rank 1='train", other=(*_SINUSOID, "maml.first_order=true")),
    "setting of the environment": Case(
        r"setting maml\.inner_lr of rank 1='0\.02': 0\.01 is needed",
        (*_SINUSOID, 'maml.inner_lr="${oc.decode:${oc.env:RATE}}"'),
        first={"RATE": "0.01"}, second={"RATE": "0.02"},
    ),
    "default of a file": Case(
        r"setting task\.shot of rank 1='6': 5 is needed", change=_other_defaults
    ),
    "code": Case(r"code of rank 1='\w+'", change=_other_code),
    "version of torch": Case(r"version of torch of rank 1='0\.0\.1'", change=_other_torch),
    "pixel, tasks": Case(r"data of rank 1='\w+'", _TASKS, change=_other_pixel),
    "pixel, members": Case(r"data of rank 1='\w+'", _MEMBERS, change=_other_pixel),
    "pixel, private": Case(r"data of rank 1='\w+'", _PRIVATE, change=_other_pixel),
    "class, tasks": Case(r"data of rank 1='\w+'", _TASKS, change=_a_class_less),
    "class, members": Case(r"data of rank 1='\w+'", _MEMBERS, change=_a_class_less),
    "class, private": Case(r"data of rank 1='\w+'", _PRIVATE, change=_a_class_less),
    "no data": Case(r"rank 1 ended: \w+: .*pictures", _MEMBERS, change=_none, codes=(1, 2)),
    "command": Case(r"command of rank 1='evaluate", other=("evaluate", "run=run")),
    "command of one process": Case(
        r"rank 1 ended: SettingError: torchrun='export'", other=("export", "run=run"),
        codes=(1, 2),
    ),
    "more ranks": Case(r"WORLD_SIZE of rank 1=3: 2 is needed", second={"WORLD_SIZE": "3"}),
    "fewer ranks": Case(
        r"RANK=1: a number below WORLD_SIZE=1 is needed", second={"WORLD_SIZE": "1"},
        codes=(1, 2),
    ),
}  # fmt: skip


def run(case: Case, scratch: Path) -> tuple[str, float]:
    """What was wrong with how two ranks ended, and the seconds that they took."""
    run_folder, port = scratch / "run", _free_port()
    commands = [(*case.command, *_STEPS), (*(case.other or case.command), *_STEPS)]
    if case.other is not None and case.other[0] != "train":
        commands[1] = case.other
    commands = [(*c, f"hydra.run.dir={run_folder}") if c[0] == "train" else c for c in commands]
    ranks, started = [], time.monotonic()
    for rank, words in enumerate(commands):
        folder = scratch / f"machine-{rank}"
        draw(folder / "pictures")
        more = case.second | case.change(folder) if rank else case.first
        known = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "METALEARN_RANK_TIMEOUT": str(TIMEOUT), **more,
        }  # fmt: skip
        for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
            known.pop(name, None)
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "metalearn", *words],
                cwd=folder, env=known, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    said, late = [], False
    for process in ranks:
        try:
            said.append(
                process.communicate(timeout=max(0.1, started + LIMIT - time.monotonic()))[0]
            )
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
            said.append(process.communicate()[0])
    seconds, codes = time.monotonic() - started, tuple(rank.returncode for rank in ranks)
    problems = ["not within the limit"] if late else []
    if codes != case.codes:
        problems.append(f"exit codes {codes}")
    sentences = [line for line in "\n".join(said).splitlines() if line.startswith("error: ")]
    if len([line for line in sentences if re.search(case.said, line)]) != 1:
        problems.append(f"no sentence, or several, of {case.said!r}")
    if "Traceback" in "".join(said):
        problems.append("a traceback")
    if run_folder.exists() and any(run_folder.rglob("config.yaml")):
        problems.append("a run was left")
    if not problems:
        return "", seconds
    return "; ".join(problems) + "\n" + "\n".join(
        f"rank {r}: {s}" for r, s in enumerate(said)
    ), seconds


def draw(folder: Path) -> None:
    """Ten classes of eight pictures, the same each time."""
    for label in range(10):
        place = folder / f"class-{label}"
        place.mkdir(parents=True)
        for number in range(8):
            values = bytes((label * 23 + number * 7 + i * i) % 256 for i in range(64))
            Image.frombytes("L", (8, 8), values).save(place / f"{number}.png")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def main(arguments: list[str] | None = None) -> int:
    """Start each pair once; 1 if one was not refused rightly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args(arguments)
    wrong, longest = 0, 0.0
    for name in options.cases:
        with tempfile.TemporaryDirectory() as scratch:
            problem, seconds = run(CASES[name], Path(scratch))
        wrong, longest = wrong + bool(problem), max(longest, seconds)
        print(f"{name}: {problem or f'refused in {seconds:.0f} s'}", flush=True)
    count = len(options.cases)
    print(f"{count - wrong} of {count} refused, at most {longest:.0f} s: {wrong} runs went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
