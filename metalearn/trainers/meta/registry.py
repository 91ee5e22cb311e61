"""The learners that are known by name: the one table that settings, pages and contracts read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.signatures import checked
from metalearn.trainers.meta.anil import ANIL
from metalearn.trainers.meta.baseline_pp import BaselinePlusPlus
from metalearn.trainers.meta.boil import BOIL
from metalearn.trainers.meta.cavia import CAVIA
from metalearn.trainers.meta.cnp import ConditionalNeuralProcess
from metalearn.trainers.meta.imaml import ImplicitMAML
from metalearn.trainers.meta.in_context import InContextLearner
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.mamlpp import MAMLPlusPlus
from metalearn.trainers.meta.meta_sgd import MetaSGD
from metalearn.trainers.meta.metaoptnet import MetaOptNet
from metalearn.trainers.meta.multi_step import MultiStepLearner
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.protomaml import ProtoMAML
from metalearn.trainers.meta.protonet import ProtoNet
from metalearn.trainers.meta.r2d2 import R2D2
from metalearn.trainers.meta.reptile import Reptile
from metalearn.trainers.meta.rfs import RFS

__all__ = ["LEARNERS", "KnownLearner", "check_complete", "learner_of", "register_learner"]


@dataclass(frozen=True)
class KnownLearner:
    """A learner as `LEARNERS` has it."""

    make: Callable[..., Learner]
    """``make(module, kind=…)``, with ``maml=…`` where it has an inner loop."""
    summary: str
    """What it does, in a line."""


LEARNERS: dict[str, KnownLearner] = {
    "maml": KnownLearner(MetaLearner, "the initial parameters of an inner loop are learnt"),
    "fomaml": KnownLearner(
        partial(MetaLearner, first_order=True), "as maml, without second derivatives"
    ),
    "mamlpp": KnownLearner(
        MAMLPlusPlus, "as maml, with annealed losses of all inner steps and learnt step sizes"
    ),
    "meta_sgd": KnownLearner(
        MetaSGD, "as maml, with a learnt step size for each element of each parameter"
    ),
    "imaml": KnownLearner(
        ImplicitMAML, "as maml, with a pull towards the start in place of derivatives of steps"
    ),
    "reptile": KnownLearner(
        Reptile, "as maml, towards where inner loops end; no gradient of queries"
    ),
    "cavia": KnownLearner(CAVIA, "as maml, of a context vector alone that starts at zero"),
    "anil": KnownLearner(ANIL, "as maml, of which the head alone adapts"),
    "boil": KnownLearner(BOIL, "as maml, of which all but the head adapts"),
    "multi_step": KnownLearner(
        MultiStepLearner, "as maml, with the query loss after every inner step"
    ),
    "protonet": KnownLearner(ProtoNet, "the nearest mean of a class's features; no inner loop"),
    "protomaml": KnownLearner(
        ProtoMAML, "as maml, with a head that starts as the means of a class's features"
    ),
    "r2d2": KnownLearner(R2D2, "a ridge regression on features, in closed form; no inner loop"),
    "metaoptnet": KnownLearner(
        MetaOptNet, "a ridge or logistic classifier of features, at its optimum; no inner loop"
    ),
    "baseline_pp": KnownLearner(
        BaselinePlusPlus,
        "cosines to class weights, of all training classes, then of a task's; no inner loop",
    ),
    "rfs": KnownLearner(
        RFS, "a classifier of all training classes, then a logistic head; no inner loop"
    ),
    "cnp": KnownLearner(
        ConditionalNeuralProcess, "regression by the mean of encoded examples; no inner loop"
    ),
    "in_context": KnownLearner(
        InContextLearner, "a transformer over the support set and a query; no inner loop"
    ),
}
"""All that are known, by the name that ``learner=`` takes."""


@checked
def register_learner(name: str, summary: str) -> Callable[[type[Learner]], type[Learner]]:
    """Make a further learner known by name: a class decorator.

    Args:
        name: for ``MetaTrainer(…, learner=name)``.
        summary: what it does, in a line.

    Raises:
        SettingError: no name, one that another learner has, a class that is no `Learner`.
    """
    if not isinstance(name, str) or not name:
        raise SettingError("name", name, "a name is needed, as register_learner(name, summary)")

    def known(kind: type[Learner]) -> type[Learner]:
        if not (isinstance(kind, type) and issubclass(kind, Learner)):
            raise SettingError("learner", kind, "a subclass of Learner is needed")
        check_complete(kind)
        held = LEARNERS.get(name)
        if held is not None and getattr(held.make, "__qualname__", "") != kind.__qualname__:
            raise SettingError("name", name, "a name that no other learner has is needed")
        LEARNERS[name] = KnownLearner(kind, summary)
        return kind

    return known


def check_complete(make: Any) -> None:
    """Refuse a class of which no learner can be made, as methods are left out.

    Raises:
        SettingError: names them.
    """
    left_out = sorted(getattr(make, "__abstractmethods__", ())) if isinstance(make, type) else ()
    if left_out:
        raise SettingError("learner", make.__name__, f"its class needs {', '.join(left_out)}")


def learner_of(name: str) -> Callable[..., Any]:
    """What makes the learner of that name.

    Raises:
        SettingError: an unknown name.
    """
    check_known("learner", name, LEARNERS)
    return LEARNERS[name].make
