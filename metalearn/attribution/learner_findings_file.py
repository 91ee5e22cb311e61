"""Scores of a meta-learner's support examples and training tasks in one file of arrays.

Axes: M members, T test tasks, Q queries, S support examples, N training tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from metalearn.attribution.learner_findings import LearnerFindings
from metalearn.data.packed import Pack, save_pack
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["save_learner_scores"]


@checked
def save_learner_scores(
    path: Path, findings: LearnerFindings, by_member: Mapping[str, Tensor] | None = None
) -> None:
    """Write all scores to one ``.npz`` file, whole or not at all, for ``numpy.load``.

    Its arrays are ``tasks`` ``[T]``, ``losses`` ``[T, Q]``, ``support_labels``, ``query_labels``,
    ``scores.<method>`` ``[T, Q, S]``, ``members.<method>`` ``[M, T, Q, S]`` where there are
    several, ``training_tasks`` ``[N]`` and ``training_scores`` ``[T, N]``.

    Args:
        path: of the file; its folder is made if missing.
        findings: whose scores they are.
        by_member: method to the scores of each member.

    Raises:
        SettingError: the name of a file that does not end in ``.npz``.
        OSError: what the system refuses, with ``path`` as its file.
    """
    if Path(path).suffix != ".npz":
        raise SettingError("path", str(path), "the name of a file .npz is needed")
    tensors = {
        "losses": findings.losses,
        "support_labels": findings.tasks.support[1],
        "query_labels": findings.tasks.query[1],
        **{f"scores.{name}": values for name, values in findings.scores.items()},
        **{f"members.{n}": values for n, values in (by_member or {}).items() if len(values) > 1},
    }
    arrays = {name: values.detach().cpu().numpy() for name, values in tensors.items()}
    arrays["tasks"] = np.asarray(findings.numbers)
    if findings.trained is not None:
        arrays["training_tasks"] = np.asarray(findings.trained.numbers)
        arrays["training_scores"] = findings.trained.scores.detach().cpu().numpy()
    save_pack(Path(path), Pack(arrays, f"{findings.run} {findings.state}"))
