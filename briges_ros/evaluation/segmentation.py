"""Intersection over union of a labelling, by class and on average."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Confusion:
    """Counts of (truth, prediction) pairs over any number of frames.

    Args:
        count: number of classes, labelled 1..count; 0 in the truth is unlabelled and not counted.
    """

    def __init__(self, count: int) -> None:
        self._pairs = np.zeros((count, count), np.int64)

    def add(self, prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count one frame; both (H, W).

        Raises:
            ValueError: a labelled pixel is predicted to be none of the classes.
        """
        count = len(self._pairs)
        labelled = (truth > 0) & (truth <= count)
        predicted = prediction[labelled].astype(np.int64)
        if not ((predicted > 0) & (predicted <= count)).all():  # it would count as another pair
            raise ValueError(f'predictions must be classes 1 to {count}')
        index = (truth[labelled].astype(np.int64) - 1) * count + predicted - 1
        self._pairs += np.bincount(index, minlength=count * count).reshape(count, count)

    @property
    def classes(self) -> int:
        """Classes that occur in the truth."""
        return int((self._pairs.sum(1) > 0).sum())

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right."""
        return float(np.trace(self._pairs) / max(1, self._pairs.sum()))

    @property
    def pixels(self) -> NDArray[np.int64]:
        """(count,) labelled pixels of each class in the truth; class 1 first."""
        return self._pairs.sum(1)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(count,) intersection over union of each class; NaN where the truth has none of it."""
        hit = np.diag(self._pairs)
        truth, predicted = self._pairs.sum(1), self._pairs.sum(0)
        iou = np.full(len(hit), np.nan)
        occurs = truth > 0
        iou[occurs] = hit[occurs] / (truth + predicted - hit)[occurs]
        return iou

    @property
    def mean_iou(self) -> float:
        """Mean, over the classes that occur in the truth, of intersection over union."""
        return float(np.nanmean(self.iou))
