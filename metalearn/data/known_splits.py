"""Which classes of published data sets are for training, validation and the test.

Axes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = [
    "CIFAR100_SUPERCLASSES",
    "CIFAR_FS",
    "FC100",
    "ClassSplits",
    "cub_splits",
    "splits_of",
]

ClassSplits = Mapping[str, tuple[str, ...]]
"""Split to the names of its classes."""

CIFAR100_SUPERCLASSES: Mapping[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""CIFAR-100's superclasses, in the order of their labels, with their classes."""


def splits_of(text: Mapping[str, str]) -> ClassSplits:
    """Split to names that are written with blanks between them."""
    return {split: tuple(sorted(names.split())) for split, names in text.items()}


CIFAR_FS = splits_of(
    {
        "train": """
            apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair
            clock cloud cockroach couch cup dinosaur dolphin elephant forest girl hamster house
            kangaroo keyboard lawn_mower lion lizard lobster mountain mouse mushroom oak_tree
            orange orchid palm_tree pear pine_tree plate porcupine possum rabbit raccoon ray road
            seal shrew skunk skyscraper snake spider squirrel streetcar sunflower tank tiger train
            trout tulip turtle willow_tree wolf""",
        "validation": """
            beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle
            otter sea shark television tractor""",
        "test": """
            baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail
            sweet_pepper table telephone wardrobe whale woman worm""",
    }
)
"""64, 16 and 20 classes of CIFAR-100.

Source: Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form
solvers", ICLR 2019.
"""

FC100 = {
    split: tuple(sorted(c for group in groups for c in CIFAR100_SUPERCLASSES[group]))
    for split, groups in splits_of(
        {
            "train": """
                fish flowers food_containers fruit_and_vegetables household_electrical_devices
                household_furniture large_man-made_outdoor_things large_natural_outdoor_scenes
                reptiles trees vehicles_1 vehicles_2""",
            "validation": """
                large_carnivores large_omnivores_and_herbivores non-insect_invertebrates
                small_mammals""",
            "test": "aquatic_mammals insects medium_mammals people",
        }
    ).items()
}
"""60, 20 and 20 classes of CIFAR-100: the 5 of each of 12, 4 and 4 superclasses.

Source: Oreshkin, Rodríguez López and Lacoste, "TADAM: Task dependent adaptive metric for improved
few-shot learning", NeurIPS 2018.
"""


def cub_splits(names: Sequence[str]) -> ClassSplits:
    """100, 50 and 50 classes of CUB, whose names begin with their numbers from 1 to 200.

    Odd numbers are for training; of the even ones, two more than a multiple of four are for
    validation and multiples of four for the test.

    Source: Chen, Liu, Kira, Wang and Huang, "A closer look at few-shot classification", ICLR 2019.
    """
    parts = {"train": (1, 3), "validation": (2,), "test": (0,)}
    return {
        split: tuple(sorted(n for n in names if int(n.partition(".")[0]) % 4 in rests))
        for split, rests in parts.items()
    }
