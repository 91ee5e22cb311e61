"""Labelled data sets: one array interface for few-shot tasks, one for classification."""

from metalearn.data.classification import ClassificationData
from metalearn.data.classification_sources import digits_data
from metalearn.data.folder import load_folder
from metalearn.data.glyphs import load_glyphs
from metalearn.data.images import LabelledImages
from metalearn.data.omniglot import load_omniglot
from metalearn.data.omniglot_layout import OmniglotSplit

__all__ = [
    "ClassificationData",
    "LabelledImages",
    "OmniglotSplit",
    "digits_data",
    "load_folder",
    "load_glyphs",
    "load_omniglot",
]
