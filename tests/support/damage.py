"""Ways to damage a run's files: by hand, and every entry of a state replaced by something else."""

from __future__ import annotations

import copy
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

Path_ = tuple[Any, ...]


def deep(levels: int) -> Any:
    found: Any = 0
    for _ in range(levels):
        found = [found]
    return found


REPLACEMENTS: dict[str, Any] = {
    "null": None,
    "text": "7",
    "true": True,
    "below zero": -5,
    "half": 0.5,
    "NaN": math.nan,
    "huge": 2**80,
    "list": [1, 2],
    "no list": [],
    "mapping": {"a": 1},
    "deep": deep(200),
    "other shape": torch.zeros(3, 7, 2),
    "complex": torch.zeros(2, dtype=torch.complex64),
    "sparse": torch.zeros(3, 3).to_sparse(),
    "no memory": torch.zeros(3, 3, device="meta"),
}
"""What an entry is replaced by."""


def entries(value: Any, *, widest: int = 2, prefix: Path_ = ()) -> Iterator[Path_]:
    """Paths of the first entries at every level of a state."""
    if isinstance(value, dict):
        pairs = list(value.items())
        pairs = pairs if not prefix or prefix == ("extra",) else pairs[:widest]
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))[:widest]
    else:
        return
    for key, entry in pairs:
        yield (*prefix, key)
        yield from entries(entry, widest=widest, prefix=(*prefix, key))


def replaced(state: Any, path: Path_, value: Any) -> Any:
    """A copy of a state with another value at a path."""
    if not path:
        return value
    key, *rest = path
    found = list(state) if isinstance(state, list | tuple) else copy.copy(state)
    found[key] = replaced(state[key], tuple(rest), value)
    return found


