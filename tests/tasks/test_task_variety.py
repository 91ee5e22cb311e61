"""More tasks from the same pictures: alphabets turned as a whole, affine changes, a second seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from metalearn.data import AffineRanges
from metalearn.data.affine import change_pictures
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream
from metalearn.tasks import FewShotTasks, SinusoidTasks
from tests.support.builders import labelled, read_pictures

GROUPS = ["a"] * 5 + ["b"] * 3 + ["c"] * 4 + ["d"] * 4
DATA = labelled(groups=GROUPS)  # training has a and b
EVALUATED: tuple[Any, ...] = ("validation", "test")
AUGMENT = {"rotate": 20.0, "scale": 0.2, "shear": 0.1, "shift": 0.1}


def make(**settings: Any) -> FewShotTasks:
    return FewShotTasks(DATA, **{"way": 3, "shot": 1, "query": 2} | settings)


# --- alphabets turned as a whole ---------------------------------------------------------------


def test_all_classes_of_a_task_are_turned_alike_and_come_from_one_alphabet() -> None:
    tasks = make(within_group=True, turn_groups=True)
    kinds: Counter[tuple[str, int]] = Counter()
    for index in range(2400):
        ids = tasks.class_names("train", index)
        turns = {name.partition(" turned ")[2] for name in ids}
        groups = {GROUPS[int(name.partition(" ")[0].removeprefix("class"))] for name in ids}
        assert len(turns) == len(groups) == 1 and len(set(ids)) == 3
        kinds[groups.pop(), int((turns.pop() or "0").removesuffix("°")) // 90] += 1
    assert len(kinds) == 8
    for (group, _), count in kinds.items():  # in proportion to the classes, each turn alike
        expected = 2400 * {"a": 5, "b": 3}[group] / 8 / 4
        assert abs(count - expected) < 5 * expected**0.5


def test_pictures_are_turned_as_names_and_ids_say() -> None:
    tasks = make(within_group=True, turn_groups=True)
    for index in range(12):
        batch = tasks.sample("train", [index])
        read = read_pictures(DATA, batch.query[0][0])
        assert len({turn for _, _, turn in read}) == 1
        assert batch.class_ids is not None
        assert batch.class_ids[0].tolist() == [c + 16 * turn for c, _, turn in read[::2]]


@pytest.mark.parametrize("split", EVALUATED)
def test_alphabets_of_evaluation_stay_upright(split: Any) -> None:
    turned, upright = make(within_group=True, turn_groups=True), make(within_group=True)
    for one, other in zip(turned.sample(split, [0, 1, 2]), upright.sample(split, [0, 1, 2])):
        assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_a_single_alphabet_is_four() -> None:
    one = labelled(splits={"train": tuple(range(8))}, groups=["a"] * 16)
    tasks = FewShotTasks(one, way=4, within_group=True, turn_groups=True)
    turns = {tasks.class_names("train", i)[0].partition(" turned ")[2] for i in range(40)}
    assert turns == {"", "90°", "180°", "270°"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turn_groups": True}, "turn_groups=True: false is needed where a task's classes come"),
        (
            {"turn_groups": True, "within_group": True, "rotate_train": True},
            "turn_groups=True: false is needed beside rotate_train=true",
        ),
    ],
)
def test_turns_that_contradict_one_another_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        make(**settings)


def test_alphabets_of_pictures_that_are_not_square_are_not_turned() -> None:
    data = labelled(groups=GROUPS, shape=(1, 4, 5))
    with pytest.raises(SettingError, match="turn_groups=True: turning needs square pictures"):
        FewShotTasks(data, way=3, within_group=True, turn_groups=True)


# --- affine changes ----------------------------------------------------------------------------


def test_the_same_address_gives_the_same_picture_in_any_batch() -> None:
    tasks = make(augment=AUGMENT)
    batch, alone = tasks.sample("train", [4, 0, 2]), make(augment=AUGMENT).sample("train", [2])
    for many, one in zip(batch[:2], alone[:2]):
        assert torch.equal(many[0][2], one[0][0])
    again = tasks.sample("train", [4, 0, 2])
    assert torch.equal(batch.support[0], again.support[0])


def test_every_picture_is_changed_by_draws_of_its_own() -> None:
    found, plain = make(augment=AUGMENT).sample("train", [7]), make().sample("train", [7])
    draws = torch.from_numpy(AddressedStream(0, "affine", 7).uniform(3 * 3 * 6)).view(9, 6)
    pictures = torch.cat(
        [part.unflatten(0, (3, -1)) for part in (plain.support[0][0], plain.query[0][0])], 1
    )
    expected = change_pictures(pictures.flatten(0, 1), AffineRanges(**AUGMENT), draws.float())
    expected = expected.unflatten(0, (3, 3))
    assert torch.equal(found.support[0][0], expected[:, :1].flatten(0, 1))
    assert torch.equal(found.query[0][0], expected[:, 1:].flatten(0, 1))
    assert torch.equal(found.support[1], plain.support[1])


@pytest.mark.parametrize("split", EVALUATED)
def test_pictures_of_evaluation_stay_as_they_are(split: Any) -> None:
    found, plain = make(augment=AUGMENT).sample(split, [1]), make().sample(split, [1])
    assert torch.equal(found.query[0], plain.query[0])


@pytest.mark.parametrize("augment", [None, {}, dict.fromkeys(AUGMENT, 0.0)])
def test_ranges_of_zero_change_nothing(augment: Any) -> None:
    found, plain = make(augment=augment).sample("train", [1, 2]), make().sample("train", [1, 2])
    assert torch.equal(found.support[0], plain.support[0])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"rotate": 181}, r"augment\.rotate=181: a number from 0 to 180 is needed"),
        ({"rotatee": 1}, r"augment\.rotatee=1: there is no such setting; did you mean"),
        ({"shift": "abc"}, r"augment\.shift='abc': a number is needed"),
        (5, "augment=5: a mapping or null|augment=5: .* needed"),
    ],
)
def test_augmentations_that_are_none_are_refused(augment: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(augment=augment)


# --- a seed of evaluation ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [make, SinusoidTasks])
def test_tasks_of_evaluation_have_a_seed_of_their_own(kind: Any) -> None:
    def drawn(split: Any, **seeds: Any) -> torch.Tensor:
        found: torch.Tensor = kind(**seeds).sample(split, [0, 1, 2]).query[0]
        return found

    for split in ("train", *EVALUATED):
        ruling = {"seed": 3} if split == "train" else {"seed": 9}
        assert torch.equal(drawn(split, seed=3, eval_seed=9), drawn(split, **ruling))
        assert torch.equal(drawn(split, seed=3), drawn(split, seed=3, eval_seed=3))
    assert not torch.equal(drawn("test", seed=3), drawn("test", seed=3, eval_seed=9))


def test_names_of_classes_follow_the_seed_of_evaluation() -> None:
    tasks = make(seed=3, eval_seed=9)
    for split in EVALUATED:
        assert tasks.class_names(split, 5) == make(seed=9).class_names(split, 5)
    assert tasks.class_names("train", 5) == make(seed=3).class_names("train", 5)


@pytest.mark.parametrize("value", [-1, 1.5, 2**64])
@pytest.mark.parametrize("kind", [make, SinusoidTasks])
def test_seeds_of_evaluation_that_are_none_are_refused(kind: Any, value: Any) -> None:
    with pytest.raises(SettingError, match="eval_seed="):
        kind(eval_seed=value)
