"""The scores of a test as lines that a person reads.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from metalearn.percent import decimals, is_share, percent

__all__ = ["score_table"]


def score_table(
    title: str,
    whole: Mapping[str, float],
    members: Mapping[str, Tensor],
) -> list[str]:
    """The ensemble beside its members' median and range; of a single network its scores alone.

    Args:
        title: what is scored, on how many samples.
        whole: scores of the ensemble, those of ``members`` among them.
        members: the same of each member, ``[M]``, in the order of the rows.
    """
    count = max(len(values) for values in members.values())
    head = f"  {'':10}{'ensemble':>10}{'members: median':>18}{'lowest':>10}{'highest':>10}"
    lines = [title] if count == 1 else [f"{title}, {count} members", head]
    for name, values in members.items():
        row = [whole[name]]
        if count > 1:
            row += [float(values.median()), float(values.min()), float(values.max())]
        shown = [percent(value) if is_share(name) else decimals(value, ".4f") for value in row]
        widths = (10, 18, 10, 10)
        lines.append(f"  {name:10}" + "".join(f"{v:>{w}}" for v, w in zip(shown, widths)))
    return lines
