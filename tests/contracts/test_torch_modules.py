"""The modules of torch's own list are right or refused in one sentence, in every entry point."""

from __future__ import annotations

import pytest

from tests.contracts.torch_modules import ENTRIES, INFOS, cases_of, verdict

_EVERY = 6  # kinds of modules: one of so many in each run, all with -m campaign


def check(number: int) -> None:
    found = {
        (case.name, entry): verdict(case, entry)
        for case in cases_of(INFOS[number])
        for entry in ENTRIES
    }
    bad = {place: said for place, said in found.items() if ":" in said}
    assert not bad


@pytest.mark.parametrize("number", range(0, len(INFOS), _EVERY), ids=lambda n: INFOS[n].name)
def test_a_sample_of_torchs_modules(number: int) -> None:
    check(number)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(len(INFOS)), ids=lambda n: INFOS[n].name)
def test_all_of_torchs_modules(number: int) -> None:
    check(number)


def test_the_oracle_tells_right_from_wrong() -> None:
    """Every entry point has cases that are right: the list is not refused as a whole."""
    kinds = [info for info in INFOS if info.name == "nn.Linear"]
    assert {verdict(c, e) for c in cases_of(kinds[0]) for e in ENTRIES} <= {"right", "no oracle"}
    first = next(cases_of(kinds[0]))
    assert {entry: verdict(first, entry) for entry in ENTRIES} == dict.fromkeys(ENTRIES, "right")
