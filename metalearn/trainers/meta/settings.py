"""How a meta-learner adapts: settings that can be checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from metalearn.core import (
    Engine,
    Implicit,
    InnerOptimizer,
    Method,
    adam,
    adamw,
    sgd,
    with_gradients,
)
from metalearn.core.checks import check_number
from metalearn.core.memory import parse_bytes
from metalearn.core.meta.methods import OF_THE_END
from metalearn.core.module.norms import Norm
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import check_fields, known_fields

__all__ = ["MAML", "with_learnt_rates"]

InnerName = Literal["sgd", "adam", "adamw"]
RateAxis = Literal["all", "parameter", "step", "parameter_and_step", "element", "element_and_step"]
_SETTINGS = {"beta1": "betas", "beta2": "betas"}
"""By hyperparameter, what ``learn`` calls it, where that is another name."""


@known_fields
@dataclass(frozen=True)
class MAML:
    """How a learner adapts, and how the gradient through adaptation is taken.

    Attributes:
        inner_lr: step size of the inner loop, a number above 0; where it is learnt, the first.
        inner_steps: inner steps in training, at least 0.
        eval_steps: inner steps in validation and test, at least 0.
        first_order: ignore second derivatives (FOMAML); the same as ``method="first_order"``.
        method: ``"reverse"``, ``"mixed"`` (both exact), ``"first_order"``, ``"implicit"``,
            ``"reptile"``; see `metalearn.core.meta_gradient`. ``"auto"`` is exact.
        engine: ``"batched"``, ``"vmap"``, ``"loop"``, or ``"auto"``; all give the same gradient.
        inner_optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        inner_momentum: of sgd, in [0, 1).
        inner_nesterov: of sgd with momentum.
        inner_weight_decay: at least 0; an L2 term of sgd and adam, decoupled in adamw.
        inner_betas: of adam and adamw, two in [0, 1).
        inner_clip: largest norm of a task's inner gradient, over all parameters that adapt; above
            0, or None.
        support_batch: samples of the support set that an inner step takes its gradient of, one part
            after another; None, or as many as there are, takes all. See
            `metalearn.core.with_gradients`.
        learn: names of what the outer optimiser trains beside the weights: ``"lr"``,
            ``"momentum"``, ``"weight_decay"``, ``"betas"``; they start where the settings say.
            Nothing holds them to their range: a step size may become negative, as in Meta-SGD.
        lr_per: what has a step size of its own, where they are learnt: ``"all"`` share one, or
            each ``"parameter"`` that adapts, each ``"element"`` of each of them, each inner
            ``"step"`` (which learns a schedule), or each ``"parameter_and_step"`` or
            ``"element_and_step"``. Steps beyond ``inner_steps`` take the last.
        frozen: shell-style pattern, or several, over names of parameters that the inner loop
            leaves alone (``"blocks.*"`` adapts the head alone).
        norm: None, or what to make of batch and instance norms: ``"batch_stats"`` (of the batch
            at hand, none kept), ``"running"`` (statistics of training, fixed within tasks),
            ``"group"``, ``"layer"`` (GroupNorm with several groups, or one); see `convert_norm`.
        chunk_size: tasks at a time; None takes a whole meta-batch, or what fits ``memory``.
        memory: what a meta-gradient may take, for example ``"8GB"``; None is what the device has
            free. With ``method="auto"`` it decides between reverse and mixed.
        regularization: λ of the implicit method's inner loss L(φ) + λ/2·‖φ − θ‖², above 0.
        cg_iterations: conjugate gradient iterations of the implicit method, at least 1.
        cg_damping: δ of their system I + H/(λ + δ), at least 0; see `metalearn.core.Implicit`.

    Raises:
        SettingError: a value out of range.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1
    eval_steps: int = 3
    first_order: bool = False
    method: Method = "auto"
    engine: Engine = "auto"
    inner_optimizer: InnerName = "sgd"
    inner_momentum: float = 0.0
    inner_nesterov: bool = False
    inner_weight_decay: float = 0.0
    inner_betas: Sequence[float] = (0.9, 0.999)
    inner_clip: float | None = None
    support_batch: int | None = None
    learn: str | Sequence[str] = ()
    lr_per: RateAxis = "all"
    frozen: str | Sequence[str] | None = None
    norm: Norm | None = None
    chunk_size: int | None = None
    memory: str | int | None = None
    regularization: float = 1.0
    cg_iterations: int = 5
    cg_damping: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole("inner_steps", self.inner_steps, 0, 2**63 - 1)
        check_whole("eval_steps", self.eval_steps, 0, 2**63 - 1)
        if self.chunk_size is not None:
            check_whole("chunk_size", self.chunk_size, 1)
        if not isinstance(self.inner_lr, int | float):
            accepted = "a finite number above 0 is needed; learn=[lr] learns it from there"
            raise SettingError("inner_lr", type(self.inner_lr).__name__, accepted)
        check_number("inner_lr", self.inner_lr, above=0)
        check_whole("cg_iterations", self.cg_iterations, 1)
        check_number("cg_damping", self.cg_damping, least=0)
        check_number("regularization", self.regularization, above=0)
        if self.memory is not None:
            parse_bytes(self.memory)
        choices = (
            ("inner_optimizer", InnerName),
            ("lr_per", RateAxis),
            ("norm", Norm),
            ("method", Method),
            ("engine", Engine),
        )
        for name, known in choices:
            value = getattr(self, name)
            if value not in get_args(known) and not (name == "norm" and value is None):
                accepted = ", ".join(get_args(known))
                raise SettingError(name, value, f"one of {accepted} is needed")
        if self.first_order and self.method not in ("auto", "first_order"):
            raise SettingError("method", self.method, "auto is needed with first_order=true")
        self._check_inner()
        self._check_learnt()

    @property
    def wanted_method(self) -> Method:
        """The method, ``first_order`` taken into account."""
        return "first_order" if self.first_order else self.method

    @property
    def of_the_end(self) -> bool:
        """Whether the method knows the end of adaptation alone, not the way there."""
        return self.method in OF_THE_END

    def by_method(self, method: Method) -> MAML:
        """The same by the method of a learner that has no other.

        Raises:
            SettingError: under its name on the command line, what contradicts.
        """
        if self.wanted_method not in ("auto", method):
            name = "first_order" if self.first_order else "method"
            accepted = f"{'false' if self.first_order else f'auto or {method}'} is needed"
            raise SettingError(
                f"maml.{name}", getattr(self, name), f"{accepted} with a learner of method {method}"
            )
        try:
            return replace(self, method=method)
        except SettingError as error:
            raise SettingError(f"maml.{error.setting}", error.value, error.accepted) from error

    @property
    def implicit(self) -> Implicit:
        """Settings of the implicit method."""
        return Implicit(self.regularization, self.cg_iterations, self.cg_damping)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Those of the inner optimiser, by name."""
        found: dict[str, float] = {"lr": self.inner_lr, "momentum": self.inner_momentum}
        if self.inner_optimizer != "sgd":
            beta1, beta2 = self.inner_betas
            found = {"lr": self.inner_lr, "beta1": beta1, "beta2": beta2}
        return {**found, "weight_decay": self.inner_weight_decay}

    @property
    def rate_axes(self) -> frozenset[str]:
        """What ``lr_per`` names: ``"parameter"``, ``"element"``, ``"step"`` among it."""
        return frozenset(self.lr_per.split("_and_"))

    @property
    def learnt_names(self) -> list[str]:
        """Names of the hyperparameters that are learnt."""
        learnt = self._given_names
        return [name for name in self.hyperparameters if _SETTINGS.get(name, name) in learnt]

    def optimizer(self, learnt: Mapping[str, Any] | None = None) -> InnerOptimizer:
        """The inner optimiser, with ``learnt`` values, tensors or trees of them, by name."""
        given: dict[str, Any] = {**self.hyperparameters, **(learnt or {})}
        rate, decay = given["lr"], given["weight_decay"]
        if self.inner_optimizer == "sgd":
            momentum, nesterov = given["momentum"], self.inner_nesterov
            made = sgd(rate, momentum=momentum, nesterov=nesterov, weight_decay=decay)
        else:
            make = adam if self.inner_optimizer == "adam" else adamw
            made = make(rate, betas=(given["beta1"], given["beta2"]), weight_decay=decay)
        return with_gradients(made, clip_norm=self.inner_clip, support_batch=self.support_batch)

    @property
    def _given_names(self) -> list[str]:
        return [self.learn] if isinstance(self.learn, str) else list(self.learn)

    def _check_inner(self) -> None:
        """Refuse hyperparameters out of range, and those that the inner optimiser does not take."""
        check_number("inner_momentum", self.inner_momentum, least=0, below=1)
        check_number("inner_weight_decay", self.inner_weight_decay, least=0)
        if self.inner_clip is not None:
            check_number("inner_clip", self.inner_clip, above=0)
        if self.support_batch is not None:
            check_whole("support_batch", self.support_batch, 1)
        if len(self.inner_betas) != 2:
            accepted = "two numbers in [0, 1) are needed"
            raise SettingError("inner_betas", list(self.inner_betas), accepted)
        for index, beta in enumerate(self.inner_betas):
            check_number(f"inner_betas[{index}]", beta, least=0, below=1)
        name = self.inner_optimizer
        if name == "sgd" and tuple(self.inner_betas) != MAML.inner_betas:
            accepted = "inner_optimizer=adam or adamw is needed for them; sgd has none"
            raise SettingError("inner_betas", list(self.inner_betas), accepted)
        for setting in ("inner_momentum", "inner_nesterov") if name != "sgd" else ():
            if getattr(self, setting):
                accepted = f"inner_optimizer=sgd is needed for it; {name} has none"
                raise SettingError(setting, getattr(self, setting), accepted)
        if self.inner_nesterov and not self.inner_momentum and "momentum" not in self._given_names:
            accepted = "an inner_momentum above 0 is needed with it"
            raise SettingError("inner_nesterov", True, accepted)
        if self.method == "implicit" and self.inner_weight_decay:
            accepted = "0 is needed with method=implicit, which has a pull of its own"
            raise SettingError("inner_weight_decay", self.inner_weight_decay, accepted)
        if self.method == "reptile" and self.frozen is not None:
            accepted = "null is needed with method=reptile: what does not adapt would not be learnt"
            raise SettingError("frozen", self.frozen, accepted)
        if self.method == "reptile" and not self.inner_steps:
            accepted = "at least 1 is needed with method=reptile, which follows the inner loop"
            raise SettingError("inner_steps", 0, accepted)

    def _check_learnt(self) -> None:
        """Refuse what cannot be learnt."""
        given = self._given_names
        known = list(dict.fromkeys(_SETTINGS.get(name, name) for name in self.hyperparameters))
        if set(given) - set(known) or len(set(given)) < len(given):
            accepted = f"names among {', '.join(known)} are needed, each once"
            raise SettingError("learn", self.learn, f"{accepted}, with {self.inner_optimizer}")
        if self.lr_per != "all" and "lr" not in given:
            raise SettingError("lr_per", self.lr_per, "learn=[lr] is needed for it")
        if not given:
            return
        if self.of_the_end:
            accepted = f"[] is needed with method={self.method}, whose gradient does not see them"
            raise SettingError("learn", self.learn, accepted)
        if not self.inner_steps:
            raise SettingError("learn", self.learn, "[] is needed with inner_steps=0: none adapts")


def with_learnt_rates(maml: MAML, *axes: RateAxis, otherwise: str = "") -> MAML:
    """The same with learnt step sizes: by the first of some axes, unless one of them is given.

    Args:
        maml: may have them learnt itself.
        axes: that ``lr_per`` may be.
        otherwise: what a refusal says besides.

    Raises:
        SettingError: they are learnt by another axis.
    """
    given = [maml.learn] if isinstance(maml.learn, str) else list(maml.learn)
    if "lr" not in given:
        return replace(maml, learn=["lr", *given], lr_per=axes[0])
    if maml.lr_per not in axes:
        raise SettingError("maml.lr_per", maml.lr_per, f"{' or '.join(axes)} is needed{otherwise}")
    return maml
