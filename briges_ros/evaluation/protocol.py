"""What is compared, and how: one named protocol for each data set.

Whatever the network's input was, the comparison is made at the resolution of the truth. Flip
averaging is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from briges_ros.depth_image import resize_inverse_depth
from briges_ros.evaluation.metrics import affine_invariant_depth

Box = tuple[int, int, int, int]
"""Top, bottom, left, right in pixels; bottom and right are the first ones outside."""

Alignment = Literal['affine', 'none']


def _whole(width: int, height: int) -> Box:
    return 0, height, 0, width


def _eigen(width: int, height: int) -> Box:
    """NYUv2 without its white border; only frames of 640x480 have one."""
    return (45, 471, 41, 601) if (width, height) == (640, 480) else _whole(width, height)


def _garg(width: int, height: int) -> Box:
    """The part of a KITTI frame that the LiDAR covers: Garg et al. (arXiv 1603.04992)."""
    return (
        int(0.40810811 * height),
        int(0.99189189 * height),
        int(0.03594771 * width),
        int(0.96405229 * width),
    )


def _benchmark(width: int, height: int) -> Box:
    """KITTI's depth benchmark: the lower middle 1216x352 pixels; all of a smaller frame."""
    left, top = max(0, (width - 1216) // 2), max(0, height - 352)
    return top, height, left, min(width, left + 1216)


CROPS: MappingProxyType[str, Callable[[int, int], Box]] = MappingProxyType(
    {'none': _whole, 'eigen': _eigen, 'garg': _garg, 'benchmark': _benchmark}
)
"""Which part of a frame counts, from its width and height in pixels."""


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with the truth.

    Attributes:
        name: for reports.
        min_depth, max_depth: metres. Truth that is not strictly between them does not count, and
            predictions are clamped to them.
        crop: a name in `CROPS`.
        alignment: 'affine' fits scale and shift in inverse depth to the truth by least squares, for
            networks whose output is relative; 'none' takes the metres of metric networks as they
            are.
        block: how many neighbouring frames are drawn together when confidence intervals are
            computed (`bootstrap`); 1 where frames have nothing to do with one another.
    """

    name: str
    min_depth: float
    max_depth: float
    crop: str = 'none'
    alignment: Alignment = 'affine'
    block: int = 1

    def metric(self) -> Protocol:
        """The same for a network whose output is metres: nothing is fitted to the truth."""
        return replace(self, alignment='none')

    def scored_truth(self, truth: NDArray[np.floating]) -> NDArray[np.float32]:
        """The truth that counts.

        Args:
            truth: (H, W) metres; NaN, inf and 0 = unknown.

        Returns:
            (H, W) float32 metres, NaN outside crop and range.
        """
        height, width = truth.shape
        top, bottom, left, right = CROPS[self.crop](width, height)
        scored = np.full((height, width), np.nan, np.float32)
        inside = truth[top:bottom, left:right]
        counts = (inside > self.min_depth) & (inside < self.max_depth)
        scored[top:bottom, left:right] = np.where(counts, inside, np.nan)
        return scored

    def aligned_depth(
        self, prediction: NDArray[np.float32], scored: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Bring a prediction to the size of the truth, to metres and into the range.

        Args:
            prediction: (h, w) inverse depth: up to scale and shift, or in 1/m if the alignment is
                'none'; NaN = unknown.
            scored: (H, W) metres, what `scored_truth` returned.

        Returns:
            (H, W) float32 metres; NaN where the prediction is NaN.

        Raises:
            ValueError: no pixel of the truth counts, or none of the prediction is finite.
        """
        if not np.isfinite(scored).any():
            raise ValueError('no pixel of the truth is known within the range and the crop')
        if not np.isfinite(prediction).any():
            raise ValueError('the prediction is not finite anywhere')
        height, width = scored.shape
        inverse = resize_inverse_depth(prediction, width, height)
        if self.alignment == 'affine':
            depth = affine_invariant_depth(inverse, scored, self.min_depth, self.max_depth)
        else:
            least = 1.0 / self.max_depth
            depth = np.maximum(1.0 / np.maximum(inverse.astype(np.float64), least), self.min_depth)
        return depth.astype(np.float32)


PROTOCOLS: MappingProxyType[str, Protocol] = MappingProxyType(
    {
        'nyuv2': Protocol('nyuv2', 1e-3, 10.0, crop='eigen', block=6),
        'kitti': Protocol('kitti', 1e-5, 80.0, crop='benchmark', block=5),
        'frames-rgbd': Protocol('frames-rgbd', 1e-3, 10.0),
        'frames-lidar': Protocol('frames-lidar', 1e-5, 80.0),
        'folder': Protocol('folder', 1e-3, 80.0),
    }
)
