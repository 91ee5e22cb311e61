"""Training an ensemble on labelled data: M networks as one.

Axes: M members, B samples of a batch, C classes.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import Unpack

from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.signatures import checked
from metalearn.trainers.supervised import ensemble_methods as methods
from metalearn.trainers.supervised.ensemble_options import EnsembleOptions
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining
from metalearn.trainers.supervised.network_run import NetworkRun
from metalearn.trainers.trainer import Trainer

__all__ = ["EnsembleTrainer"]


class EnsembleTrainer(Trainer):
    """Trains an `Ensemble` on labelled data, every member as if alone.

    Member k with seed s sees the batches, the augmentation and the dropout masks that a run of it
    alone with that seed sees. A `Dropout` layer's rate, the learning rate, weight decay and label
    smoothing may be lists, one value for each member: a sweep is one run.

    Args:
        model: the members, outputs ``[B, C]`` each; trained in place.
        data: samples in three splits, with classes or real targets.
        members: M, checked against the model; None takes the model's.
        seeds: of each member's data order, augmentation and dropout; None is 0..M−1.
        steps: in all.
        batch_size: B.
        shuffle: ``"member"``, every member has an order and augmentation of its own;
            ``"shared"``, all have those of the first seed.
        bootstrap: every member has a resample of the training part of its own, so an order too.
        max_shift, flip, rotate: augmentation of pictures; see `metalearn.data.Augmentation`.
        lr: learning rate of each member; None is the optimiser's.
        weight_decay: of each member; None is the optimiser's.
        label_smoothing: of each member, in [0, 1); cross-entropy alone has it.
        member_weights: w on the training examples in each member's loss, (1/B)·Σ w_i·ℓ_i on a batch
            of B, in the order of ``data.splits["train"]``: ``[M, N]``; a file ``.npy`` or ``.csv``
            of M rows; or ``{leave_out: 0.05, seed: 0}``, see
            `metalearn.attribution.random_subsets`. A weight of 0 leaves an example out. None
            weights none.
        dropout: rate of each member's `Dropout` layers, in [0, 1); None leaves them.
        loss: what is descended: ``"cross_entropy"`` of classes; of `RegressionData`
            ``"gaussian_nll"``, outputs ``[B, 2·D]`` are means and logarithms s of variances
            e^s + 10⁻⁶, or ``"mse"``, outputs ``[B, D]`` are means, scored with variances of 1; or a
            function from outputs and targets to losses ``[B]``, or to their mean, by which the
            best is chosen too where ``monitor`` is the loss. None is the first that fits the data.
        metrics: further numbers of the validation and test splits by name, functions from outputs
            ``[M, N, C]`` and targets to a number.
        monitor: what decides which state of a member is best, on the validation split.
        engine: ``"batched"``, ``"loop"``, or ``"auto"``: batched, unless the loop is measured to
            be clearly faster (see `plan_members`); decided once.
        chunk_size: members at a time; None is all, or what fits ``memory``.
        memory: what gradients may take, for example ``"2GB"``; None is what the device has free.
        member_curves: record every member's curve as well.
        ood: a second data set, whose test split should be found uncertain.
        optimizer: makes the optimiser of the stacked parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go; names, such as ``"csv"``, are those of `RunTracker`
            and need ``folder``.
        folder: of the run, for checkpoints.
        device: where to train.
        settings: the rest of `LoopSettings` by name. ``clip`` and ``patience`` are each member's.

    Raises:
        SettingError: a setting out of range, lists of another length than M, an optimiser that
            would mix members, a model that does not fit the data.
    """

    networks: ClassVar[int | None] = None
    """How many networks are trained; None: as many as members."""
    makes_module: ClassVar[tuple[str, ...]] = ("members", "loss")

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: SupervisedData,
        *,
        members: int | None = None,
        **settings: Unpack[EnsembleOptions],
    ) -> None:
        count = len(model)
        if members is not None and not (type(members) is int and members == count):
            raise SettingError("members", members, f"the model has {count} members")
        self.training = EnsembleTraining(model, data, **settings)
        self.ensemble, self.data, self.seeds = model, data, self.training.seeds
        super().__init__(self.training.loop())

    def predictive(self) -> Ensemble:
        """What training was for, and `test` and `predict` use: a callable ``x → [M, B, C]``."""
        return self.ensemble

    def member_settings(self) -> list[dict[str, float]]:
        """What was set for each member: its seed, and what was given as a list."""
        return self.training.member_settings()

    def network_run(self, member: int = 0) -> NetworkRun:
        """What one member descends at every step."""
        return self.training.network_run(member, self.loop.update)

    plan, predict, test = methods.plan, methods.predict, methods.score
    reports, diagnosis_sources = methods.reports, methods.diagnosis_sources
