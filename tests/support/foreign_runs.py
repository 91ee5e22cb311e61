"""Runs from someone else's disk whose files would run code, and what tells whether they did.

Each attack changes a run that is otherwise good. ``{canary}`` is a file that no one may make,
``{victim}`` one that no one may change, ``{pickle}`` a pickle that makes the canary, ``{folder}``
the run, in which a module ``planted`` lies that makes the canary when it is imported.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SAVED = Path(__file__).parents[1] / "saved_runs" / "v1"
CONTENT = "years of work\n"


def at(place: str, target: object, **settings: object) -> Callable[[dict[str, Any]], None]:
    """Put a node that builds ``target`` in a place, ``"trainer.lr"`` or, in a list, ``"a.0"``."""

    def change(config: dict[str, Any]) -> None:
        *above, last = place.split(".")
        node = config
        for key in above:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        node[last] = {"_target_": target, **settings}

    return change


def put(place: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Put any value in a place."""

    def change(config: dict[str, Any]) -> None:
        *above, last = place.split(".")
        node = config
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value

    return change


_SHELL = "touch {canary}"
_LISTED = [[{"deep": [{"_target_": "os.system", "command": _SHELL}]}]]
_NESTED = {"a": {"b": {"c": {"_target_": "planted.Thing"}}}}

