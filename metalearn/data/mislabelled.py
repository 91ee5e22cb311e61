"""Wrong labels that are planted, so that what finds or withstands them can be held against them.

Axes: N examples of the training part, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.data.classification import ClassificationData
from metalearn.data.division import check_fraction
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.signatures import checked, known_fields

__all__ = ["MislabelledData", "mislabelled"]


@known_fields
@dataclass(frozen=True, eq=False)
class MislabelledData(ClassificationData):
    """Labelled samples of which some training examples have a wrong label; from `mislabelled`.

    Attributes:
        true_targets: int64, shaped as ``targets``, what they were before.
    """

    true_targets: Tensor = field(kw_only=True)

    __repr__ = ClassificationData.__repr__

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.true_targets
        if given.dtype != torch.int64 or given.shape != self.targets.shape:
            accepted = "int64 class indices, one a sample, are needed"
            raise SettingError("true_targets", f"{given.dtype} {list(given.shape)}", accepted)

    @property
    def wrong(self) -> Tensor:
        """``[N]``, bool: which examples, in the order of ``splits["train"]``, are mislabelled."""
        rows = self.splits["train"]
        return self.targets[rows] != self.true_targets[rows]


@checked
def mislabelled(data: ClassificationData, *, fraction: float, seed: int = 0) -> MislabelledData:
    """The same data with wrong labels for round(fraction·N) of the N training examples.

    Which examples, and to which of the C − 1 other classes each label is changed, all equally
    likely, belongs to the seed; more of them begin with the same ones. Validation and test keep
    their labels.

    Args:
        data: whose training labels are right, as far as is known.
        fraction: share of the training examples, in (0, 1).
        seed: of the draws.

    Raises:
        SettingError: a share that is none of the examples, or data that have wrong labels already.
    """
    check_fraction("fraction", fraction)
    check_seed(seed)
    if isinstance(data, MislabelledData):
        accepted = "data whose labels have not been changed are needed"
        raise SettingError("data", type(data).__name__, accepted)
    rows = data.splits["train"]
    count = round(fraction * len(rows))
    if not count:
        accepted = f"a share is needed that is at least 1 of {len(rows)} training examples"
        raise SettingError("fraction", fraction, accepted)
    order = AddressedStream(seed, "labels", 0).permutation(len(rows))
    chosen = rows[torch.from_numpy(order[:count])]
    others = AddressedStream(seed, "labels", 1).with_replacement(data.outputs - 1, count)
    targets = data.targets.clone()
    targets[chosen] = (targets[chosen] + 1 + torch.from_numpy(others)) % data.outputs
    kept = {name: getattr(data, name) for name in ("inputs", "class_names", "splits")}
    return MislabelledData(**kept, targets=targets, true_targets=data.targets)
