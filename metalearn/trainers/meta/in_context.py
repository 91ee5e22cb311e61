"""In-context learning: a transformer reads the support set; nothing is adapted.

Axes: T tasks, B queries, C classes, D features.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from metalearn.core import Engine
from metalearn.core.checks import check_pair
from metalearn.core.module.norms import Norm
from metalearn.errors import SettingError, check_whole
from metalearn.models import InContextTransformer
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.trainers.meta.conditioned import ConditionedLearner
from metalearn.trainers.meta.wrapping import wrapped
from metalearn.types import TaskBatch

__all__ = ["InContextLearner"]


class InContextLearner(ConditionedLearner):
    """Logits, or values, of a transformer over embedded support samples with labels, and a query.

    There is no inner loop. The network given is the embedding, and
    `metalearn.models.InContextTransformer` is put around it: `learner.module`. An answer does not
    depend on the order of the support set, as there is no code of positions, nor on what else is
    asked (where the embedding normalises with the batch at hand, in inductive scores). Labels are
    rows of a table: exchanged labels are the same task to it only with exchanged rows.

    Args:
        module: maps inputs ``[N, ...]`` to features ``[N, D]``; an `InContextTransformer`, or an
            `Ensemble` of them, is taken as it is.
        kind: ``"classification"`` or ``"regression"``.
        features: D, outputs of the module, a multiple of ``heads``; None takes those of its last
            linear layer.
        classes: the most that a task of classification may have, in any split.
        values: of a target of regression.
        depth: blocks of the transformer.
        heads: of its attention.
        engine: ``"batched"``, ``"vmap"``, ``"loop"``, or ``"auto"``; all give the same gradient.
        norm: None, or what to make of batch and instance norms: ``"batch_stats"`` (of the batch
            at hand, none kept), ``"running"`` (statistics of training, fixed within tasks),
            ``"group"``, ``"layer"`` (GroupNorm with several groups, or one); see `convert_norm`.
        chunk_size: tasks at a time; None takes a whole meta-batch.
        seed: of the transformer's weights; members add their number.

    Raises:
        SettingError: a value out of range, a module that cannot work.

    Source: Kirsch, Harrison, Sohl-Dickstein and Metz, "General-Purpose In-Context Learning by
    Meta-Learning Transformers", 2022. Theirs has codes of positions and predicts after each sample
    of the sequence; this one predicts queries beside the whole support set.
    """

    needs = "features"
    name = "in_context"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        kind: Literal["classification", "regression"] = "classification",
        features: int | None = None,
        classes: int = 20,
        values: int = 1,
        depth: int = 2,
        heads: int = 4,
        engine: Engine = "auto",
        norm: Norm | None = None,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        if features is not None:
            check_whole("features", features, 1)

        def around(network: nn.Module, index: int) -> InContextTransformer:
            return InContextTransformer(
                network,
                _outputs_of(network) if features is None else features,
                kind=kind,
                classes=classes,
                values=values,
                depth=depth,
                heads=heads,
                seed=seed + index,
            )

        made = wrapped(module, InContextTransformer, around)
        self.size = classes if kind == "classification" else values
        how: Any = {"engine": engine, "norm": norm, "chunk_size": chunk_size, "features": features}
        super().__init__(made, kind=kind, **how)

    def outputs_for(self, targets: Tensor) -> int | None:
        """C of a task of classification."""
        return None if self.kind == "regression" else self.criterion.classes_of(targets)

    def check(self, tasks: TaskBatch) -> None:
        """Refuse targets that do not fit, and more classes or values than there is room for."""
        super().check(tasks)
        if self.kind == "regression":
            size = check_pair(tasks.support, "support")[1][0, 0].numel()
            if size != self.size:
                raise SettingError(
                    "learner.values", self.size, f"{size} are needed for these tasks"
                )
        elif (self.criterion.classes or 0) > self.size:
            accepted = f"at least {self.criterion.classes} are needed for these tasks"
            raise SettingError("learner.classes", self.size, accepted)


def _outputs_of(network: nn.Module) -> int:
    """How many features a network gives, by its last linear layer."""
    *_, last = (None, *(m.out_features for m in network.modules() if isinstance(m, nn.Linear)))
    if last is None:
        accepted = "a whole number is needed for a network without a linear layer"
        raise SettingError("features", None, accepted)
    return last
