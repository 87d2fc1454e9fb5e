"""What every data set yields."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame.

    Attributes:
        name: for logs and reports.
        image: (H, W, 3) uint8 RGB.
        inverse: (H, W) float32, 1/z in 1/m along optical Z; 0 = infinitely far (sky), NaN =
            unknown.
        labels: (H, W) uint8 class of each pixel, 0 = unlabelled; None where the data set has
            none. What the numbers mean depends on the data set.
    """

    name: str
    image: NDArray[np.uint8]
    inverse: NDArray[np.float32]
    labels: NDArray[np.uint8] | None = None


class Dataset(Protocol):
    """Samples by index.

    Attributes:
        sharp: depth is dense and its edges lie where the image's do, so matching the gradients of
            depth teaches something; with LiDAR it would teach the gaps between the beams.
    """

    sharp: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def inverse_depth(depth: NDArray[np.generic], far_m: float = np.inf) -> NDArray[np.float32]:
    """Inverse depth in 1/m of depth in metres along optical Z.

    Args:
        depth: (H, W), any numeric dtype; NaN, zero and negative = unknown.
        far_m: this far or farther counts as infinitely far.

    Returns:
        (H, W) float32: 0 = infinitely far, NaN = unknown.
    """
    z = depth.astype(np.float32)
    inverse = np.full(z.shape, np.nan, np.float32)
    known = z > 0
    inverse[known] = 1.0 / z[known]
    inverse[z >= far_m] = 0.0
    return inverse


def frames_sha256(frames: Dataset) -> str:
    """Which frames these are, by the first, middle and last: reading them all takes minutes."""
    digest = hashlib.sha256()
    count = len(frames)
    for index in sorted({0, count // 2, count - 1}):
        sample = frames[index]
        digest.update(sample.name.encode())
        digest.update(sample.image.tobytes())
        digest.update(sample.inverse.tobytes())
    return digest.hexdigest()
