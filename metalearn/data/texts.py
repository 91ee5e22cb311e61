"""Labelled texts in memory, as sequences of token numbers.

Axes: N texts, L tokens of a text, V numbers of tokens, C classes, G groups of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.data.labelled_classes import check_classes
from metalearn.errors import SettingError, check_whole
from metalearn.reprs import labelled_line
from metalearn.signatures import check_fields, known_fields

__all__ = ["LabelledTexts"]


@known_fields
@dataclass(frozen=True)
class LabelledTexts:
    """Labelled texts as token numbers, with classes named, grouped and divided into splits.

    Attributes:
        tokens: int32 ``[N, L]``, in 0..V-1; 0 is padding, which follows the tokens of a text, and
            every text has a token.
        vocabulary: V, at least 2.
        labels: ``[N]``, int64, the class of each text, in 0..C-1.
        class_names: C names, ``"card_arrival"``.
        class_groups: C names, such as the domain that each class belongs to; ``""`` where there
            are none.
        splits: split name to its class indices; splits share no class.

    Raises:
        SettingError: shapes, types, numbers or splits that contradict one another.
    """

    tokens: Tensor
    vocabulary: int
    labels: Tensor
    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]

    __repr__ = labelled_line

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("tokens", "labels"):
            check_tensors(getattr(self, name), name)
        check_whole("vocabulary", self.vocabulary, 2)
        tokens = self.tokens
        if tokens.dtype != torch.int32 or tokens.ndim != 2:
            found = f"{tokens.dtype} {list(tokens.shape)}"
            raise SettingError("tokens", found, "an int32 tensor [N, L] is needed")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary:
            found = f"{int(tokens.min())}..{int(tokens.max())}"
            accepted = f"numbers in 0..{self.vocabulary - 1} are needed"
            raise SettingError("tokens", found, accepted)
        there = tokens != 0
        if not bool((there[:, :1].all(1) & (there.int().diff(dim=1) <= 0).all(1)).all()):
            accepted = "each text needs a token, and its padding (0) at its end"
            raise SettingError("tokens", "0 before a token", accepted)
        check_classes(self)

    @property
    def inputs(self) -> Tensor:
        """``tokens``, of which tasks take their inputs."""
        return self.tokens
