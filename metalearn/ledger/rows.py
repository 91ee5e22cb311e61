"""The rows of the ledger: what a paper reports, and the experiment that is held to it.

A row is an entry of `ROWS` and a file ``conf/experiment/<name>.yaml``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metalearn.errors import SettingError
from metalearn.near_names import with_nearest

__all__ = ["ROWS", "TABLES", "Protocol", "Reported", "Row", "Table", "chosen_rows"]

Protocol = Literal["transductive", "inductive"]
"""Whether a task's queries share statistics of normalisation, or each is predicted alone."""


@dataclass(frozen=True)
class Table:
    """Rows that are compared with one another: one task, one measure."""

    name: str
    title: str
    measure: Literal["accuracy", "error", "loss"]
    """Of test tasks: accuracy and error in per cent, loss as it is."""
    about: str
    """What the task is, a sentence or two."""

    @property
    def larger_is_better(self) -> bool:
        """Of the measure."""
        return self.measure == "accuracy"


@dataclass(frozen=True)
class Reported:
    """A number that a paper has for a row, in the measure of its table."""

    value: float
    source: str
    protocol: Protocol = "transductive"
    """Of ``value``, which the verdict is about."""
    inductive: float | None = None
    """What the paper has beside a transductive value; most have none."""


@dataclass(frozen=True)
class Row:
    """A method on a task.

    Attributes:
        name: of the row and of ``conf/experiment/<name>.yaml``.
        table: the name of its `Table`.
        method: as papers call it.
        minutes: about how long one seed trains on two cores; rows run in this order.
        reported: what is to be reproduced; None where nothing was published.
        seeds: that are run.
        not_run: why the row is not run where the project is developed; empty where it is.
    """

    name: str
    table: str
    method: str
    minutes: int
    reported: Reported | None = None
    seeds: tuple[int, ...] = (0,)
    not_run: str = ""

    def command(self, seed: int = 0) -> str:
        """What a person types for one seed."""
        return f"python scripts/train.py experiment={self.name}" + (f" seed={seed}" if seed else "")


TABLES = {
    table.name: table
    for table in (
        Table(
            "omniglot_5w1s",
            "Omniglot, 5-way 1-shot",
            "accuracy",
            "1,100 training characters, their quarter turns as further classes, 100 characters for "
            "validation, 423 for the test.",
        ),
        Table(
            "omniglot_20w1s",
            "Omniglot, 20-way 1-shot",
            "accuracy",
            "The same characters, 20 of them in a task.",
        ),
        Table(
            "omniglot_within",
            "Omniglot within alphabets, 20-way 1-shot",
            "error",
            "All characters of a task are of one alphabet. Trained on the 30 background alphabets "
            "(or five, of the minimal sets), five of which choose the state where one is chosen; "
            "tested on the 20 others, which nothing was chosen by. Inductive numbers alone count.",
        ),
        Table(
            "mini_imagenet_5w1s",
            "mini-ImageNet, 5-way 1-shot",
            "accuracy",
            "64, 16 and 20 classes of ImageNet, pictures of 84 pixels, 15 queries a class.",
        ),
        Table(
            "cifar_fs_5w1s",
            "CIFAR-FS, 5-way 1-shot",
            "accuracy",
            "64, 16 and 20 classes of CIFAR-100, 15 queries a class.",
        ),
        Table(
            "sinusoid",
            "Sine waves, 5 points, one gradient step",
            "loss",
            "Mean squared error of 10 queries a wave; amplitude, phase and range as in the MAML "
            "paper.",
        ),
    )
}
"""All tables by name, in the order of the page."""

_FINN = "Finn et al. 2017"
_ANTONIOU = "Antoniou et al. 2019"
_BERTINETTO = "Bertinetto et al. 2019"
_QUOTED = "as reported by Bertinetto et al. 2019"
_LI = "Li et al. 2017"
_SNELL = "Snell et al. 2017"
_RAGHU = "Raghu et al. 2020, whose MAML has 93.7"
_MINI, _CIFAR = "mini_imagenet_5w1s", "cifar_fs_5w1s"
_WITHIN = "omniglot_within"
_THREE = (0, 1, 2)
"""Seeds of rows that are compared closely."""

_NO_DATA = "the data cannot be downloaded where the project is developed"


def _not_run(name: str, table: str, method: str, minutes: int, reported: Reported) -> Row:
    return Row(name, table, method, minutes, reported, not_run=_NO_DATA)


