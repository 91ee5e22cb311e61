"""Checkpoints: what goes in comes out; what is broken is refused in one sentence."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.errors import DataError
from tests.support.builders import assert_same, linear


def _state() -> dict[str, Any]:
    module = linear()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {
        "version": 1,
        "value": float("nan"),
        "name": "a",
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "dtypes": [torch.ones(2, dtype=d) for d in (torch.float64, torch.int64, torch.bool)],
    }


def _bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state = _state()
    save_checkpoint(tmp_path / "deep" / "a.pt", state)
    assert_same(load_checkpoint(tmp_path / "deep" / "a.pt"), state)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.pt"]


def test_tensors_come_back_on_the_device_asked_for(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"w": torch.ones(3)})
    assert load_checkpoint(tmp_path / "a.pt")["w"].device.type == "cpu"
    assert load_checkpoint(tmp_path / "a.pt", device="meta")["w"].device.type == "meta"


def test_a_save_that_fails_half_way_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "a.pt", _bytes({"step": 2})
    save_checkpoint(path, {"step": 1})

    def fail(state: object, file: io.BytesIO) -> None:
        file.write(whole[: len(whole) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert load_checkpoint(path) == {"step": 1}


def test_what_cannot_be_pickled_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        save_checkpoint(tmp_path / "a.pt", {"step": lambda: 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert load_checkpoint(tmp_path / "a.pt") == {"step": 1}


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_no_such_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "no.pt" if kind == "missing" else tmp_path
    with pytest.raises(DataError, match="there is no such checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    whole = _bytes({"w": torch.arange(2000.0), "v": torch.ones(500)})
    (tmp_path / "a.pt").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=r"a\.pt: this file is not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_single_wrong_bit_is_noticed(tmp_path: Path) -> None:
    content = bytearray(_bytes({"w": torch.arange(2000.0)}))
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pt: this .*(damaged|not a readable)"):
        load_checkpoint(tmp_path / "a.pt")


OTHER_FILES = {
    "text": b"hello, this is a text\n",
    "yaml": b"steps: 3\nlr: 0.1\n",
    "csv": b"time,loss\n1,0.5\n",
    "json": json.dumps({"step": 1}).encode(),
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
    "zeros": bytes(1000),
    "bad utf-8": b"\x80\x02X\x04\x00\x00\x00\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("content", OTHER_FILES.values(), ids=OTHER_FILES)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pt: this file is not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hi")
    with pytest.raises(DataError, match="this file is not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_code_in_a_file_is_never_run(tmp_path: Path, how: str) -> None:
    value = {"a": _Bomb()}
    content = _bytes(value) if how == "torch.save" else pickle.dumps(value)
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DataError, match="this file is not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(_bytes({"module": linear()}))
    with pytest.raises(DataError, match="this file is not a readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(("value", "name"), [([1, 2], "list"), (torch.ones(2), "Tensor")])
def test_a_file_that_holds_no_dict_is_refused(tmp_path: Path, value: object, name: str) -> None:
    (tmp_path / "a.pt").write_bytes(_bytes(value))
    with pytest.raises(DataError, match=f"this file holds a {name}, not a checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_the_message_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(_bytes({"module": linear()}))
    with pytest.raises(DataError) as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
