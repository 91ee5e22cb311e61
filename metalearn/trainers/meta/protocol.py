"""What every meta-learning method meets, with an inner loop or without.

A method is written for one task and one network: `fit` to a support set, `predict` inputs, and the
gradient of a task's loss. Batching over tasks, members and queries, scoring, ensembles, records and
diagnostics follow from that.

Axes: M members, T tasks, K inner steps, N samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metalearn.core import Engine, MetaGradient, Plan, convert_norm
from metalearn.core.checks import module_takes
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.memory import is_out_of_memory
from metalearn.core.module.functionalize import Norm
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.schema import Kind as StateKind
from metalearn.signatures import checked
from metalearn.trainers.meta.adapting import adapted
from metalearn.trainers.meta.criterion import Criterion, Kind
from metalearn.trainers.meta.network import network_of
from metalearn.trainers.meta.plan_state import kept_plan, plan_kind, plan_state
from metalearn.trainers.meta.scores import TaskScores
from metalearn.trainers.meta.scoring import along_states, score_tasks
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["Learner"]


class Learner(ABC):
    """A module, or an `Ensemble`, that learns to adapt to tasks.

    It shares the module's parameters: an optimiser that steps ``learner.module`` steps the learner.

    Args:
        module: one network, or an `Ensemble` whose members learn each by itself.
        kind: ``"classification"`` or ``"regression"``.
        norm: what to make of batch and instance norms; see `metalearn.trainers.MAML`.
        engine: how tasks are batched.

    Attributes:
        module: whose parameters are learnt.
        params: they, by name; of members, leaves ``[M, ...]``.
        plan: how gradients are taken, once that is decided.

    Raises:
        SettingError: a module that cannot work, by name, or without parameters to learn.
    """

    needs: ClassVar[Literal["logits", "features"]] = "logits"
    """What the network has to give: an output for each class (or value), or any vector."""
    features: int | None = None
    """How long a vector of features has to be; None takes what the network gives."""
    draws: ClassVar[Literal["tasks", "samples"]] = "tasks"
    """What a training step is made of."""
    inner_steps: int = 0
    """K in training."""
    eval_steps: int = 0
    """K in validation and test."""

    def __init__(
        self, module: nn.Module, *, kind: Kind, norm: Norm | None = None, engine: Engine = "auto"
    ) -> None:
        self.criterion = Criterion(kind, self._count_classes)
        self.kind, self._engine = kind, engine
        self.network = network_of(convert_norm(module, norm) if norm else module, engine)
        self.module, self.params = self.network.module, self.network.params
        self.buffers, self.apply = self.network.buffers, self.network.apply
        self.plan: Plan | None = None

    @abstractmethod
    def gradient(self, params: Params, tasks: TaskBatch, *, step: int) -> MetaGradient:
        """The mean over T tasks of the gradient of a task's loss, of every network.

        ``params`` are those of all networks; ``step`` is for what changes over a training.
        """

    @abstractmethod
    def task_gradients(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> Params:
        """The gradient of each task's loss, of one network; leaves ``[T, ...]``."""

    @abstractmethod
    def fit(self, params: Params, support: Batch, *, steps: int | None = None) -> Iterator[Any]:
        """States of one network after 0, 1, … K inner steps on one task's support set.

        A state is a tree of tensors that holds the parameters too. K = 0 without an inner loop.

        Args:
            params: of one network.
            support: of one task.
            steps: K; None takes ``eval_steps``.
        """

    @abstractmethod
    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        """Outputs ``[N, ...]`` for inputs of one task, in a state that `fit` gave."""

    @abstractmethod
    def as_module(self, module: nn.Module, state: Any) -> nn.Module:
        """An ordinary module that predicts as a state does, made of a copy of the network."""

    @abstractmethod
    def prepare(
        self,
        tasks: TaskBatch,
        task_count: int,
        *,
        deterministic: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Plan:
        """Decide once how gradients are taken, by trials on few tasks; kept in ``plan``.

        Args:
            tasks: two are enough.
            task_count: T of the gradients to come.
            deterministic: leave out of it what memory is free.
            check: called in every trial; what it raises ends them.
        """

    def for_members(self, plan: Plan) -> Plan:
        """A plan for one network's share of all pairs of member and task, as one for tasks.

        What only the loop can take is said.
        """
        if self.network.only_loop:
            plan = replace(plan, notes=(self.network.only_loop, *plan.notes))
        count = self.network.count
        if count is None:
            return plan
        if plan.chunk_size is not None:
            plan = replace(plan, chunk_size=max(1, plan.chunk_size // count))
        return replace(plan, notes=(f"each of {count} members", *plan.notes))

    @property
    def asked(self) -> Mapping[str, Any]:
        """What the settings of now ask of a plan of an earlier run, by its parts."""
        return {"engine": self._engine}

    def along(
        self,
        visit: Callable[[Any, Batch, Batch], Any],
        params: Params,
        tasks: TaskBatch,
        *,
        steps: int | None,
        alone: bool,
    ) -> Any:
        """``visit(state, support, query)`` of every task in every state; leaves ``[T, K+1, ...]``.

        Args:
            visit: written for one task.
            params: of one network.
            tasks: T.
            steps: K; None takes ``eval_steps``.
            alone: whether ``visit`` has a vmap of its own.
        """
        engine, chunk = self.batching
        engine = "vmap" if alone and engine != "loop" else engine
        fit = partial(self.fit, steps=steps)
        return along_states(visit, fit, params, tasks, engine=engine, chunk_size=chunk)

    @property
    def batching(self) -> tuple[Engine, int | None]:
        """The engine, and how many tasks at a time."""
        if self.plan is not None:
            return self.plan.engine, self.plan.chunk_size
        return ("loop" if self.network.only_loop else self._engine), None

    @property
    def vectorized(self) -> bool:
        """Whether vmap takes the module."""
        return self._engine != "loop" and not self.network.only_loop

    @property
    def names(self) -> dict[str, str]:
        """By the name of a parameter, what it is called in the module."""
        return self.network.names

    @checked
    def meta_gradient(self, tasks: TaskBatch) -> MetaGradient:
        """The `gradient` at the module's parameters."""
        return self.gradient(self.params, tasks, step=0)

    def check(self, tasks: TaskBatch) -> None:
        """Refuse targets that do not fit, by their set; see `Criterion.check`."""
        self.criterion.check(tasks, fixed=self.needs == "logits")

    @abstractmethod
    def unused_in(self, task: TaskBatch) -> list[str]:
        """Names of parameters without a part in the loss of one task (of the first member)."""

    def outputs(self, inputs: Tensor) -> Tensor:
        """Outputs ``[N, ...]`` of the module before any adaptation."""
        with module_takes("inputs", inputs):
            return self._as_it_is(inputs)

    @outside_inference_mode
    @checked
    def adapt(
        self, support: Batch, *, steps: int | None = None, transductive: bool = False
    ) -> nn.Module:
        """A copy of the module, adapted to one support set ``(inputs [N, ...], targets [N])``.

        The copy is an ordinary module in evaluation mode with nothing of the learner in it, which
        answers each query as `score` with ``inductive=True`` does: where the module normalises
        with the statistics of the batch at hand, it is an `InductiveModule`, which carries the
        support inputs and predicts each query beside them. Members are adapted each by itself.

        Args:
            support: the labelled examples.
            steps: inner steps; None takes those of validation.
            transductive: the bare network in any case: queries that are asked together share their
                statistics, as in `score` without ``inductive``.

        Raises:
            SettingError: steps below 0, a loss that the module's parameters have no part in.
        """
        return adapted(self, support, steps, transductive=transductive)

    @checked
    def score(
        self,
        tasks: TaskBatch,
        *,
        steps: int | None = None,
        inductive: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> TaskScores:
        """Adapt to each task and score its query set at every inner step 0..K.

        Of probabilities as targets the most probable class is the right one; padding (−100) counts
        nowhere. A task with a prediction that is NaN has an accuracy of NaN. Of an `Ensemble`, the
        scores are those of the mean prediction, and of each member.

        Args:
            tasks: ``TaskBatch``, every leaf ``[T, N, ...]``.
            steps: K; None takes those of validation.
            inductive: False shares normalisation statistics over a task's query set
                (transductive, what the MAML papers report); True predicts each query alone, in a
                batch with the support set and no other query (Nichol, Achiam and Schulman, "On
                First-Order Meta-Learning Algorithms", 2018, section 6.1).
            check: called before every prediction; what it raises ends the scoring.
        """
        return score_tasks(self, tasks, steps=steps, inductive=inductive, check=check)

    def count_steps(self, steps: int | None) -> int:
        """K, a whole number of at least 0; None takes ``eval_steps``."""
        count = self.eval_steps if steps is None else steps
        check_whole("steps", count, 0)
        return count

    def state(self) -> dict[str, Any]:
        """How gradients are taken: what a resumed training needs of it, plain."""
        return plan_state(self.plan, self.asked, self._device)

    def state_kinds(self) -> list[StateKind]:
        """What `state` has to be in a checkpoint."""
        return [plan_kind()]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, unless it was for another kind of device or other settings."""
        self.plan = kept_plan(state, self.asked, self._device) or self.plan

    @contextmanager
    def refusing_inputs(self, tasks: TaskBatch) -> Iterator[None]:
        """A block in which inputs that the module cannot take are refused by their set."""
        try:
            yield
        except Exception as error:
            if isinstance(error, SettingError) or is_out_of_memory(error):
                raise
            for name, (inputs, _) in zip(("support", "query"), tasks):
                with torch.no_grad(), module_takes(f"{name} inputs", inputs):
                    self._as_it_is(tree_map(lambda x: x[0], inputs))
            raise

    @property
    def _device(self) -> str:
        return str(leaves(self.params)[0].device.type)

    def _as_it_is(self, inputs: Any) -> Tensor:
        """Outputs of the module before any adaptation; of the first member."""
        found: Tensor = self.apply(self.network.rows()[0], self.buffers, inputs)
        return found

    def _count_classes(self, tasks: TaskBatch, inputs: Any) -> int:
        """C: how many logits the network gives."""
        return int(self._as_it_is(inputs).shape[-1])