CHANGES: Mapping[str, Callable[[dict[str, Any]], None]] = {
    # called with arguments from the file
    "torch.load": at("model", "torch.load", f="{pickle}", weights_only=False),
    "torch.serialization.load": at("model", "torch.serialization.load", f="{pickle}"),
    "numpy.load": at("data", "numpy.load", file="{pickle}", allow_pickle=True),
    "joblib.load": at("model", "joblib.load", filename="{pickle}"),
    "pandas.read_pickle": at("model", "pandas.read_pickle", filepath_or_buffer="{pickle}"),
    "pickle.loads": at("model", "pickle.loads", data="cos\nsystem\n(S'touch {canary}'\ntR."),
    "torch.hub.load": at("model", "torch.hub.load", repo_or_dir="{folder}", source="local"),
    "torch.jit.load": at("model", "torch.jit.load", f="{pickle}"),
    "torch.ops.load_library": at("model", "torch.ops.load_library", path="{folder}/planted.so"),
    "torch.utils.cpp_extension": at(
        "model", "torch.utils.cpp_extension.load", name="x", sources=["{folder}/x.cpp"]
    ),
    "builtins.open": at("optimizer", "builtins.open", file="{victim}", mode="w", _partial_=False),
    "io.open": at("optimizer", "io.open", file="{victim}", mode="w", _partial_=False),
    "pathlib": at("model", "pathlib.Path.write_text", _args_=["{canary}", "x"]),
    "shutil.copy": at("model", "shutil.copy", src="{pickle}", dst="{victim}"),
    "os.system": at("optimizer", "os.system", command=_SHELL, _partial_=False),
    "posix.system": at("optimizer", "posix.system", command=_SHELL, _partial_=False),
    "os.remove": at("task", "os.remove", path="{victim}"),
    "os.truncate": at("task", "os.truncate", path="{victim}", length=0),
    "subprocess.run": at("maml", "subprocess.run", args=["touch", "{canary}"]),
    "subprocess.Popen": at("maml", "subprocess.Popen", args=["touch", "{canary}"]),
    "pty.spawn": at("model", "pty.spawn", argv=["touch", "{canary}"]),
    "builtins.eval": at("model", "builtins.eval", _args_=["open('{canary}', 'w')"]),
    "builtins.exec": at("model", "builtins.exec", _args_=["open('{canary}', 'w')"]),
    "runpy.run_path": at("trainer", "runpy.run_path", path_name="{folder}/planted.py"),
    "timeit.timeit": at("model", "timeit.timeit", stmt="open('{canary}', 'w')", number=1),
    "ctypes.CDLL": at("model", "ctypes.CDLL", name="{folder}/planted.so"),
    "logging.config": at("model", "logging.config.fileConfig", fname="{folder}/log.ini"),
    "logging.FileHandler": at("model", "logging.FileHandler", filename="{victim}", mode="w"),
    "urllib": at("model", "urllib.request.urlretrieve", url="file://{pickle}", filename="{victim}"),
    "webbrowser": at("model", "webbrowser.open", url="http://localhost:9/"),
    "socket": at("model", "socket.create_connection", address=["localhost", 9]),
    "torch.save": at("model", "torch.save", obj=1, f="{victim}"),
    "numpy.save": at("model", "numpy.save", file="{canary}", arr=[1]),
    # imported alone
    "a planted module": at("model", "planted.Thing"),
    "a planted trainer": at("trainer", "planted.Thing"),
    "a planted module by itself": at("model", "planted"),
    "antigravity": at("model", "antigravity.webbrowser"),
    "idlelib": at("model", "idlelib.idle.Thing"),
    "our own command": at("model", "metalearn.cli.load_learner", run="{folder}", trust=True),
    "our own writer": at("model", "metalearn.files.replace_file", path="{victim}"),
    "our checkpoints": at("model", "metalearn.checkpoint.save_checkpoint", path="{victim}"),
    # by a detour over Hydra
    "hydra.utils.get_object": at("model", "hydra.utils.get_object", path="planted.Thing"),
    "hydra.utils.get_class": at("model", "hydra.utils.get_class", path="planted.Thing"),
    "hydra.utils.get_method": at("model", "hydra.utils.get_method", path="os.system"),
    "hydra.utils.call": at(
        "model", "hydra.utils.call", config={"_target_": "os.system", "command": _SHELL}
    ),
    "hydra.utils.instantiate": at("model", "hydra.utils.instantiate", _args_=[_NESTED]),
    "functools.partial": at("optimizer", "functools.partial", _args_=[{"_target_": "os.system"}]),
    # in other places
    "inside the optimiser": at("optimizer.params", "os.system", command=_SHELL),
    "inside the trainer": at("trainer.lr", "planted.Thing"),
    "inside the task": at("task.root", "planted.Thing"),
    "inside a list": put("model.hidden", [{"_target_": "os.system", "command": _SHELL}]),
    "inside lists of lists": put("trainer.diagnostics", _LISTED),
    "deep inside": put("maml.inner_lr", _NESTED),
    "as arguments": put("optimizer._args_", [{"_target_": "os.system", "command": _SHELL}]),
    "a second data set": at("ood", "torch.load", f="{pickle}", weights_only=False),
    "a group of its own": at("extra", "os.system", command=_SHELL),
    "at the top": put("_target_", "os.system"),
    "ours, elsewhere": at("model.hidden", "metalearn.trainers.MetaTrainer", folder="{canary}"),
    "a data set as a model": at("model", "metalearn.data.torchvision_data", root="{canary}"),
    # spelt otherwise
    "a space": at("model", " os.system", command=_SHELL),
    "a trailing dot": at("model", "torch.optim.Adam."),
    "a list": at("model", ["os.system"], command=_SHELL),
    "a mapping": at("model", {"_target_": "planted.Thing"}),
    "a number": at("model", 7),
    "null": at("model", None),
    "missing": at("model", "???"),
    "another case": put("model", {"_TARGET_": "os.system", "command": _SHELL}),
    "bytes": put("model", {b"_target_": "os.system", "command": _SHELL}),
    "an interpolation": at("model", "${oc.env:PLANTED}"),
    "an interpolated node": put("model", "${oc.decode:'{_target_: planted.Thing}'}"),
    "an interpolated group": put("model", "${extra}"),
    "created by a resolver": put("model", {"_target_": "${oc.select:extra,planted.Thing}"}),
    "a name that clears the screen": at("\x1b[2J\nerror", "planted.Thing"),
    "a long name": at("model", "planted." * 9000),
    "asking for trust": lambda config: (
        config.update(trust=True), at("model", "planted.Thing")(config)
    )[0],
}  # fmt: skip
"""Changes of the configuration, by what they try."""

