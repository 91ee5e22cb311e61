"""Labelled data sets: one array interface for all sources."""

from metalearn.data.folder import load_folder
from metalearn.data.glyphs import load_glyphs
from metalearn.data.images import LabelledImages
from metalearn.data.omniglot import load_omniglot
from metalearn.data.omniglot_layout import OmniglotSplit

__all__ = ["LabelledImages", "OmniglotSplit", "load_folder", "load_glyphs", "load_omniglot"]
