"""Ranks that differ are refused; what several find stands in the order in which one finds it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from metalearn.attribution import ScoredNetwork, attribute, attributing
from metalearn.attribution.attributing import attribute_by_ranks
from metalearn.attribution.retraining import Retrained
from metalearn.cli import same_run
from metalearn.cli.attributed_findings import retrained_by_ranks
from metalearn.cli.same_run import check_own_devices, check_same_data, check_same_settings
from metalearn.core import memory
from metalearn.core.memory import sharers
from metalearn.errors import SettingError, SubsetsDivergedError
from metalearn.ranks import Ranks
from metalearn.tracking import code_versions
from metalearn.trainers.diagnostics import diagnose, offline_diagnostics
from metalearn.trainers.diagnostics.offline import diagnose_by_ranks
from metalearn.trainers.loop import plans
from tests.support.diagnostic_cases import blobs
from tests.support.rank_threads import on_ranks


@pytest.fixture(name="whole")
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No group of settings is one that its trainer has no use for."""
    monkeypatch.setattr(same_run, "used_part", lambda config: config)


@pytest.mark.parametrize(
    ("first", "other", "sentence"),
    [
        ({"seed": 1}, {"seed": 2}, "setting seed of rank 1='2': 1 is needed, as rank 0 has it"),
        ({"seed": 1}, {"seed": 1.0}, "setting seed of rank 1='1.0': 1 is needed"),
        ({"seed": 1, "a": None}, {"seed": 1}, "setting a of rank 1='nothing': null is needed"),
        ({"seed": 1}, {"seed": 1, "a": "x"}, "setting a of rank 1='\"x\"': nothing is needed"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [2, 1]}}, "setting a.b of rank 1="),
        ({"a": {}}, {"a": {"b": 1}}, "setting a of rank 1="),
    ],
)
def test_a_setting_that_differs_is_named(
    first: Mapping[str, Any], other: Mapping[str, Any], sentence: str, whole: None
) -> None:
    configs = [OmegaConf.create(dict(one)) for one in (first, other, first)]
    found = on_ranks(3, lambda ranks: _refusal(check_same_settings, ranks, configs[ranks.rank]))
    assert len(set(found)) == 1 and found[0].startswith(sentence)


def test_the_same_settings_are_no_matter_of_their_order(whole: None) -> None:
    configs = [OmegaConf.create({"a": 1, "b": 2}), OmegaConf.create({"b": 2, "a": 1})]
    assert on_ranks(2, lambda r: _refusal(check_same_settings, r, configs[r.rank])) == ["", ""]


@pytest.mark.parametrize("private", [False, True])
def test_other_data_are_refused_and_private_ones_cannot_be_told_by_the_sentence(
    private: bool,
) -> None:
    data = [blobs(), blobs(), blobs()]
    data[2].inputs[0, 0] += 1
    said = []
    for own in (data[:2], data[1:], data[1:]):
        stand_ins = [
            SimpleNamespace(
                data=one,
                data_checksum=None if private else str(one.inputs[0, 0]),
                loop=SimpleNamespace(device=torch.device("cpu")),
            )
            for one in own
        ]
        said.append(on_ranks(2, partial(_of_rank, stand_ins)))
    same, other, again = said
    assert same == ["", ""]
    assert other[0] == other[1] and other[0].startswith("data of rank 1=")
    assert (again == other) == (not private)  # another salt each time


@pytest.mark.parametrize(
    ("cards", "refused"), [("ab", ""), ("aba", "ranks 0 and 2"), ("bb", "ranks 0 and 1")]
)
def test_ranks_that_were_shown_the_same_card_are_refused(
    cards: str, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each calls it ``cuda:0``, as Slurm's tasks do with a card of their own."""
    uuids = iter(cards)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=next(uuids))
    )
    found = on_ranks(
        len(cards), lambda ranks: _refusal(check_own_devices, ranks, torch.device("cuda", 0))
    )
    assert len(set(found)) == 1
    assert refused in found[0] and bool(refused) == found[0].startswith("device='cuda:0': a device")


def test_ranks_share_a_processor() -> None:
    check = partial(_refusal, check_own_devices)
    assert on_ranks(3, lambda ranks: check(ranks, torch.device("cpu"))) == [""] * 3


def _of_rank(stand_ins: list[Any], ranks: Ranks) -> str:
    return _refusal(check_same_data, ranks, stand_ins[ranks.rank])


def _refusal(check: Any, ranks: Ranks, value: Any) -> str:
    try:
        check(ranks, value)
    except SettingError as error:
        return str(error)
    return ""


