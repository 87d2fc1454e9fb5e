"""Depth of the last frame as anchors of this one.

A depth network makes up its mind anew for each image: scale, shift and the form of its errors jump
from frame to frame, and no filter on scale and shift can help against the last. What is continuous
is the scene. So points of the last depth image are found again in this image (sparse optical flow:
Lucas and Kanade, IJCAI 1981, in the pyramid of Bouguet 2001, and back again as a check) and come as
anchors beside those of the sensor: the depth around is drawn to what it was, and where the sensor
is silent, its scale lives on in them, whatever the network does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.alignment.anchors import Anchors
from briges_ros.alignment.fit import AffineFit
from briges_ros.alignment.tracker import INDEPENDENT_ANCHORS
from briges_ros.camera import CameraModel
from briges_ros.depth_image import Image32

# How much one counts beside an anchor of the sensor: there are many, and they may be wrong alike.
CARRIED_WEIGHT = 0.3

_WIDTH = 240  # of the images in which points are followed, pixels
_GRID = (15, 20)
_SEARCH: dict[str, Any] = {
    'winSize': (15, 15),
    'maxLevel': 4,
    'criteria': (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 10, 0.03),
}
_AND_BACK = 0.7  # pixels between a point and where it comes out, there and back again
_OLDEST = 1.0  # seconds
# No points where the depth varies by more than this within 7 pixels: a little to the side, all is
# different there.
_EDGE_WINDOW = 7
_EDGE_RATIO = 1.35
# The point has moved, and was met with some error: as a part of the depth, after a second.
_DRIFT_PER_SQRT_SECOND = 0.1
# Carried points that are off by this much as a whole, and by this many standard deviations of their
# median and of the fit, are of another scale.
_OFF = 0.2
_OFF_SIGMAS = 3.0
_SIGMA_PER_MAD = 1.4826
_FEWEST = 8


@dataclass(frozen=True, eq=False)
class _Memory:
    """Points of a frame: the image, (n, 2) places in it, distance in metres, relative sigma."""

    size: tuple[int, int]
    image: npt.NDArray[np.uint8]
    points: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float32]
    sigma: npt.NDArray[np.float32]
    stamp: float


class CarriedDepth:
    """Carries depth from frame to frame. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._memory: _Memory | None = None

    def forget(self) -> None:
        """Forget the last frame."""
        self._memory = None

    def recall(
        self, image: npt.NDArray[np.uint8], camera: CameraModel | None, stamp: float | None
    ) -> Anchors | None:
        """Find points of the last frame in this one.

        Args:
            image: (H, W, 3) uint8 RGB.
            camera: Of the image, the same as that of the last frame. With it, points keep their
                distance from the camera, which is right if that turns; without, their depth.
            stamp: Seconds; None for a still picture on its own, which has no last frame.

        Returns:
            The anchors, at most 300, or None if there are fewer than 8: the last frame is older
            than a second, of another size or time line, or shows something else.
        """
        memory = self._memory
        if memory is None or stamp is None or not 0 <= stamp - memory.stamp <= _OLDEST:
            return None
        height, width = image.shape[:2]
        if memory.size != (width, height):
            return None
        now, before = _small(image), memory.points.reshape(-1, 1, 2)
        after, found, _ = cv2.calcOpticalFlowPyrLK(memory.image, now, before, None, **_SEARCH)
        back, again, _ = cv2.calcOpticalFlowPyrLK(now, memory.image, after, None, **_SEARCH)
        miss = np.linalg.norm((back - before)[:, 0], axis=1)
        good = (found[:, 0] > 0) & (again[:, 0] > 0) & (miss < _AND_BACK)
        u, v = ((after[:, 0] + 0.5) * (width / now.shape[1]) - 0.5).T
        good &= (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
        u, v, depth = u[good], v[good], memory.distance[good]
        if camera is not None:
            depth = depth / _stretch(camera, u, v)
        drift = _DRIFT_PER_SQRT_SECOND * math.sqrt(stamp - memory.stamp)
        sigma = depth * np.hypot(memory.sigma[good], drift)
        known = np.isfinite(depth)
        if known.sum() < _FEWEST:
            return None
        return Anchors(u[known], v[known], depth[known], sigma[known], (width, height))

    def remember(
        self,
        image: npt.NDArray[np.uint8],
        depth: Image32,
        sigma: Image32,
        camera: CameraModel | None,
        stamp: float | None,
    ) -> None:
        """Keep the depth of a frame for the next one.

        Args:
            image: (H, W, 3) uint8 RGB.
            depth: (H, W) float32 metres; what is not finite is not carried.
            sigma: (H, W) float32 metres.
            camera: As in `recall`.
            stamp: Seconds; None leaves the memory as it is.
        """
        if stamp is None:
            return
        small = _small(image)
        height, width = depth.shape
        rows, columns = _GRID
        x = (np.arange(columns) + 0.5) * (small.shape[1] / columns) - 0.5
        y = (np.arange(rows) + 0.5) * (small.shape[0] / rows) - 0.5
        x, y = (a.ravel().astype(np.float32) for a in np.meshgrid(x, y))
        # Infinities and holes make an edge, and an edge with NaN compares false.
        image_size = small.shape[1], small.shape[0]
        shrunk = cv2.resize(depth, image_size, interpolation=cv2.INTER_NEAREST)
        filled = np.where(np.isfinite(shrunk), shrunk, np.float32(0))
        window = np.ones((_EDGE_WINDOW, _EDGE_WINDOW), np.uint8)
        smooth = cv2.dilate(filled, window) < np.float32(_EDGE_RATIO) * cv2.erode(filled, window)
        keep = smooth[np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)]
        x, y = x[keep], y[keep]
        u = (x + 0.5) * (width / small.shape[1]) - 0.5
        v = (y + 0.5) * (height / small.shape[0]) - 0.5
        at = _pixels(u, v, width, height)
        distance = depth[at]
        relative = sigma[at] / distance
        if camera is not None:
            distance = distance * _stretch(camera, u, v)
        known = np.isfinite(distance) & np.isfinite(relative)
        points = np.column_stack([x, y])[known].astype(np.float32)
        if len(points) < _FEWEST:
            self._memory = None
            return
        self._memory = _Memory(
            (width, height), small, points, distance[known], relative[known], stamp
        )


