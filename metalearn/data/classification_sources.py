"""Classification data from each source, by name.

Axes: N samples, C classes.
"""

from __future__ import annotations

import numpy as np
import torch

from metalearn.data.classification import ClassificationData
from metalearn.data.division import stratified_splits

__all__ = ["digits_data"]


def digits_data(
    *, validation_fraction: float = 0.15, test_fraction: float = 0.25, seed: int = 0
) -> ClassificationData:
    """1797 handwritten digits of 8×8 pixels, which scikit-learn ships; no download.

    Pixels 0..16 are brought to 0..255: ``round(255 v / 16)``, ink bright on dark.

    Args:
        validation_fraction: share of each class for validation.
        test_fraction: share of each class for testing.
        seed: of the division; the same splits on any machine.

    Returns:
        inputs uint8 ``[1797, 1, 8, 8]``, classes ``"0"`` to ``"9"``.

    Raises:
        SettingError: a setting that cannot work.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (test part).
    """
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    pixels = (digits.images * (255 / 16) + 0.5).astype(np.uint8)
    targets = torch.from_numpy(digits.target.astype(np.int64))
    names = tuple(map(str, range(10)))
    splits = stratified_splits(
        targets,
        names=names,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )
    return ClassificationData(torch.from_numpy(pixels).unsqueeze(1), targets, names, splits)