ROWS = {
    row.name: row
    for row in (
        Row("omniglot_maml", "omniglot_5w1s", "MAML", 30, Reported(98.7, _FINN)),
        Row("omniglot_fomaml", "omniglot_5w1s", "first-order MAML", 30, Reported(98.3, _FINN)),
        Row("omniglot_anil", "omniglot_5w1s", "ANIL", 20),
        Row("omniglot_meta_sgd", "omniglot_5w1s", "Meta-SGD", 30, Reported(99.53, _LI)),
        Row("omniglot_mamlpp", "omniglot_5w1s", "MAML++", 25, Reported(99.47, _ANTONIOU)),
        Row(
            "omniglot_imaml",
            "omniglot_5w1s",
            "iMAML (gradient descent)",
            30,
            Reported(99.16, "Rajeswaran et al. 2019, table 2"),
        ),
        Row(
            "omniglot_reptile",
            "omniglot_5w1s",
            "Reptile",
            30,
            Reported(97.68, "Nichol et al. 2018, table 2", inductive=95.39),
        ),
        Row("omniglot_protonet", "omniglot_5w1s", "ProtoNet", 15, Reported(98.8, _SNELL)),
        Row("omniglot_r2d2", "omniglot_5w1s", "R2D2", 20, Reported(98.6, _BERTINETTO)),
        Row("omniglot_protomaml", "omniglot_5w1s", "ProtoMAML", 25),
        Row("omniglot_baseline_pp", "omniglot_5w1s", "Baseline++", 25),
        Row("omniglot_rfs", "omniglot_5w1s", "RFS (logistic head)", 25),
        Row("omniglot20_maml", "omniglot_20w1s", "MAML", 80, Reported(95.8, _FINN), _THREE),
        Row(
            "omniglot20_mamlpp", "omniglot_20w1s", "MAML++", 55, Reported(97.65, _ANTONIOU), _THREE
        ),
        Row("omniglot20_anil", "omniglot_20w1s", "ANIL", 20, Reported(96.2, _RAGHU)),
        Row("omniglot20_meta_sgd", "omniglot_20w1s", "Meta-SGD", 30, Reported(95.93, _LI)),
        Row("omniglot20_protonet", "omniglot_20w1s", "ProtoNet", 15, Reported(96.0, _SNELL)),
        Row("omniglot20_r2d2", "omniglot_20w1s", "R2D2", 20, Reported(94.7, _BERTINETTO)),
        Row("within_maml", _WITHIN, "MAML", 15),
        Row("within_fomaml", _WITHIN, "first-order MAML", 30),
        Row("within_anil", _WITHIN, "ANIL", 20),
        Row("within_meta_sgd", _WITHIN, "Meta-SGD", 15),
        Row("within_mamlpp", _WITHIN, "MAML++", 15),
        Row("within_imaml", _WITHIN, "iMAML (gradient descent)", 15),
        Row("within_reptile", _WITHIN, "Reptile", 25),
        Row("within_protonet", _WITHIN, "ProtoNet", 15),
        Row("within_r2d2", _WITHIN, "R2D2", 15),
        Row("within_protomaml", _WITHIN, "ProtoMAML", 15),
        Row("within_baseline_pp", _WITHIN, "Baseline++", 20),
        Row("within_rfs", _WITHIN, "RFS (logistic head)", 20),
        Row("within_protonet_wide", _WITHIN, "ProtoNet, wide", 30),
        Row("within_protonet_ensemble", _WITHIN, "five of ProtoNet, wide", 75),
        Row("within_protonet_small1", _WITHIN, "ProtoNet, wide, of five alphabets (small 1)", 15),
        Row("within_protonet_small2", _WITHIN, "ProtoNet, wide, of five alphabets (small 2)", 15),
        _not_run("mini_imagenet_maml", _MINI, "MAML", 2000, Reported(48.70, _FINN)),
        _not_run("mini_imagenet_protonet", _MINI, "ProtoNet", 900, Reported(49.42, _SNELL)),
        _not_run("mini_imagenet_r2d2", _MINI, "wide R2D2", 1500, Reported(51.2, _BERTINETTO)),
        _not_run("cifar_fs_maml", _CIFAR, "MAML", 500, Reported(58.9, _QUOTED)),
        _not_run("cifar_fs_protonet", _CIFAR, "ProtoNet", 200, Reported(55.5, _QUOTED)),
        _not_run("cifar_fs_r2d2", _CIFAR, "wide R2D2", 300, Reported(65.3, _BERTINETTO)),
        Row("sinusoid", "sinusoid", "MAML", 2),
        Row("sinusoid_anil", "sinusoid", "ANIL", 2),
        Row("sinusoid_meta_sgd", "sinusoid", "Meta-SGD", 3),
        Row("sinusoid_cavia", "sinusoid", "CAVIA", 3),
        Row("sinusoid_cnp", "sinusoid", "conditional neural process", 2),
        Row("sinusoid_in_context", "sinusoid", "in-context transformer", 30),
    )
}
"""All rows by name, in the order of the page."""


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """Rows by their names, names of tables or shell-style patterns, cheapest first.

    Rows that are not run here are chosen by their own name alone; no names choose all others.

    Raises:
        SettingError: what names nothing.
    """
    found: dict[str, Row] = {}
    for name in names or ["*"]:
        several = {
            row.name: row
            for row in ROWS.values()
            if not row.not_run and (row.table == name or fnmatch.fnmatchcase(row.name, name))
        }
        if name in ROWS:
            several = {name: ROWS[name]}
        if not several:
            known = [*ROWS, *TABLES]
            accepted = with_nearest("--list says which rows there are", name, known)
            raise SettingError("row", name, accepted)
        found |= several
    return sorted(found.values(), key=lambda row: row.minutes)