def same_scale(carried: Anchors, relative: npt.NDArray[np.float32], fit: AffineFit) -> bool:
    """Tell whether carried anchors, as a whole, are of the scale of a fit to fresh ones.

    They are not after a step of the true scale, and if the memory is of wrong metres: then they
    must not be used. (One by one, they differ by what the network errs.)

    Args:
        carried: What `CarriedDepth.recall` gave.
        relative: (N,) float32 relative inverse depth at them.
        fit: To the fresh anchors of the frame.
    """
    p = relative.astype(np.float64)
    inverse = fit.scale * p + fit.shift
    usable = np.isfinite(inverse) & (inverse > 0)
    if usable.sum() < _FEWEST:
        return False
    p, inverse = p[usable], inverse[usable]
    ratio = np.log(inverse * carried.depth[usable])
    off = float(np.median(ratio))
    scatter = _SIGMA_PER_MAD * float(np.median(np.abs(ratio - off)))
    (ss, st), (_, tt) = fit.covariance * max(1.0, fit.inliers / INDEPENDENT_ANCHORS)
    of_fit = float(np.median(np.maximum((ss * p + 2 * st) * p + tt, 0) / np.square(inverse)))
    variance = scatter**2 / min(len(p), INDEPENDENT_ANCHORS) + of_fit
    return abs(off) <= max(_OFF, _OFF_SIGMAS * math.sqrt(variance))


def _small(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = image.shape[:2]
    factor = min(1.0, _WIDTH / width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _pixels(
    u: npt.NDArray[np.float32], v: npt.NDArray[np.float32], width: int, height: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    columns = np.rint(u).astype(np.intp).clip(0, width - 1)
    return np.rint(v).astype(np.intp).clip(0, height - 1), columns


def _stretch(
    camera: CameraModel, u: npt.NDArray[np.float32], v: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Distance from the camera as a multiple of the depth."""
    rays = camera.rays()[_pixels(u, v, camera.width, camera.height)]
    return np.sqrt(np.square(rays).sum(axis=1) + np.float32(1))
