"""An ensemble of MAML learners: M initialisations that adapt to the same tasks at once.

Axes: M members.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.settings import MAML

__all__ = ["MemberLearner"]


class MemberLearner(MetaLearner):
    """A `MetaLearner` whose module is an `Ensemble`; its prediction is the mean over members.

    ``params`` are ``[M, ...]``; `meta_gradient` gives every member's own, with M in front of all.
    Any learner takes an `Ensemble`; this one takes nothing else.
    """

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
    ) -> None:
        if not isinstance(module, Ensemble):
            raise SettingError("module", type(module).__name__, "an Ensemble is needed")
        super().__init__(module, maml, kind=kind)
