"""Which device a name means: with no card, one, eight, or Apple's, alone and as ranks."""

from __future__ import annotations

import pytest
import torch

from metalearn.cli.devices import device_of
from metalearn.errors import SettingError


def machine(monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    """As torch sees a machine of so many devices; tensors of them are made on the processor."""
    found = torch.device(kind) if count else None
    make = torch.ones

    def ones(*size: int, device: torch.device) -> torch.Tensor:
        if device.type != "cpu" and (device.type != kind or (device.index or 0) >= count):
            raise RuntimeError("no such device")
        return make(*size)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch, "ones", ones)


@pytest.fixture(autouse=True)
def _shown_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        monkeypatch.delenv(name, raising=False)


def rank(monkeypatch: pytest.MonkeyPatch, local_rank: int, of: int = 8, nodes: int = 1) -> None:
    """As torchrun has it in the environment."""
    known = {"RANK": local_rank, "WORLD_SIZE": of * nodes, "LOCAL_RANK": local_rank}
    for name, value in {**known, "LOCAL_WORLD_SIZE": of, "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("kind", "count", "name", "wanted"),
    [
        ("cuda", 0, "auto", "cpu"),
        ("cuda", 1, "auto", "cuda"),
        ("cuda", 8, "auto", "cuda"),
        ("cuda", 8, "cuda:7", "cuda:7"),
        ("cuda", 8, "cpu", "cpu"),
        ("mps", 1, "auto", "mps"),
        ("mps", 1, "mps", "mps"),
        ("xpu", 2, "xpu:1", "xpu:1"),
    ],
)
def test_a_process_by_itself_takes_what_is_there(
    kind: str, count: int, name: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, kind, count)
    assert device_of(name) == torch.device(wanted)


@pytest.mark.parametrize(
    ("kind", "count", "name"),
    [
        ("cuda", 8, "cuda:9"),
        ("cuda", 8, "cuda:8"),
        ("cuda", 0, "cuda"),
        ("cuda", 8, "mps"),
        ("mps", 1, "cuda"),
        ("mps", 1, "cuda:0"),
        ("cuda", 8, "gpu"),
        ("cuda", 8, "cuda:-1"),
        ("cuda", 8, ""),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    kind: str, count: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, kind, count)
    with pytest.raises(SettingError, match=f"^device='{name}': auto, cpu or a device that torch"):
        device_of(name)


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("local_rank", [0, 3, 7])
def test_each_rank_has_a_card_of_its_own(
    name: str, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kind alone too, which for a process by itself is the first card."""
    machine(monkeypatch, "cuda", 8)
    rank(monkeypatch, local_rank, nodes=2)
    assert device_of(name) == torch.device("cuda", local_rank)


@pytest.mark.parametrize(
    ("kind", "count", "name", "local_rank"),
    [("cuda", 1, "auto", 1), ("cuda", 4, "cuda", 4), ("mps", 1, "auto", 1), ("mps", 1, "mps", 7)],
)
def test_a_rank_beyond_the_cards_is_told_how_many_there_are(
    kind: str, count: int, name: str, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, kind, count)
    rank(monkeypatch, local_rank)
    said = f"^device='{name}': device=cpu, or at most {count} ranks on this machine, one for each"
    with pytest.raises(SettingError, match=said):
        device_of(name)


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("local_rank", [0, 5])
def test_a_rank_that_is_shown_one_card_has_that(
    name: str, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm shows each of its tasks one; to each it is the first."""
    machine(monkeypatch, "cuda", 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(local_rank))
    rank(monkeypatch, local_rank)
    assert device_of(name) == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_rank_looks_at_no_card_of_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes memory of the card."""
    machine(monkeypatch, "cuda", 8)
    rank(monkeypatch, 3)
    make, looked = torch.ones, []

    def ones(*size: int, device: torch.device) -> torch.Tensor:
        looked.append(device)
        return make(*size, device=device)

    monkeypatch.setattr(torch, "ones", ones)
    device_of(name)
    assert set(looked) <= {torch.device("cuda", 3)}


def test_ranks_of_a_machine_do_not_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank on each machine may name its card."""
    machine(monkeypatch, "cuda", 8)
    rank(monkeypatch, 0, of=2)
    with pytest.raises(SettingError, match="^device='cuda:3': device=cuda is needed, so that each"):
        device_of("cuda:3")
    rank(monkeypatch, 0, of=1, nodes=2)
    assert device_of("cuda:3") == torch.device("cuda:3")


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_ranks_without_cards_share_the_processor(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "cuda", 0)
    rank(monkeypatch, 5)
    assert device_of(name) == torch.device("cpu")
