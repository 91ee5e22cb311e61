"""Episodes: which pictures stand in which task, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.tasks import FewShotTasks, stored_inputs
from metalearn.types import TaskDistribution
from tests.support.builders import SPLITS, assert_same, labelled, read_pictures
from tests.test_random_streams import assert_fair

DATA = labelled()
Read = list[tuple[int, int, int]]

# Recorded once, to notice a drift of the tasks from one version to the next:
# (class, picture, quarter turns) of the support and the query set.
TURNED_TASKS = [
    ([(6, 38, 3), (2, 66, 2), (3, 51, 2)], [(6, 22, 3), (2, 34, 2), (3, 19, 2)]),
    ([(4, 84, 1), (0, 16, 1), (7, 7, 1)], [(4, 68, 1), (0, 0, 1), (7, 87, 1)]),
]
TEST_TASK = ([(13, 77, 0), (14, 62, 0), (15, 15, 0)], [(13, 45, 0), (14, 30, 0), (15, 31, 0)])
GROUPED_CLASSES = [[0, 1, 2], [6, 5, 3], [5, 3, 4], [5, 4, 6], [7, 5, 3], [0, 2, 1]]


def _read(tasks: FewShotTasks, split: Any, index: int) -> tuple[Read, Read]:
    """(class, picture, turns) of the support and the query set of one task."""
    (x, _), (qx, _) = tasks.sample(split, [index])
    return read_pictures(tasks.data, x[0]), read_pictures(tasks.data, qx[0])


def _classes(tasks: FewShotTasks, split: Any, count: int) -> list[list[int]]:
    """Classes of many tasks, by name: quicker than drawing their pictures."""
    numbers = {name: c for c, name in enumerate(tasks.data.class_names)}
    return [[numbers[n] for n in tasks.class_names(split, i)] for i in range(count)]


# --- what a task looks like --------------------------------------------------------------------


def test_shapes_types_and_range() -> None:
    tasks = FewShotTasks(labelled(shape=(3, 4, 5)), way=4, shot=2, query=3)
    assert isinstance(tasks, TaskDistribution)
    assert (tasks.kind, tasks.input_shape, tasks.outputs) == ("classification", (3, 4, 5), 4)
    (x, y), (qx, qy) = tasks.sample("validation", [0, 8, 2])
    assert x.shape == (3, 8, 3, 4, 5) and qx.shape == (3, 12, 3, 4, 5)
    assert x.dtype == qx.dtype == torch.float32
    assert y.dtype == qy.dtype == torch.int64
    assert x.min() >= 0 and x.max() == 1


def test_labels_come_class_after_class() -> None:
    (_, y), (_, qy) = FewShotTasks(DATA, way=3, shot=2, query=3).sample("train", [0, 1])
    assert y.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert qy.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2


def test_pixels_are_those_of_the_pictures() -> None:
    tasks = FewShotTasks(DATA, way=2, shot=1, query=1)
    support, _ = _read(tasks, "test", 5)
    expected = DATA.images[[picture for _, picture, _ in support]].float() / 255
    assert torch.equal(tasks.sample("test", [5]).support[0][0], expected)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_task_has_way_classes_of_its_split_and_no_picture_twice(split: Any, turned: bool) -> None:
    tasks = FewShotTasks(DATA, way=4, shot=2, query=4, rotate_train=turned, rotate_eval=turned)
    for index in range(25):
        support, query = _read(tasks, split, index)
        for rows, each in ((support, 2), (query, 4)):
            kinds = [(c, turn) for c, _, turn in rows]
            assert kinds == [kinds[i - i % each] for i in range(4 * each)]
        kinds, asked = [(c, t) for c, _, t in support[::2]], [(c, t) for c, _, t in query[::4]]
        assert kinds == asked
        assert len(set(kinds)) == 4
        assert {c for c, _ in kinds} <= set(SPLITS[split])
        assert len(set(support + query)) == 4 * 6


def test_names_stand_in_the_order_of_the_labels() -> None:
    tasks = FewShotTasks(DATA, way=4, shot=1, query=1, rotate_train=True)
    for index in range(20):
        support, _ = _read(tasks, "train", index)
        expected = [f"class{c}" + (f" turned {90 * t}°" if t else "") for c, _, t in support]
        assert list(tasks.class_names("train", index)) == expected


def test_classes_may_have_different_numbers_of_pictures() -> None:
    counts = [3, 9, 4, 20, 3, 5, 7, 3]
    data = labelled(counts, splits={"train": tuple(range(8))})
    tasks = FewShotTasks(data, way=8, shot=1, query=2)
    used: dict[int, set[int]] = {c: set() for c in range(8)}
    for index in range(120):
        for c, picture, _ in sum(_read(tasks, "train", index), []):
            used[c].add(picture)
    assert [len(used[c]) for c in range(8)] == counts


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"rotate_train": True}, {"within_group": True}])
def test_the_same_task_in_any_batch(settings: dict[str, Any]) -> None:
    data = labelled(groups=["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 4)

    def make() -> FewShotTasks:
        return FewShotTasks(data, way=3, shot=2, query=2, **settings)

    tasks = make()
    batch, back = tasks.sample("train", [0, 1, 2]), tasks.sample("train", [2, 1, 0])
    alone = make().sample("train", [1])
    for many, reverse, one in zip(batch, back, alone):
        for a, b, c in zip(many, reverse, one):
            assert torch.equal(a[1], c[0]) and torch.equal(a, b.flip(0))


def test_repeated_indices_and_other_sequences() -> None:
    tasks = FewShotTasks(DATA, way=3, shot=1, query=1)
    twice = tasks.sample("train", [4, 4]).support[0]
    assert torch.equal(twice[0], twice[1])
    assert_same(
        tasks.sample("train", range(3, 5)),
        tasks.sample("train", torch.tensor([3, 4])),  # type: ignore[arg-type]
    )


def test_a_batch_may_be_written_to_without_changing_the_tasks() -> None:
    tasks = FewShotTasks(DATA, way=3, shot=1, query=1)
    first = tasks.sample("train", [0])
    kept = first.support[0].clone()
    first.support[0].zero_()
    assert torch.equal(tasks.sample("train", [0]).support[0], kept)


def test_seeds_splits_and_indices_differ() -> None:
    data = labelled((9,) * 40, splits={"train": tuple(range(20)), "test": tuple(range(20, 40))})
    drawn = {
        tuple(_read(FewShotTasks(data, way=5, shot=2, query=2, seed=seed), split, index)[0])
        for seed in (0, 1)
        for split in ("train", "test")
        for index in (0, 1, 2)
    }
    assert len(drawn) == 12


def test_split_is_part_of_the_address_not_only_the_pool() -> None:
    halves = {"train": tuple(range(8)), "test": tuple(range(8, 16))}
    tasks = FewShotTasks(labelled(splits=halves), way=5, shot=1, query=1)
    train, test = (_classes(tasks, split, 30) for split in ("train", "test"))
    assert [[c + 8 for c in classes] for classes in train] != test


def test_tasks_never_change() -> None:
    tasks = FewShotTasks(DATA, way=3, shot=1, query=1, rotate_train=True, seed=7)
    assert [_read(tasks, "train", i) for i in range(2)] == TURNED_TASKS
    assert _read(tasks, "test", 0) == TEST_TASK
    groups = ["a"] * 3 + ["b"] * 5 + ["c"] * 4 + ["d"] * 4
    grouped = FewShotTasks(labelled(groups=groups), way=3, shot=1, query=1, within_group=True)
    assert _classes(grouped, "train", 6) == GROUPED_CLASSES


def test_the_device_is_kept() -> None:
    batch = FewShotTasks(DATA, way=2).sample("train", [0, 1], device="meta")
    assert {t.device.type for part in batch for t in part} == {"meta"}


# --- rotations ---------------------------------------------------------------------------------


def _turns(tasks: FewShotTasks, split: Any, count: int = 60) -> Counter[int]:
    read: Read = sum((_read(tasks, split, i)[0] for i in range(count)), [])
    return Counter(turn for _, _, turn in read)


def test_a_turned_class_is_a_turn_of_its_pictures() -> None:
    tasks = FewShotTasks(DATA, way=4, shot=2, query=1, rotate_train=True)
    seen: set[int] = set()
    for index in range(20):
        names = tasks.class_names("train", index)
        inputs: Tensor = tasks.sample("train", [index]).support[0][0]
        originals = DATA.images[[p for _, p, _ in read_pictures(DATA, inputs)]].float() / 255
        for i, name in enumerate(n for n in names for _ in range(2)):
            degrees = int(name.split("turned ")[1][:-1]) if "turned" in name else 0
            assert torch.equal(inputs[i], torch.rot90(originals[i], degrees // 90, (-2, -1)))
            seen.add(degrees)
    assert seen == {0, 90, 180, 270}


@pytest.mark.parametrize(
    ("settings", "train", "other"),
    [
        ({}, 1, 1),
        ({"rotate_train": True}, 4, 1),
        ({"rotate_eval": True}, 1, 4),
        ({"rotate_train": True, "rotate_eval": True}, 4, 4),
    ],
)
def test_only_the_splits_asked_for_are_turned(
    settings: dict[str, bool], train: int, other: int
) -> None:
    tasks = FewShotTasks(DATA, way=3, shot=1, query=1, **settings)
    assert len(_turns(tasks, "train")) == train
    assert len(_turns(tasks, "validation")) == len(_turns(tasks, "test")) == other


def test_the_four_turns_are_equally_likely() -> None:
    tasks = FewShotTasks(DATA, way=4, shot=1, query=1, rotate_train=True)
    assert_fair(_turns(tasks, "train", 300).values(), 4)


def test_turned_classes_count_as_classes_of_their_own() -> None:
    tasks = FewShotTasks(DATA, way=16, shot=1, query=1, rotate_train=True, rotate_eval=True)
    support, _ = _read(tasks, "test", 0)
    assert {(c, t) for c, _, t in support} == {(c, t) for c in SPLITS["test"] for t in range(4)}


@pytest.mark.parametrize("name", ["rotate_train", "rotate_eval"])
def test_turning_needs_square_pictures(name: str) -> None:
    data = labelled(shape=(1, 4, 5))
    with pytest.raises(SettingError, match=rf"^{name}=True: turning needs square pictures"):
        FewShotTasks(data, way=2, **{name: True})  # type: ignore[arg-type]
    assert FewShotTasks(data, way=2).input_shape == (1, 4, 5)


# --- groups ------------------------------------------------------------------------------------

GROUPS = ["a"] * 2 + ["b"] * 3 + ["c"] * 5 + ["d"] * 1 + ["e"] * 4
GROUPED = labelled((3,) * 15, groups=GROUPS, splits={"train": tuple(range(15))})


@pytest.mark.parametrize(("way", "kept"), [(2, "abce"), (3, "bce"), (4, "ce"), (5, "c")])
def test_classes_of_a_task_come_from_one_group(way: int, kept: str) -> None:
    tasks = FewShotTasks(GROUPED, way=way, shot=1, query=1, within_group=True)
    found = [{GROUPS[c] for c in classes} for classes in _classes(tasks, "train", 150)]
    assert all(len(groups) == 1 for groups in found)
    assert set().union(*found) == set(kept)


def test_groups_are_drawn_in_proportion_to_their_classes() -> None:
    tasks = FewShotTasks(GROUPED, way=2, shot=1, query=1, within_group=True)
    drawn = Counter(GROUPS[classes[0]] for classes in _classes(tasks, "train", 2800))
    for group, size in {"a": 2, "b": 3, "c": 5, "e": 4}.items():
        share = size / 14
        assert abs(drawn[group] - 2800 * share) < 5 * (2800 * share * (1 - share)) ** 0.5


def test_without_the_setting_groups_mix() -> None:
    tasks = FewShotTasks(GROUPED, way=4, shot=1, query=1)
    found = [{GROUPS[c] for c in classes} for classes in _classes(tasks, "train", 50)]
    assert max(map(len, found)) > 1


def test_turns_make_a_small_group_large_enough() -> None:
    tasks = FewShotTasks(GROUPED, way=4, shot=1, query=1, within_group=True, rotate_train=True)
    seen = {GROUPS[c] for i in range(150) for c, _, _ in _read(tasks, "train", i)[0]}
    assert "d" in seen


# --- fairness ----------------------------------------------------------------------------------


def test_classes_are_drawn_evenly_at_every_place() -> None:
    data = labelled((2,) * 12, splits={"train": tuple(range(12))})
    drawn = _classes(FewShotTasks(data, way=4, shot=1, query=1), "train", 2000)
    for place in range(4):
        assert_fair(Counter(classes[place] for classes in drawn).values(), 12)
    assert_fair(Counter(frozenset(classes[:2]) for classes in drawn).values(), 66)


def test_pictures_are_drawn_evenly_for_both_sets() -> None:
    data = labelled((7,) * 2, splits={"train": (0, 1)})
    tasks = FewShotTasks(data, way=2, shot=1, query=2)
    batch = tasks.sample("train", range(1000))
    for part in batch:
        read = read_pictures(data, part[0].flatten(0, 1))
        assert_fair(Counter(picture for _, picture, _ in read).values(), 14)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("way", 1, 2), ("way", 0, 2), ("way", 2.0, 2), ("way", True, 2), ("shot", 0, 1),
     ("shot", "1", 1), ("query", 0, 1), ("query", -3, 1), ("query", None, 1)],
)  # fmt: skip
def test_sizes_out_of_range(name: str, value: Any, least: int) -> None:
    message = rf"^{name}={value!r}: a whole number of at least {least} is needed"
    with pytest.raises(SettingError, match=message):
        FewShotTasks(DATA, **{name: value})


def test_a_way_beyond_the_classes_is_refused_at_once() -> None:
    FewShotTasks(DATA, way=4)
    with pytest.raises(
        SettingError, match=r"way=5: the validation split offers 4 classes in it, so at most 4"
    ):
        FewShotTasks(DATA, way=5)
    with pytest.raises(SettingError, match=r"way=17: the validation split offers 16 classes"):
        FewShotTasks(DATA, way=17, rotate_train=True, rotate_eval=True)
    with pytest.raises(SettingError, match=r"way=6: .*5 classes in its largest group, so at most"):
        FewShotTasks(GROUPED, way=6, within_group=True)


def test_more_pictures_than_a_class_has_are_refused_at_once() -> None:
    FewShotTasks(DATA, way=2, shot=2, query=4)
    with pytest.raises(SettingError, match=r"shot \+ query=7: class class0 has 6 pictures"):
        FewShotTasks(DATA, way=2, shot=3, query=4)
    short = labelled([6] * 15 + [2])
    with pytest.raises(SettingError, match=r"shot \+ query=3: class class15 has 2 pictures"):
        FewShotTasks(short, way=2, shot=1, query=2)


def test_classes_outside_the_splits_may_be_small() -> None:
    data = labelled([1, 5, 5], splits={"train": (1, 2)})
    assert FewShotTasks(data, way=2, shot=2, query=3).sample("train", [0]).query[0].shape[1] == 6


@pytest.mark.parametrize("method", ["sample", "class_names"])
def test_splits_that_are_not_there(method: str) -> None:
    tasks = FewShotTasks(labelled(splits={"train": tuple(range(8))}), way=2)
    call: Any = (lambda s: tasks.sample(s, [0])) if method == "sample" else (
        lambda s: tasks.class_names(s, 0)
    )  # fmt: skip
    with pytest.raises(SettingError, match="split='val': one of train, validation, test is needed"):
        call("val")
    with pytest.raises(SettingError, match="split='test': these data have train"):
        call("test")


def test_no_index_and_negative_indices() -> None:
    tasks = FewShotTasks(DATA, way=2)
    with pytest.raises(SettingError, match="at least one task index is needed"):
        tasks.sample("train", [])
    with pytest.raises(SettingError, match="index=-1: a whole number"):
        tasks.sample("train", [0, -1])


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_a_seed_out_of_range_is_refused_before_any_task_is_drawn(seed: Any) -> None:
    with pytest.raises(SettingError, match="^seed="):
        FewShotTasks(DATA, way=2, seed=seed)


def test_sets_that_are_too_large_for_a_gpu_stay_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks, device = FewShotTasks(labelled(), way=2), torch.device("meta")
    assert tasks._inputs.on(device).device == device
    monkeypatch.setattr(stored_inputs, "_LARGEST_ON_DEVICE", 10)
    assert tasks._inputs.on(device) is tasks.data.images
    assert tasks.sample("train", [0], device=device).query[0].device == device