TEXTS: Mapping[str, str] = {
    "a tag that calls": "extra: !!python/object/apply:os.system ['touch {canary}']\n",
    "a tag that makes": "extra: !!python/object/new:os.system ['touch {canary}']\n",
    "a tag that names": "extra: !!python/name:planted.Thing ''\n",
    "a tag that imports": "extra: !!python/module:planted ''\n",
    "a billion laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi")
    ),
    "an alias of itself": "extra: &extra [*extra]\n",
    "a merged node": "base: &base {_target_: planted.Thing}\nextra: {<<: *base}\n",
    "a key twice": "model: {_target_: planted.Thing}\n",
    "two documents": "---\nmodel: {_target_: planted.Thing}\n",
    "a deep hole": "extra: " + "[" * 3000 + "]" * 3000 + "\n",
    "a large file": "extra: " + "x" * 2**20 + "\n",
}  # fmt: skip
"""Lines put after the configuration, by what they try."""


@dataclass
class Foreign:
    """A run folder with an attack in it, and the traces that the attack would leave."""

    folder: Path
    canary: Path
    victim: Path
    events: list[str] = field(default_factory=list)

    def unharmed(self) -> bool:
        """Whether nothing was made, changed or imported."""
        same = self.victim.read_text() == CONTENT
        return same and not self.canary.exists() and "planted" not in sys.modules

    def payload(self) -> bytes:
        """A pickle that makes the canary."""
        return pickle.dumps(_Payload(f"touch {self.canary}"), protocol=2)


def plant(scratch: Path, kind: str, attack: str = "") -> Foreign:
    """A copy of the saved run ``kind``, with an attack in its configuration if one is named."""
    folder = scratch / "run"
    shutil.copytree(SAVED / kind, folder)
    found = Foreign(folder, scratch / "canary", scratch / "victim")
    found.victim.write_text(CONTENT)
    payload = scratch / "payload.pkl"
    payload.write_bytes(found.payload())
    code = _MODULE.format(canary=str(found.canary))
    for name in ("planted.py", "hubconf.py"):
        (folder / name).write_text(code)
    words = {
        "{canary}": str(found.canary), "{victim}": str(found.victim),
        "{pickle}": str(payload), "{folder}": str(folder),
    }  # fmt: skip
    path = folder / "config.yaml"
    if attack in TEXTS:
        text = path.read_text() + TEXTS[attack]
    else:
        config = yaml.safe_load(path.read_text())
        CHANGES.get(attack, dict)(config)
        text = yaml.safe_dump(config, sort_keys=False)
    for word, value in words.items():
        text = text.replace(word, value)
    path.write_text(text)
    return found


_MODULE = """from pathlib import Path

from metalearn.data import digits_data

Path({canary!r}).touch()


class Thing: ...


def digits():
    return digits_data()
"""


class _Payload:
    """A pickle that runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


_WATCHED = (
    "import", "exec", "compile", "pickle.", "os.", "subprocess.", "socket.", "shutil.", "ctypes.",
    "webbrowser.", "urllib.", "pty.", "marshal.",
)  # fmt: skip
_HARMLESS = ("os.listdir", "os.scandir")
_listeners: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners:
        return
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    watched = event.startswith(_WATCHED) and event not in _HARMLESS
    if watched or written:
        for events in _listeners:
            events.append(f"{event} {arguments[0] if arguments else ''}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """What the interpreter imports, runs, unpickles, writes, starts or connects to meanwhile."""
    if not getattr(sys, "_metalearn_watched", False):  # a hook stays for good
        sys.addaudithook(_hook)
        sys._metalearn_watched = True  # type: ignore[attr-defined]
    events: list[str] = []
    _listeners.append(events)
    try:
        yield events
    finally:
        _listeners.remove(events)
