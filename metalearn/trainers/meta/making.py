"""How a trainer comes by its learner: from a name, from what makes one, or ready-made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.signatures import accepted_settings
from metalearn.trainers.meta.criterion import Kind
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.members import MemberLearner
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.registry import check_complete, learner_of
from metalearn.trainers.meta.settings import MAML

__all__ = ["check_members_of", "made_learner", "takes_any_keyword", "takes_maml"]


def made_learner(
    learner: Learner | Callable[..., Learner] | str | None,
    model: nn.Module,
    maml: MAML | None,
    kind: Kind,
    device: torch.device,
) -> Learner:
    """The learner that is to be trained, its model moved to a device.

    Args:
        learner: a name, what makes a learner, a learner of ``model``, or None for MAML.
        model: one network, or an `Ensemble`.
        maml: of learners with an inner loop; None leaves it to them.
        kind: of the tasks.
        device: where to train; a learner that was made before has to be there already.

    Raises:
        SettingError: no learner, one of another model, kind or device, ``maml`` beside one that
            has no use for it.
    """
    if isinstance(learner, Learner):
        return _checked(learner, model, maml, kind, device)
    make: Callable[..., Any] = MetaLearner
    if learner is not None:
        make = learner_of(learner) if isinstance(learner, str) else learner
    if make is MetaLearner and isinstance(model, Ensemble):
        make = MemberLearner
    _check_maker(make)
    inner = takes_maml(make)
    if maml is not None and not inner:
        name = learner if isinstance(learner, str) else _name(make)
        raise SettingError(
            "maml", "settings of an inner loop", f"{name} has none, so None is needed"
        )
    made = make(model.to(device), kind=kind, **({"maml": maml} if inner else {}))
    if not isinstance(made, Learner):
        raise SettingError("learner", type(made).__name__, "what makes a Learner is needed")
    if made.needs not in ("logits", "features"):
        accepted = "logits or features is needed"
        raise SettingError(f"{type(made).__name__}.needs", made.needs, accepted)
    if type(made.features) is not int and made.features is not None:
        accepted = "a whole number or None is needed"
        raise SettingError(f"{type(made).__name__}.features", made.features, accepted)
    return made


def check_members_of(model: nn.Module, members: int | None) -> None:
    """Refuse a model that has not as many members as are asked for; None asks for nothing.

    Raises:
        SettingError: no `Ensemble`, or one of other size.
    """
    if members is not None and not (isinstance(model, Ensemble) and len(model) == members):
        raise SettingError("members", members, "an Ensemble with as many members is needed")


def takes_maml(make: Callable[..., Any]) -> bool:
    """Whether what makes a learner has a use for settings of an inner loop."""
    return "maml" in accepted_settings(make)


def _check_maker(make: Callable[..., Any]) -> None:
    """Refuse what cannot be called as one that makes a learner is."""
    accepted = "what makes a Learner of (model, kind=...) is needed"
    if isinstance(make, nn.Module):
        raise SettingError("learner", _name(make), accepted)
    check_complete(make.func if isinstance(make, partial) else make)
    try:
        inner = {"maml": None} if takes_maml(make) else {}
        signature = inspect.signature(make)
        signature.bind(None, kind=None, **inner)
        unknown = set(getattr(make, "keywords", ())) - set(accepted_settings(make))
        if unknown and not takes_any_keyword(signature):
            raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
    except (TypeError, ValueError) as error:  # of a partial, what it was given beforehand
        reason = error.__cause__ or error
        raise SettingError("learner", _name(make), f"{accepted} ({reason})") from error


def takes_any_keyword(signature: inspect.Signature) -> bool:
    """Whether there are further keywords that are not said to be settings of another callable."""
    every = signature.parameters.values()
    rest = [p.annotation for p in every if p.kind is inspect.Parameter.VAR_KEYWORD]
    return any(not re.search(r"\b(Annotated|Unpack)\b", str(hint)) for hint in rest)


def _checked(
    learner: Learner, model: nn.Module, maml: MAML | None, kind: Kind, device: torch.device
) -> Learner:
    """A learner that was made before, of parameters that stay where they are."""
    if maml is not None:
        accepted = "None is needed beside a learner, which has settings of its own"
        raise SettingError("maml", "given", accepted)
    if learner.kind != kind:
        accepted = f"one of {kind} is needed for these tasks"
        raise SettingError("learner", f"a learner of {learner.kind}", accepted)
    if learner.module is not model:
        raise SettingError(
            "model", type(model).__name__, "learner.module is needed beside a learner"
        )
    own = leaves(learner.params)[0].device
    if own.type != device.type or device.index not in (None, own.index):
        accepted = f"{own} is needed, where the learner was made"
        raise SettingError("device", str(device), accepted)
    return learner


def _name(make: Callable[..., Any]) -> str:
    inside = make.func if isinstance(make, partial) else make
    return str(getattr(inside, "__name__", type(inside).__name__))
