"""Weights from elsewhere: what files may hold, what fits, and what is said where it does not."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metalearn.errors import DataError, SettingError
from metalearn.models import MLP, Conv4, Ensemble, load_weights, read_weights
from metalearn.models.weights import same_entries


def small(seed: int = 0, outputs: int = 3) -> nn.Module:
    return MLP((4,), outputs, hidden=(5,), seed=seed)


def members(count: int = 3, outputs: int = 3) -> Ensemble:
    return Ensemble.from_factory(lambda seed: small(seed, outputs), range(count))


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[n], others[n]) for n in mine)


def old_format(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS = {
    "state.pt": torch.save,
    "state.pth": torch.save,
    "old.pth": old_format,
    "state.safetensors": save_file,
    "wrapped.pt": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "model.pt": lambda state, path: torch.save({"model": state}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_many_kinds_are_read(name: str, tmp_path: Path) -> None:
    source, target = small(1), small(2)
    WRITERS[name](source.state_dict(), tmp_path / name)
    found = load_weights(target, tmp_path / name)
    assert same(source, target)
    assert found.path == tmp_path / name
    assert len(found.sha256) == 64 and found.sha256 == read_weights(tmp_path / name).sha256


def test_values_take_the_type_of_the_module(tmp_path: Path) -> None:
    source, target = small(1).half(), small(2).double()
    torch.save(source.state_dict(), tmp_path / "half.pt")
    load_weights(target, tmp_path / "half.pt")
    assert all(p.dtype == torch.float64 for p in target.parameters())
    assert same(source.double(), target)


def test_what_a_pattern_names_stays_as_it_is(tmp_path: Path) -> None:
    source, target, before = small(1, outputs=7), small(2), small(2)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    last = list(source.state_dict())[-1].rpartition(".")[0]
    load_weights(target, tmp_path / "state.pt", skip=[f"{last}.*"])
    for name, value in target.state_dict().items():
        kept = name.startswith(last)
        assert torch.equal(value, (before if kept else source).state_dict()[name])


def test_tied_weights_of_which_a_file_has_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    source, target = Tied(), Tied()
    state = {name: value for name, value in source.state_dict().items() if name != "b.weight"}
    save_file(state, tmp_path / "tied.safetensors")
    load_weights(target, tmp_path / "tied.safetensors")
    assert same(source, target)


@pytest.mark.parametrize("members", [None, 2])
def test_files_without_counters_of_batches(members: int | None, tmp_path: Path) -> None:
    """As torch wrote them before 0.4.1, and torchvision offers them still."""
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = source.state_dict()
    state["1.running_mean"] += 1
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "old.pt")
    nets = [copy.deepcopy(source) for _ in range(members or 1)]
    module = nets[0] if members is None else Ensemble.from_modules(nets)
    load_weights(module, tmp_path / "old.pt")
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            assert (value == 1).all()
    assert same_entries(module, read_weights(tmp_path / "old.pt"))
    del state["1.running_mean"]
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(DataError, match="it has no 1.running_mean;"):
        load_weights(module, tmp_path / "old.pt")


def test_rates_and_keys_of_dropout_are_no_weights(tmp_path: Path) -> None:
    source, target = (MLP((4,), 3, hidden=(5,), dropout=p, seed=s) for p, s in ((0.1, 1), (0.3, 2)))
    torch.save(source.state_dict(), tmp_path / "state.pt")
    before = {name: value.clone() for name, value in target.named_buffers()}
    load_weights(target, tmp_path / "state.pt")
    assert all(torch.equal(before[name], value) for name, value in target.named_buffers())
    for mine, other in zip(source.parameters(), target.parameters()):
        assert torch.equal(mine, other)


# --- ensembles ---------------------------------------------------------------------------------


def test_one_network_is_the_start_of_all_members(tmp_path: Path) -> None:
    source, target = small(7), members()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    load_weights(target, tmp_path / "state.pt")
    assert all(same(member, source) for member in target.members())


def test_one_network_is_the_start_of_members_of_two_kinds(tmp_path: Path) -> None:
    frozen = small(2)
    next(frozen.parameters()).requires_grad_(False)
    target = Ensemble.from_modules([small(0), frozen, small(1)])
    assert len(target.stacks) == 2
    torch.save(small(7).state_dict(), tmp_path / "state.pt")
    load_weights(target, tmp_path / "state.pt")
    assert all(same(member, small(7)) for member in target.members())


def test_members_take_those_of_as_many(tmp_path: Path) -> None:
    source = members()
    target = Ensemble.from_factory(small, (5, 6, 7))
    torch.save(source.state_dict(), tmp_path / "state.pt")
    load_weights(target, tmp_path / "state.pt")
    assert same(source, target)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (lambda: members(2), "weights of 3 members, and the ensemble has 2"),
        (small, "weights of an ensemble, and one network takes them"),
    ],
    ids=["two", "one"],
)
def test_members_of_another_number_are_refused(target: Any, said: str, tmp_path: Path) -> None:
    torch.save(members().state_dict(), tmp_path / "state.pt")
    with pytest.raises(DataError, match=said):
        load_weights(target(), tmp_path / "state.pt")


# --- what does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small, members], ids=["one", "members"])
def test_all_that_does_not_fit_is_one_sentence_and_nothing_changes(
    make: Any, tmp_path: Path
) -> None:
    names = list(small().state_dict())
    state = small(1).state_dict()
    del state[names[0]]
    state[names[1]] = torch.zeros(6)
    state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "state.pt")
    target, before = make(), make()
    with pytest.raises(DataError) as caught:
        load_weights(target, tmp_path / "state.pt")
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "state.pt")) and "\n" not in said
    assert f"it has no {names[0]};" in said
    assert "the network has no extra.weight" in said
    assert re.search(rf"{re.escape(names[1])} is \[(3, )?6\], not \[(3, )?5\]", said)
    assert "init_skip" in said
    assert same(target, before)
    load_weights(target, tmp_path / "state.pt", skip=[names[0], names[1], "extra.*"])


def test_long_lists_are_cut(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "state.pt")
    with pytest.raises(DataError, match="and .* more") as caught:
        load_weights(Conv4((1, 16, 16), 3, filters=2), tmp_path / "state.pt")
    assert len(str(caught.value)) < 600


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "state.pt")
    with pytest.raises(SettingError, match=r"skip='haed\.\*': a pattern that matches one of"):
        load_weights(small(), tmp_path / "state.pt", skip=["haed.*"])


@pytest.mark.parametrize("source", ["nowhere.pt", "", "empty"])
def test_nothing_there(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match=r"source=.*is needed"):
        load_weights(small(), source)


def _module(path: Path) -> None:
    torch.save(small(), path)


FOREIGN = {
    "list.pt": lambda path: torch.save([1, 2], path),
    "numbers.pt": lambda path: torch.save({"a": 1}, path),
    "numbers.safetensors": lambda path: path.write_bytes(b"no header"),
    "pickled.pt": _module,
    "text.pt": lambda path: path.write_text("weights"),
    "nan.pt": lambda path: torch.save({"a": torch.tensor([float("nan")])}, path),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_hold_no_weights(name: str, tmp_path: Path) -> None:
    FOREIGN[name](tmp_path / name)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_safetensors_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(DataError, match=r"pip install 'torch-metalearn\[safetensors\]'"):
        read_weights(tmp_path / "a.safetensors")
