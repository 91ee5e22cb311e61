"""What every source of tasks keeps: an address is a task, and splits share no class.

A new source is one more entry of `SOURCES`; `test_every_source_is_here` names what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, get_args

import pytest
import torch
import yaml

from metalearn import tasks
from metalearn.data.imagenet_classes import MINI_IMAGENET, TIERED_IMAGENET
from metalearn.errors import SettingError
from metalearn.types import Split, TaskBatch, TaskDistribution
from tests.support.builders import labelled
from tests.support.commands import ROOT
from tests.support.picture_sets import (
    cifar_archive,
    small_picture,
    write_files,
    write_tar,
    write_tree,
)
from tests.support.text_sets import topics, write_table

SPLITS: tuple[Split, ...] = get_args(Split)
SIZES: dict[str, Any] = {"way": 2, "shot": 1, "query": 1}
Make = Callable[..., TaskDistribution]


def few_shot(root: Path, **settings: Any) -> TaskDistribution:
    return tasks.FewShotTasks(labelled(), **SIZES | settings)


def varying(root: Path, **settings: Any) -> TaskDistribution:
    least = {"way": 2, "shot": 1, "query": 1}
    given: dict[str, Any] = {"way": 3, "shot": 2, "query": 2, "least": least}
    return tasks.FewShotTasks(labelled(), **given | settings)


def mixture(root: Path, **settings: Any) -> TaskDistribution:
    sets = {"a": few_shot(root, **settings), "b": few_shot(root, **settings, rotate_train=True)}
    return tasks.MixtureTasks(sets, weights=[1, 2], **settings)


def sinusoid(root: Path, **settings: Any) -> TaskDistribution:
    return tasks.SinusoidTasks(shot=2, query=3, **settings)


def folder(root: Path, **settings: Any) -> TaskDistribution:
    return tasks.folder_tasks(birds(root / "folder"), image_size=4, **SIZES | settings)


def kept(how: str) -> Make:
    def made(root: Path, **settings: Any) -> TaskDistribution:
        return folder(root, keep=how, **settings)

    return made


def texts(root: Path, **settings: Any) -> TaskDistribution:
    table = write_table(root / "topics.csv", topics(12, 4))
    return tasks.text_tasks(table, length=8, **SIZES | settings)


def texts_of_sizes_that_vary(root: Path, **settings: Any) -> TaskDistribution:
    sizes: dict[str, Any] = {"way": 2, "shot": 2, "query": 2, "least": {"shot": 1, "query": 1}}
    return texts(root, **sizes | settings)


def mixture_by_name(root: Path, **settings: Any) -> TaskDistribution:
    own = {"source": "folder", "root": str(birds(root / "folder"))}
    sets = {"one": own, "two": own | {"invert": True}}
    return tasks.mixture_tasks(sets, image_size=4, **SIZES | settings)


def cifar(make: Make) -> Make:
    def made(root: Path, **settings: Any) -> TaskDistribution:
        if not (root / "cifar-100-binary.tar.gz").exists():
            cifar_archive(root)
        return make(root=root, image_size=4, **SIZES | settings)

    return made


def imagenet(make: Make, splits: Any) -> Make:
    def made(root: Path, **settings: Any) -> TaskDistribution:
        place = root / make.__name__
        if not place.exists():
            write_tree(place, splits)
        return make(root=place, image_size=4, **SIZES | settings)

    return made


def birds(root: Path) -> Path:
    """200 classes of two pictures."""
    if not root.exists():
        names = [f"{number:03d}.Bird/{i}.png" for number in range(1, 201) for i in range(2)]
        write_files(root, ((name, small_picture(i)) for i, name in enumerate(names)))
    return root


def cub(root: Path, **settings: Any) -> TaskDistribution:
    archive = root / "CUB_200_2011.tgz"
    if not archive.exists():
        names = [f"{number:03d}.Bird/{i}.jpg" for number in range(1, 201) for i in range(2)]
        files = {f"CUB_200_2011/images/{n}": small_picture(i) for i, n in enumerate(names)}
        write_tar(archive, files)
    return tasks.cub_tasks(root=archive, image_size=4, **SIZES | settings)


SOURCES: dict[str, Make] = {
    "FewShotTasks": few_shot,
    "FewShotTasks of sizes that vary": varying,
    "MixtureTasks": mixture,
    "SinusoidTasks": sinusoid,
    "cifar_fs_tasks": cifar(tasks.cifar_fs_tasks),
    "cub_tasks": cub,
    "fc100_tasks": cifar(tasks.fc100_tasks),
    "folder_tasks": folder,
    "folder_tasks of a pack": kept("cache"),
    "folder_tasks of files": kept("nothing"),
    "mini_imagenet_tasks": imagenet(tasks.mini_imagenet_tasks, MINI_IMAGENET),
    "mixture_tasks": mixture_by_name,
    "text_tasks": texts,
    "text_tasks of sizes that vary": texts_of_sizes_that_vary,
    "tiered_imagenet_tasks": imagenet(tasks.tiered_imagenet_tasks, TIERED_IMAGENET),
}
ELSEWHERE = {"glyph_tasks", "omniglot_tasks"}
"""Too large for every run: `tests/tasks/test_sources.py` has them."""

sources = pytest.mark.parametrize("name", list(SOURCES))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(autouse=True)
def caches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(root / "cache"))


def tensors(batch: TaskBatch) -> list[torch.Tensor]:
    return [*batch.support, *batch.query]


def test_every_source_is_here() -> None:
    choices = [yaml.safe_load(p.read_text()) for p in (ROOT / "conf" / "task").glob("*.yaml")]
    targets = {choice["_target_"].rpartition(".")[2] for choice in choices}
    assert targets - ELSEWHERE <= set(SOURCES)


@sources
def test_it_says_what_its_tasks_are(name: str, root: Path) -> None:
    source = SOURCES[name](root)
    assert isinstance(source, TaskDistribution)
    outputs = tasks.outputs_by_split(source)
    assert outputs["train"] == source.outputs
    for split in SPLITS:
        batch = source.sample(split, [0, 4, 2])
        for x, y in (batch.support, batch.query):
            tokens = getattr(source, "vocabulary", None) is not None
            assert x.dtype == (torch.int64 if tokens else torch.float32)
            assert x.shape[:2] == y.shape[:2] and len(x) == 3
            assert x.shape[2:] == source.input_shape
            if source.kind == "classification":
                assert y.dtype == torch.int64
                assert bool(((y == -100) | ((y >= 0) & (y < outputs[split]))).all())
            else:
                assert y.dtype == torch.float32 and y.shape[2:] == (source.outputs,)


@sources
def test_an_address_is_a_task(name: str, root: Path) -> None:
    source, again = SOURCES[name](root), SOURCES[name](root)
    for split in SPLITS:
        batch = source.sample(split, [3, 11, 0])
        for place, index in enumerate((3, 11, 0)):
            for one, alone in zip(tensors(batch), tensors(again.sample(split, [index]))):
                assert torch.equal(one[place], alone[0])


@sources
def test_threads_draw_what_one_draws(name: str, root: Path) -> None:
    source: Any = SOURCES[name](root)
    assert source.thread_safe is True
    steps = [range(3 * k, 3 * k + 3) for k in range(5)]
    alone = [tensors(source.sample("train", step)) for step in steps]
    gate = Barrier(4, timeout=60.0)

    def draw(first: int) -> list[list[torch.Tensor]]:
        gate.wait()  # all at once
        return [tensors(source.sample("train", step)) for step in steps[first:] + steps[:first]]

    with ThreadPoolExecutor(4) as pool:
        for first, found in enumerate(pool.map(draw, range(4))):
            for one, other in zip(found, alone[first:] + alone[:first], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@sources
def test_indices_splits_and_seeds_make_other_tasks(name: str, root: Path) -> None:
    source = SOURCES[name](root)
    many = {split: source.sample(split, range(6)) for split in SPLITS}
    for split in SPLITS:
        x = torch.cat([part.flatten(1) for part in many[split].support], 1).double()
        assert len(x.unique(dim=0)) > 1
    assert not torch.equal(many["train"].support[0], many["test"].support[0])
    other = SOURCES[name](root, seed=5)
    assert not torch.equal(other.sample("train", range(6)).support[0], many["train"].support[0])
    evaluated = SOURCES[name](root, eval_seed=5)
    for one, same in zip(
        tensors(evaluated.sample("train", [1])), tensors(source.sample("train", [1]))
    ):
        assert torch.equal(one, same)
    assert not torch.equal(evaluated.sample("test", range(6)).query[0], many["test"].query[0])


@sources
def test_splits_share_no_class(name: str, root: Path) -> None:
    source: Any = SOURCES[name](root)
    if source.kind == "regression":
        return
    found = {
        s: {n.partition(" turned")[0] for i in range(40) for n in source.class_names(s, i)}
        for s in SPLITS
    }
    assert all(found.values())
    assert not found["train"] & found["validation"]
    assert not (found["train"] | found["validation"]) & found["test"]


@sources
def test_what_is_no_address_is_refused(name: str, root: Path) -> None:
    source = SOURCES[name](root)
    with pytest.raises(SettingError, match="at least one task index is needed"):
        source.sample("train", [])
    with pytest.raises(SettingError, match="split='all'"):
        source.sample("all", [0])  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="index=-1"):
        source.sample("train", [-1])
    with pytest.raises(SettingError, match="seed=-1"):
        SOURCES[name](root, seed=-1)
