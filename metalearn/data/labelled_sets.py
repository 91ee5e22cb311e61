"""What few-shot tasks are drawn from.

Axes: none.
"""

from __future__ import annotations

from metalearn.data.arrays import LabelledArrays
from metalearn.data.images import LabelledImages
from metalearn.data.picture_files import LabelledFiles
from metalearn.data.texts import LabelledTexts

__all__ = ["LabelledSet"]

LabelledSet = LabelledImages | LabelledFiles | LabelledTexts | LabelledArrays
"""Labelled samples whose classes are named, grouped and divided into splits."""
