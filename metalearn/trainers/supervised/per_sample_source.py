"""What diagnostics can see of a training by per-sample gradients.

Axes: N samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.trainers.diagnostics import GradientUnits, PredictiveModels, sample_blocks
from metalearn.trainers.supervised.batches import LabelledBatch
from metalearn.trainers.supervised.losses import CROSS_ENTROPY, SupervisedLoss
from metalearn.trainers.supervised.per_sample_objective import PerSampleObjective

__all__ = ["PerSampleSource"]


class PerSampleSource:
    """The samples of a batch, before clipping, and what the module predicts.

    Args:
        objective: whose model and loss they are of.
        loss: of which likelihood the loss is.
    """

    def __init__(self, objective: PerSampleObjective, loss: SupervisedLoss = CROSS_ENTROPY) -> None:
        self._objective, self._model, self.loss = objective, objective.model, loss

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """Samples, and what the module predicts."""
        return {"sample": "", "predictive": self.loss.no_likelihood, "loss": ""}

    def gradient_units(
        self, kind: str, batch: LabelledBatch, grads: Mapping[str, Tensor]
    ) -> GradientUnits:
        """The samples of a batch."""
        loss, method = self._objective.loss, self._objective.method

        def blocks() -> Iterator[Iterator[Mapping[str, Tensor]]]:
            shown = tree_map(lambda part: part[None], batch)
            return sample_blocks(lambda _: loss, self._model.alone(), {}, shown, method=method)

        return GradientUnits("sample", blocks, len(batch[1]), self._objective.max_norm)

    def predictive_models(self, batch: LabelledBatch) -> Iterator[PredictiveModels]:
        """The module on a batch, as one model; all samples count alike here."""
        shown = tree_map(lambda x: x[None], batch[:2])
        params = self._model.alone()
        yield PredictiveModels(self._outputs, params, {}, shown, **self.loss.of_models())

    def _outputs(self, extra: Any) -> Any:
        return self._model.outputs
