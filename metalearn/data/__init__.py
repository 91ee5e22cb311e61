"""Labelled data sets: one array interface for few-shot tasks, two for supervised learning."""

from metalearn.data.affine import AffineRanges
from metalearn.data.arrays import LabelledArrays
from metalearn.data.augmentation import Augmentation, augment
from metalearn.data.batches import MemberBatches
from metalearn.data.cifar100 import load_cifar_fs, load_fc100
from metalearn.data.classification import ClassificationData
from metalearn.data.classification_sources import (
    digits_data,
    folder_data,
    glyphs_data,
    omniglot_data,
)
from metalearn.data.cub import load_cub
from metalearn.data.folder import list_folder, load_folder
from metalearn.data.glyphs import load_glyphs
from metalearn.data.imagenet_subsets import load_mini_imagenet, load_tiered_imagenet
from metalearn.data.images import LabelledImages
from metalearn.data.imbalanced import imbalanced
from metalearn.data.mislabelled import MislabelledData, mislabelled
from metalearn.data.omniglot import load_omniglot
from metalearn.data.omniglot_layout import OmniglotSplit
from metalearn.data.own_data import classification_data, regression_data
from metalearn.data.picture_files import LabelledFiles
from metalearn.data.regression import RegressionData
from metalearn.data.resizing import resized
from metalearn.data.text_source import load_texts
from metalearn.data.texts import LabelledTexts
from metalearn.data.tokens import Tokenizer
from metalearn.data.torchvision_sets import torchvision_data
from metalearn.data.waves import waves_data

__all__ = [
    "AffineRanges",
    "Augmentation",
    "ClassificationData",
    "LabelledArrays",
    "LabelledFiles",
    "LabelledImages",
    "LabelledTexts",
    "MemberBatches",
    "MislabelledData",
    "OmniglotSplit",
    "RegressionData",
    "Tokenizer",
    "augment",
    "classification_data",
    "digits_data",
    "folder_data",
    "glyphs_data",
    "imbalanced",
    "list_folder",
    "load_cifar_fs",
    "load_cub",
    "load_fc100",
    "load_folder",
    "load_glyphs",
    "load_mini_imagenet",
    "load_omniglot",
    "load_texts",
    "load_tiered_imagenet",
    "mislabelled",
    "omniglot_data",
    "regression_data",
    "resized",
    "torchvision_data",
    "waves_data",
]
