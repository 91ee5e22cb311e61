"""Settings of a training that were given in vain: each is named, none is passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from metalearn.cli.building import GROUPS, groups_of
from metalearn.cli.given_settings import GivenSetting, plain_value
from metalearn.cli.targets import target_of
from metalearn.signatures import accepted_settings

__all__ = ["refuse_unused_groups", "refuse_unused_settings"]

_OF_MEMBERS = ("lr", "weight_decay", "label_smoothing", "dropout")
"""Settings of the trainer in which members may differ."""


def refuse_unused_groups(config: DictConfig, given: Sequence[GivenSetting], trainer: str) -> None:
    """Refuse groups that the training has no use for.

    Args:
        config: of a training.
        given: what a person gave.
        trainer: the choice of that group.

    Raises:
        SettingError: the first setting in vain.
    """
    used = groups_of(config)
    for setting in given:
        group, _, name = setting.name.partition(".")
        if setting.removed:
            if group in used and name in accepted_settings(target_of(config[group], group)):
                raise setting.refusal("this setting has to be given; ~ takes away a group alone")
        elif setting.value is not None and group in GROUPS and group not in used:
            accepted = f"trainer={trainer} has no use for it, but for {', '.join(used)}"
            if group == "maml" and "learner" in used:
                accepted = "the learner has no inner loop, and no use for it"
            raise setting.refusal(accepted)


def refuse_unused_settings(
    config: DictConfig, given: Sequence[GivenSetting], learner: str | None
) -> None:
    """Refuse settings that other settings contradict or leave without a use.

    Args:
        config: of a training, checked.
        given: what a person gave.
        learner: the choice of that group.

    Raises:
        SettingError: the first setting in vain.
    """
    for setting in given if learner == "fomaml" else ():
        if setting.name == "learner.first_order" and setting.value is not True:
            accepted = "learner=fomaml is of first order; learner=maml leaves it open"
            raise setting.refusal(accepted)
    names = {setting.name for setting in given if setting.value is not None}
    unused = dict(_unused(config, names))
    for setting in given:
        if setting.name in unused and setting.value is not None and not setting.removed:
            raise setting.refusal(unused[setting.name])


def _unused(config: DictConfig, given: set[str]) -> Iterator[tuple[str, str]]:
    """Settings that others leave without a use, and why."""
    trainer, maml = config.trainer, config.get("maml")
    meta = "task" in groups_of(config)
    if (plain_value(config.model.get("lora")) or {}).get("rank") is None:
        for name in ("alpha", "layers"):
            yield f"model.lora.{name}", "model.lora.rank is needed for it"
    if "maml" in groups_of(config) and maml is not None:
        asked = (config.get("learner") or {}).get("first_order")
        if asked is not None and asked != maml.get("first_order"):
            yield "maml.first_order", f"learner.first_order={str(asked).lower()} contradicts it"
        yield from _unused_rates(config.get("learner") or {})
        if _method(config) != "implicit":
            for name in ("regularization", "cg_iterations", "cg_damping"):
                yield f"maml.{name}", "learner=imaml, or maml.method=implicit, is needed for it"
        yield from _unused_inner(maml)
        if maml.get("method") == "first_order" and not maml.get("first_order"):
            yield "maml.first_order", "true is needed beside maml.method=first_order"
    without = [n for n in ("validation_groups", "validation_fraction") if config.task.get(n) == 0]
    if meta and without:
        for name in ("patience", "select_by", "validation_tasks"):
            yield f"trainer.{name}", f"task.{without[0]}=0 leaves no tasks for validation"
    if not meta and config.test_tasks:
        yield "test_tasks", "the run has no tasks; 0 leaves the test out, which is on samples"
    if not trainer.get("diagnostics"):
        yield "trainer.diagnostics_every", "trainer.diagnostics is needed for it"
    if trainer.get("members") is not None:
        yield "model.seed", "members have seeds of their own: seed, or trainer.seeds, is needed"
        if "trainer.lr" in given:
            yield "optimizer.lr", "members follow trainer.lr, so one of both is needed"
        own = [plain_value(trainer.get(name)) for name in _OF_MEMBERS]
        seeds = plain_value(trainer.get("seeds"))
        if (
            seeds
            and len(set(seeds)) < len(seeds)
            and not any(isinstance(v, list | dict) for v in own)
        ):
            yield (
                "trainer.seeds",
                "different ones are needed, or members of equal settings are twins",
            )
    if trainer.get("chunk_size") is not None and "trainer.chunk_size" in given:
        yield "trainer.memory", "trainer.chunk_size is given, and decides; one of both is needed"


def _unused_rates(learner: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of where step sizes start, of learners that may draw them."""
    if learner.get("rate_range") is not None:
        yield "maml.inner_lr", "learner.rate_range says where step sizes start; one is needed"
    elif "rate_range" in learner:
        yield "learner.seed", "learner.rate_range is needed for it"


def _method(config: DictConfig) -> Any:
    """How the gradient through adaptation is taken: as a learner has it, or as ``maml`` says."""
    learner = config.get("learner")
    fixed = getattr(target_of(learner, "learner"), "method", None) if learner else None
    return fixed or config.maml.get("method")


def _unused_inner(maml: DictConfig) -> Iterator[tuple[str, str]]:
    """Settings of inner optimisers that the one at hand does not take."""
    name = maml.get("inner_optimizer")
    if name == "sgd":
        yield "maml.inner_betas", "maml.inner_optimizer=adam or adamw is needed for them"
    else:
        for setting in ("inner_momentum", "inner_nesterov"):
            yield f"maml.{setting}", "maml.inner_optimizer=sgd is needed for it"
    learnt = plain_value(maml.get("learn")) or ()
    if "lr" not in ([learnt] if isinstance(learnt, str) else learnt):
        yield "maml.lr_per", "maml.learn=[lr] is needed for it"