def without(state: Any, path: Path_) -> Any:
    """A copy of a state that lacks what stands at a path."""
    *above, key = path
    holder = state
    for part in above:
        holder = holder[part]
    kept = list(holder) if isinstance(holder, list | tuple) else copy.copy(holder)
    del kept[key]
    return replaced(state, tuple(above), kept)


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _zipped(members: dict[str, bytes], *, how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _flipped(content: bytes, share: float) -> bytes:
    found = bytearray(content)
    found[int(share * (len(found) - 1))] ^= 0x40
    return bytes(found)


def _repacked(content: bytes, how: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return _zipped({name: archive.read(name) for name in archive.namelist()}, how=how)


FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda _: b"\x80",
    "zeros": lambda _: bytes(4096),
    "text": lambda _: b"not a checkpoint\n",
    "yaml": lambda _: b"step: 7\n",
    "picture": lambda _: b"\x89PNG\r\n\x1a\n" + bytes(64),
    "pickle": lambda _: pickle.dumps({"step": 7}),
    "a list": lambda _: saved([1, 2, 3]),
    "a tensor": lambda _: saved(torch.zeros(3)),
    "nothing": lambda _: saved(None),
    "an empty mapping": lambda _: saved({}),
    "a deep list": lambda _: saved(deep(200)),
    "an empty archive": lambda _: _zipped({}),
    "an archive of text": lambda _: _zipped({"a.txt": b"hello"}),
    "no pickle in it": lambda _: _zipped({"archive/version": b"3\n"}),
    "a broken pickle": lambda _: _zipped({"a/data.pkl": b"\x80\x02}q", "a/version": b"3\n"}),
    "a pickle of zeros": lambda _: _zipped({"a/data.pkl": bytes(99), "a/version": b"3\n"}),
    "a bomb": lambda _: _zipped({"a/data.pkl": bytes(2**26)}, how=zipfile.ZIP_DEFLATED),
    "doubled": lambda whole: whole + whole[: len(whole) // 2],
    "reversed": lambda whole: whole[::-1],
    **{
        f"the first {share:.1%}": lambda whole, share=share: whole[: int(share * len(whole))]
        for share in (0.001, 0.05, 0.3, 0.6, 0.9, 0.99, 0.999)
    },
    **{
        f"a bit at {share:.0%}": lambda whole, share=share: _flipped(whole, share)
        for share in (0.02, 0.2, 0.5, 0.7, 0.8, 1.0)
    },
    "without its head": lambda whole: whole[100:],
}
"""Bytes of a checkpoint to other bytes."""

_TASK = "task:\n  _target_: metalearn.tasks.SinusoidTasks\n"


def _line(start: str, instead: str) -> Callable[[str], str]:
    """A configuration with another line in place of the one that begins so."""

    def change(text: str) -> str:
        lines = text.splitlines()
        found = [n for n, line in enumerate(lines) if line.startswith(start)]
        assert found, start
        lines[found[0]] = instead
        return "\n".join(lines) + "\n"

    return change


def _group(name: str, instead: str) -> Callable[[str], str]:
    """A configuration with something else in place of a group."""

    def change(text: str) -> str:
        lines, kept, inside = text.splitlines(), [], False
        for line in lines:
            inside = line == f"{name}:" or (inside and line.startswith((" ", "-")))
            if not inside:
                kept.append(line)
        assert len(kept) < len(lines), name
        return "\n".join([*kept, *([f"{name}: {instead}"] if instead else [])]) + "\n"

    return change


GROUPS = ("task", "model", "maml", "optimizer", "trainer")
CONFIGS: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda _: "",
    "a word": lambda _: "hello\n",
    "a list": lambda _: "- 1\n- 2\n",
    "a number": lambda _: "7\n",
    "null": lambda _: "null\n",
    "no yaml": lambda _: "a: [1, 2\nb: }{\n",
    "tabs": lambda _: "a:\n\t- 1\n",
    "binary": lambda _: bytes(range(256)) * 4,
    "zeros": lambda _: bytes(1000),
    "utf-16": lambda text: text.encode("utf-16"),
    "latin": lambda _: "trainer: caf\xe9\n".encode("latin-1"),
    "a million characters": lambda _: "a: " + "x" * 1_000_000,
    "3,000 levels of lists": lambda _: "[" * 3000 + "]" * 3000,
    "3,000 levels of mappings": lambda _: "{a: " * 3000 + "1" + "}" * 3000,
    "3,000 levels in a group": lambda text: (
        text + "extra: " + "[" * 3000 + "]" * 3000 + "\n"
    ),
    "aliases that grow": lambda _: (
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    ),
    "an alias of itself": lambda _: "a: &a [*a]\n",
    "a python object": lambda _: "trainer: !!python/object/apply:os.getcwd []\n",
    "two documents": lambda text: text + "---\n" + text,
    "a key twice": lambda text: text + "seed: 1\n",
    "the first half": lambda text: text[: len(text) // 2],
    "the first tenth": lambda text: text[: len(text) // 10],
    **{f"no {name}": _group(name, "") for name in GROUPS},
    **{
        f"{name} is {what}": _group(name, what)
        for name in GROUPS
        for what in ("null", "7", "[1, 2]", "hello", "{}", "'???'", "{_target_: 3}")
        if (name, what) != ("maml", "null")  # MAML's own defaults
    },
    **{
        f"{name}._target_ is {what}": _group(name, f"{{_target_: {what}}}")
        for name in GROUPS
        for what in ("torch.optim", "metalearn.trainers", "os.system", "''", "no.such.thing")
    },
    **{
        f"seed is {value}": _line("seed:", f"seed: {value}")
        for value in ("null", "-1", "1.5", "true", "x", "[1]", str(2**63), str(2**64), "1e400")
    },
    **{f"device is {value}": _line("device:", f"device: {value}") for value in ("null", "3", "[]")},
    **{
        f"test_tasks is {value}": _line("test_tasks:", f"test_tasks: {value}")
        for value in ("null", "-1", "many", "{}")
    },
    "resume is a list": _line("resume:", "resume: [1]"),
    **{f"no {name}": _line(f"{name}:", "") for name in ("seed", "device", "test_tasks")},
    **{
        f"version is {value}": lambda text, value=value: text + f"version: {value}\n"
        for value in ("3", "99", "0", "-1", "null", "two", "1.5", "true", "[2]")
    },
    "deterministic is a word": lambda text: text + "deterministic: perhaps\n",
    **{
        f"{start.strip()} {value}": _line(start, f"{start} {value}")
        for start, value in (
            ("  hidden:", "7\n  x:"), ("  shot:", "many"), ("  shot:", "-3"), ("  seed:", "x"),
            ("  lr:", "fast"), ("  lr:", "-1.0"), ("  lr:", "null"), ("  inner_lr:", "0"),
            ("  inner_steps:", "[1]"), ("  engine:", "warp"), ("  method:", "null"),
            ("  memory:", "lots"), ("  steps:", "0"), ("  steps:", "'7'"),
            ("  meta_batch:", "null"), ("  clip:", "-1"), ("  patience:", "0"),
            ("  _partial_:", "maybe"), ("  schedule:", "sometimes"), ("  log_every:", "1.5"),
            ("  eval_every:", "-2"),
            ("  seed:", str(2**80)), ("  validation_tasks:", "{}"), ("  members:", "many"),
        )
    },
}  # fmt: skip
"""The text of a meta-learner's configuration to another."""
