"""Every trainer, on a device where nothing mixes with the processor's tensors and no float64 is.

`tests.support.simulated_card` stands in for CUDA, and with ``card32`` for Apple's MPS: a tensor,
index or generator that was left on the processor ends a training there, as it would on a card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.contracts.trainers import TRAINERS
from tests.on_accelerator import main
from tests.support.devices import DEVICE

OFTEN = ["waves_learnt", "sweep", "per_sample", "private_noisy", "hyper_distilled", "cnp"]
"""Trainings of each kind; all of them are a campaign."""
SPOILT = {
    "a tensor of the processor": "MixedDevices: aten.add.Tensor: a tensor on cpu beside those on",
    "a generator of the processor": "MixedDevices: aten.normal_.default: a generator of cpu",
    "an index of the processor": "MixedDevices: aten.gather.default: a tensor on cpu beside those",
    "float64": "TypeError: the device does not know float64",
}


def on_a_card(device: str, *names: str) -> dict[str, Any]:
    known = {**os.environ, "METALEARN_TEST_DEVICE": device}
    command = [sys.executable, "-m", "tests.contracts.on_a_card", *names]
    done = subprocess.run(command, env=known, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def often() -> dict[str, Any]:
    return on_a_card("card32", *OFTEN)


@pytest.mark.parametrize("name", OFTEN)
def test_a_training_runs_on_a_card(name: str, often: dict[str, Any]) -> None:
    assert often["found"][name] == ""


@pytest.mark.parametrize(("name", "said"), SPOILT.items())
def test_what_a_card_would_refuse_is_caught(name: str, said: str, often: dict[str, Any]) -> None:
    assert said in often["found"][name]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the processor is what it is held against")
def test_a_gradient_there_is_that_of_the_processor(often: dict[str, Any]) -> None:
    from tests.contracts.on_a_card import gradient

    assert gradient().tolist() == pytest.approx(often["gradient"], rel=1e-5, abs=1e-7)


def test_without_an_accelerator_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("METALEARN_TEST_DEVICE", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert main([]) == 1
    said = capsys.readouterr()
    assert not said.out and "finds no accelerator here" in said.err


@pytest.mark.campaign
@pytest.mark.parametrize("device", ["card", "card32"])
def test_all_trainings_run_on_a_card(device: str) -> None:
    found = on_a_card(device, *TRAINERS)["found"]
    assert {name: found[name] for name in TRAINERS if found[name]} == {}