def test_code_is_known_by_its_files_whatever_git_says(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("x = 1\n")
    room = sys.modules[code_versions.__module__]
    monkeypatch.setattr(room, "_PACKAGE", tmp_path)
    before = code_versions()
    assert before == code_versions() and before["version of torch"]
    (tmp_path / "a" / "b.py").write_text("x = 2\n")
    changed = code_versions()
    (tmp_path / "a" / "b.py").rename(tmp_path / "b.py")
    assert len({before["code"], changed["code"], code_versions()["code"]}) == 3


# --- in the order of one process -----------------------------------------------------------------


def test_warnings_and_what_is_left_out_stand_in_the_order_of_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(network: Any) -> Tensor:
        raise SettingError("x", 1, "nothing works")

    doubts = {name: lambda network, name=name: f"{name} is doubtful" for name in ("el", "em")}
    scores = {name: lambda network: torch.ones(2, 3) for name in ("em", "el")}
    monkeypatch.setattr(attributing, "DOUBTS", doubts)
    monkeypatch.setattr(attributing, "METHODS", {"z": refuses, **scores, "a": refuses})
    methods = ["z", "em", "a", "el"]
    networks: list[Any] = [object.__new__(ScoredNetwork)] * 5
    wanted = attribute(networks, methods, numbers=range(5))
    assert wanted.warnings[:3] == [
        "member 0: em: em is doubtful", "member 0: el: el is doubtful",
        "member 1: em: em is doubtful",
    ]  # fmt: skip

    def found(ranks: Ranks) -> Any:
        own, numbers = ranks.share.of(networks), ranks.share.of(range(5))
        return attribute_by_ranks(own, methods, [], ranks, numbers=numbers)

    for count in (2, 3, 7):
        for one in on_ranks(count, found):
            assert one.warnings == wanted.warnings
            assert list(one.left_out.items()) == list(wanted.left_out.items())


class Lacking:
    """A source that has reasons for lacking some kinds of quantities, and knows of no others."""

    def __init__(self, kinds: list[str]) -> None:
        self.kinds = kinds

    def diagnostic_kinds(self) -> dict[str, str]:
        return {kind: f"{kind} cannot be had" for kind in self.kinds}


def test_quantities_that_are_left_out_stand_in_the_order_of_one_process() -> None:
    known = offline_diagnostics()
    names = [*known][::-1]
    kinds = sorted({kind for one in known.values() for kind in one.kinds})
    some: list[Any] = [("b", Lacking(kinds[:1])), ("a", Lacking(kinds[:2])), ("c", Lacking([]))]
    wanted = diagnose(some, names)
    assert {place.partition("/")[0] for place in wanted.left_out if "/" in place} == {"a", "b"}
    assert any("/" not in name for name in wanted.left_out)

    def found(ranks: Ranks) -> Any:
        return diagnose_by_ranks(lambda: some, names, None, ranks)

    for count in (2, 3, 5):
        for one in on_ranks(count, found):
            assert list(one.left_out.items()) == list(wanted.left_out.items())
            assert list(one.findings) == list(wanted.findings)


@pytest.mark.parametrize("lost", [[0], [4], [1, 3, 4], []])
def test_subsets_that_diverge_are_named_by_their_number_in_the_whole(lost: list[int]) -> None:
    weights = torch.arange(5.0)[:, None].expand(5, 3)

    def trained(rows: Tensor) -> Retrained:
        own = [number for number, row in enumerate(rows) if int(row[0]) in lost]
        if own:
            raise SubsetsDivergedError(own)
        return Retrained(rows[:, :2] * 2, rows[:, :2, None] * 3)

    def found(ranks: Ranks) -> Any:
        try:
            return retrained_by_ranks(weights, trained, ranks)
        except SubsetsDivergedError as error:
            return str(error)

    for count in (1, 2, 3, 9):
        for one in on_ranks(count, found):
            if lost:
                names = ", ".join(f"member {number}" for number in lost)
                assert one == f"subsets: {names} diverged"
            else:
                torch.testing.assert_close(one.losses, weights[:, :2] * 2)
                torch.testing.assert_close(one.outputs, weights[:, :2, None] * 3)


@pytest.mark.parametrize(("ranks", "share"), [(None, 1), ("1", 1), ("4", 4), ("many", 1)])
def test_ranks_of_a_machine_share_its_memory(
    ranks: str | None, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(plans, "free_memory", lambda device: 1000)
    cpu = torch.device("cpu")
    assert plans.memory_budget(None, cpu, deterministic=False) == 800 // share
    assert plans.memory_budget("500", cpu, deterministic=False) == 500, "what is said stays"
    assert plans.memory_budget(None, cpu, deterministic=True) is None
    assert sharers(torch.device("cuda")) == 1, "each has one of its own"
    assert memory.ranks_of_machine() == share
