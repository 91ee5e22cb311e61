"""Several sources of pictures, by name, as one task distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.signatures import accepted_settings, check_settings, checked
from metalearn.tasks.episodes import FewShotTasks
from metalearn.tasks.mixture import MixtureTasks
from metalearn.tasks.published_sets import (
    cifar_fs_tasks,
    cub_tasks,
    fc100_tasks,
    mini_imagenet_tasks,
    tiered_imagenet_tasks,
)
from metalearn.tasks.sources import folder_tasks, glyph_tasks, omniglot_tasks

__all__ = ["mixture_tasks"]

_SOURCES: Mapping[str, Callable[..., FewShotTasks]] = {
    "cifar_fs": cifar_fs_tasks,
    "cub": cub_tasks,
    "fc100": fc100_tasks,
    "folder": folder_tasks,
    "glyphs": glyph_tasks,
    "mini_imagenet": mini_imagenet_tasks,
    "omniglot": omniglot_tasks,
    "tiered_imagenet": tiered_imagenet_tasks,
}


@checked
def mixture_tasks(
    sets: Sequence[str] | Mapping[str, Any],
    *,
    weights: Sequence[float] | None = None,
    image_size: int | None = None,
    **episodes: Annotated[Any, FewShotTasks],
) -> MixtureTasks:
    """Tasks of several data sets: a set is drawn by weight, then a task of it.

    Args:
        sets: names of data sets, ``["glyphs", "omniglot"]``, or names to settings of their own,
            ``{"omniglot": {"split": "alphabets"}, "mine": {"source": "folder", "root": "…"}}``,
            which count before those that follow. Known are cifar_fs, cub, fc100, folder, glyphs,
            mini_imagenet, omniglot and tiered_imagenet.
        weights: how often each is drawn, in their order; None: equally often.
        image_size: height and width of all pictures; None leaves each set its own.
        episodes: settings of `FewShotTasks`, for all sets.

    Raises:
        SettingError: a setting that cannot work, or sets whose pictures or tasks differ in shape.
        DataError: a set is missing or damaged.
    """
    named = sets if isinstance(sets, Mapping) else {name: {} for name in sets}
    if not isinstance(sets, Mapping) and len(named) != len(sets):
        raise SettingError("sets", list(sets), "each name once is needed")
    common = dict(episodes) | ({} if image_size is None else {"image_size": image_size})
    made = {name: _made(name, own or {}, common) for name, own in named.items()}
    seeds = {name: episodes[name] for name in ("seed", "eval_seed") if name in episodes}
    return MixtureTasks(made, weights=weights, **seeds)


def _made(name: str, own: Any, common: Mapping[str, Any]) -> FewShotTasks:
    """The tasks of one set, by its own settings and those of all."""
    where = f"sets.{name}"
    if not isinstance(own, Mapping):
        raise SettingError(where, own, "a mapping of settings is needed")
    source = own.get("source", name)
    setting = f"{where}.source" if "source" in own else where
    check_known(setting, source, _SOURCES, "one of {} is needed")
    make = _SOURCES[source]
    settings = {key: value for key, value in own.items() if key != "source"}
    check_settings(make, settings, f"{where}.", without=("data",))
    if "root" not in settings and make is folder_tasks:
        raise SettingError(f"{where}.root", None, "this setting has to be given")
    known = accepted_settings(make)
    try:
        return make(**{k: v for k, v in common.items() if k in known} | settings)
    except SettingError as error:
        setting = error.setting
        if setting.partition(".")[0] in settings:
            setting = f"{where}.{setting}"
        raise SettingError(setting, error.value, f"{error.accepted} (in the set {name})") from error
